//! A container runtime as far as CNI sees one: reads the conflist, chooses a version, executes the plugins with
//! environment and stdin as libcni does, and keeps results for DEL.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use netlab::Namespace;
use serde_json::{Value, json};

/// Versions that this runtime knows, newest last.
const KNOWN: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// A kubelet gives a sandbox about two minutes.
const DEADLINE: Duration = Duration::from_secs(130);

/// A CNI error as a plugin printed it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("CNI error {code}: {msg}: {details}")]
pub struct CniError {
    /// See the specification.
    pub code: u64,
    /// One sentence.
    pub msg: String,
    /// More.
    pub details: String,
}

/// What identifies one interface of one sandbox.
#[derive(Clone, Debug)]
pub struct Sandbox {
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    /// `CNI_NETNS`; empty: not given.
    pub netns: String,
    /// `CNI_IFNAME`.
    pub ifname: String,
    /// `CNI_ARGS`.
    pub args: String,
    /// What the runtime supplies for capabilities.
    pub runtime_config: Value,
}

impl Sandbox {
    /// A sandbox as containerd makes it for a pod.
    pub fn of_pod(container_id: &str, netns: &str, namespace: &str, name: &str, uid: &str) -> Self {
        let args = format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name};\
             K8S_POD_INFRA_CONTAINER_ID={container_id};K8S_POD_UID={uid}"
        );
        Self {
            container_id: container_id.to_owned(),
            netns: netns.to_owned(),
            ifname: "eth0".to_owned(),
            args,
            runtime_config: json!({}),
        }
    }
}

/// A conflist, read from a node.
#[derive(Clone, Debug)]
pub struct Runtime {
    conflist: Value,
    version: String,
    bin_dir: PathBuf,
}

impl Runtime {
    /// Reads the first conflist of `/etc/cni/net.d` on a node, as containerd does.
    ///
    /// # Errors
    /// There is none, or it is not JSON.
    pub fn of(node: &Namespace) -> Result<Self> {
        let text = node.run(|| -> Result<String> {
            let mut files: Vec<PathBuf> =
                std::fs::read_dir("/etc/cni/net.d")?.flatten().map(|entry| entry.path()).collect();
            files.retain(|path| path.extension().is_some_and(|ext| ext == "conflist"));
            files.sort();
            Ok(std::fs::read_to_string(files.first().context("no conflist in /etc/cni/net.d")?)?)
        })?;
        let conflist: Value = serde_json::from_str(&text)?;
        let offered = conflist["cniVersions"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let offered: Vec<&str> = offered.chain(conflist["cniVersion"].as_str()).collect();
        let version =
            KNOWN.iter().rev().find(|known| offered.contains(known)).context("no common CNI version")?;
        Ok(Self { version: (*version).to_owned(), conflist, bin_dir: PathBuf::from("/opt/cni/bin") })
    }

    /// Another version than the newest.
    #[must_use]
    pub fn version(self, version: &str) -> Self {
        Self { version: version.to_owned(), ..self }
    }

    /// The network's name.
    pub fn network(&self) -> &str {
        self.conflist["name"].as_str().unwrap_or_default()
    }

    fn plugins(&self) -> Vec<Value> {
        self.conflist["plugins"].as_array().cloned().unwrap_or_default()
    }

    /// ADD through the chain; the final result.
    ///
    /// # Errors
    /// A [`CniError`] of the plugin that failed; what was added before it is not unmade, as in libcni.
    pub fn add(&self, node: &Namespace, sandbox: &Sandbox) -> Result<Value> {
        let mut previous = None;
        for plugin in self.plugins() {
            let result = self.call(node, "ADD", &plugin, sandbox, previous.as_ref(), &json!({}))?;
            previous = Some(serde_json::from_str(&result).with_context(|| format!("result {result:?}"))?);
        }
        previous.context("a conflist without plugins")
    }

    /// DEL through the chain, backwards.
    ///
    /// # Errors
    /// A [`CniError`].
    pub fn del(&self, node: &Namespace, sandbox: &Sandbox, previous: Option<&Value>) -> Result<()> {
        for plugin in self.plugins().iter().rev() {
            self.call(node, "DEL", plugin, sandbox, previous, &json!({}))?;
        }
        Ok(())
    }

    /// CHECK through the chain.
    ///
    /// # Errors
    /// A [`CniError`].
    pub fn check(&self, node: &Namespace, sandbox: &Sandbox, previous: &Value) -> Result<()> {
        for plugin in self.plugins() {
            self.call(node, "CHECK", &plugin, sandbox, Some(previous), &json!({}))?;
        }
        Ok(())
    }

    /// STATUS of every plugin.
    ///
    /// # Errors
    /// A [`CniError`].
    pub fn status(&self, node: &Namespace) -> Result<()> {
        let nobody = Sandbox::of_pod("status", "", "none", "none", "none");
        for plugin in self.plugins() {
            self.call(node, "STATUS", &plugin, &nobody, None, &json!({}))?;
        }
        Ok(())
    }

    /// GC with what the runtime still knows.
    ///
    /// # Errors
    /// A [`CniError`].
    pub fn gc(&self, node: &Namespace, valid: &[&Sandbox]) -> Result<()> {
        let nobody = Sandbox::of_pod("gc", "", "none", "none", "none");
        let valid: Vec<Value> =
            valid.iter().map(|s| json!({"containerID": s.container_id, "ifname": s.ifname})).collect();
        let extra = json!({"cni.dev/valid-attachments": valid, "cni.dev/attachments": valid});
        for plugin in self.plugins() {
            self.call(node, "GC", &plugin, &nobody, None, &extra)?;
        }
        Ok(())
    }

    /// Answers of every plugin to VERSION.
    ///
    /// # Errors
    /// A [`CniError`].
    pub fn versions(&self, node: &Namespace) -> Result<Vec<Value>> {
        let nobody = Sandbox::of_pod("dummy", "dummy", "none", "none", "none");
        let answer = |plugin: &Value| {
            Ok(serde_json::from_str(&self.call(node, "VERSION", plugin, &nobody, None, &json!({}))?)?)
        };
        self.plugins().iter().map(answer).collect()
    }

    fn call(
        &self,
        node: &Namespace,
        verb: &str,
        plugin: &Value,
        sandbox: &Sandbox,
        previous: Option<&Value>,
        extra: &Value,
    ) -> Result<String> {
        let input = self.request(plugin, sandbox, previous, extra)?;
        let kind = plugin["type"].as_str().context("a plugin without type")?;
        let mut command = Command::new(self.bin_dir.join(kind));
        command.env_clear().env("CNI_COMMAND", verb).env("CNI_PATH", &self.bin_dir);
        if !matches!(verb, "STATUS" | "GC") {
            command.env("CNI_CONTAINERID", &sandbox.container_id).env("CNI_IFNAME", &sandbox.ifname);
            command.env("CNI_ARGS", &sandbox.args).env("CNI_NETNS", &sandbox.netns);
        }
        let output = node.exec_with_input(command, input, DEADLINE)?;
        let text = output.stdout_text();
        if output.status.success() {
            return Ok(text);
        }
        let error: Value = serde_json::from_str(&text)
            .map_err(|_| anyhow!("{verb}: {}: {text:?} {}", output.status, output.stderr_text()))?;
        let field = |name: &str| error[name].as_str().unwrap_or_default().to_owned();
        let Some(code) = error["code"].as_u64() else { bail!("{verb}: no error code in {text:?}") };
        Err(CniError { code, msg: field("msg"), details: field("details") }.into())
    }

    fn request(
        &self,
        plugin: &Value,
        sandbox: &Sandbox,
        previous: Option<&Value>,
        extra: &Value,
    ) -> Result<Vec<u8>> {
        let mut request = plugin.clone();
        let fields = request.as_object_mut().context("a plugin that is no object")?;
        fields.insert("name".into(), self.conflist["name"].clone());
        fields.insert("cniVersion".into(), json!(self.version));
        let capable = |name: &str| plugin["capabilities"][name] == json!(true);
        let supplied: serde_json::Map<String, Value> = sandbox
            .runtime_config
            .as_object()
            .map(|all| {
                all.iter().filter(|(name, _)| capable(name)).map(|(n, v)| (n.clone(), v.clone())).collect()
            })
            .unwrap_or_default();
        if !supplied.is_empty() {
            fields.insert("runtimeConfig".into(), supplied.into());
        }
        if let Some(previous) = previous {
            fields.insert("prevResult".into(), previous.clone());
        }
        if let Some(extra) = extra.as_object() {
            fields.extend(extra.clone());
        }
        Ok(serde_json::to_vec(&request)?)
    }
}

/// The CNI error code inside an error of this module, if it is one.
pub fn code(error: &anyhow::Error) -> Option<u64> {
    error.downcast_ref::<CniError>().map(|error| error.code)
}
