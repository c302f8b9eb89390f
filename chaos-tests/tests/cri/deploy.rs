//! Nodes with nothing of ours, installed from the DaemonSets of `deploy/` as a kubelet would: each container with exactly the
//! arguments, mounts, capabilities, profiles and token that the manifest gives it, started by containerd.
//!
//! `HAWSER_IMAGE=FILE` takes programs from an image that `cargo xtask image` made, instead of those that the lab uses.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use chaos_tests::cluster::{API_PORT, node_name};
use chaos_tests::{Lab, LabOptions, objects};
use kubeapi::User;
use netlab::eventually;
use serde_json::{Value, json};
use xtask::values::Values;

use super::{Containerd, CriPod, HOME, IMAGE, LONG, NEEDED, archive, m, services};

/// What a kubelet asks to be hidden, and to be read-only, in containers that are not privileged (`pkg/securitycontext/util.go`
/// of Kubernetes).
const MASKED: [&str; 11] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// The numbers of capabilities (`linux/capability.h`) that each program has: `NET_ADMIN`, `NET_RAW`, `SYS_ADMIN`.
const CAPABILITIES: [(&str, &[u32]); 2] = [("mesh-agent", &[12, 13, 21]), ("mesh-tunnel", &[12])];

/// A kubelet in small: what it makes of a pod's specification.
pub(super) struct Kubelet<'a> {
    pub(super) lab: &'a Lab,
    pub(super) runtime: &'a Containerd<'a>,
    pub(super) manifests: &'a [Value],
    pub(super) image: String,
}

impl Kubelet<'_> {
    pub(super) fn object(&self, kind: &str, name: &str) -> Result<&Value> {
        let found = self.manifests.iter().find(|o| o["kind"] == kind && o["metadata"]["name"] == name);
        found.with_context(|| format!("no {kind} {name} in deploy/"))
    }

    /// Starts a pod of a DaemonSet; its init containers have ended well when this returns.
    fn start(&self, daemon_set: &str, change: impl Fn(&mut Value)) -> Result<DaemonPod> {
        let mut template = self.object("DaemonSet", daemon_set)?["spec"]["template"].clone();
        change(&mut template["spec"]);
        ensure!(template["spec"]["hostNetwork"] == true, "{daemon_set} is on the node's network");
        self.start_pod(&template, daemon_set)
    }

    /// Starts a pod of a template.
    pub(super) fn start_pod(&self, template: &Value, owner: &str) -> Result<DaemonPod> {
        let spec = &template["spec"];
        let (node, runtime) = (self.lab.node(self.runtime.node), self.runtime);
        let pod_name = format!("{owner}-{}", node.name);
        let on_node = spec["hostNetwork"] == true;
        // The plugin asks the API for a pod that gets a network.
        let uid = if on_node { kubeapi_uid() } else { self.create(template, &pod_name)? };
        let logs = format!("{HOME}/logs/{owner}-{uid}");
        node.sh(&format!("mkdir -p {logs}"))?;
        let namespaces = || m::Namespaces { network: if on_node { 2 } else { 0 }, pid: 1, ipc: 0 };
        let seccomp = || Some(m::Profile { kind: 0 });
        let selinux = || {
            let kind = spec["securityContext"]["seLinuxOptions"]["type"].as_str()?.to_owned();
            Some(m::Selinux { kind })
        };
        let unconfined = spec["securityContext"]["appArmorProfile"]["type"] == "Unconfined";
        ensure!(spec["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault");
        let config = m::SandboxConfig {
            metadata: Some(m::Metadata {
                name: pod_name.clone(),
                uid: uid.clone(),
                namespace: "hawser-system".to_owned(),
                attempt: 0,
            }),
            log_directory: logs.clone(),
            linux: Some(m::Linux {
                cgroup_parent: runtime.cgroup.clone(),
                security: Some(m::SandboxSecurity {
                    namespaces: Some(namespaces()),
                    selinux: selinux(),
                    seccomp: seccomp(),
                }),
            }),
            ..m::SandboxConfig::default()
        };
        let sandbox: m::Id = runtime.ask("RunPodSandbox", m::RunSandbox { config: Some(config.clone()) })?;
        let metadata = config.metadata.clone().context("no metadata")?;
        let ips = if on_node { Vec::new() } else { runtime.ips(&sandbox, &metadata)? };
        let mut pod = DaemonPod { sandbox: sandbox.id, logs, containers: Vec::new(), ips };
        let volumes = self.volumes(spec, &uid)?;
        // Beside those of the manifest, unless it says otherwise.
        let token = match spec["automountServiceAccountToken"] == false {
            true => None,
            false => Some(m::Mount {
                container: "/var/run/secrets/kubernetes.io/serviceaccount".to_owned(),
                host: self.token(spec, &uid)?,
                readonly: true,
            }),
        };
        let addresses = pod.ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let run = |container: &Value| -> Result<String> {
            let name = container["name"].as_str().context("a container without a name")?;
            let security = &container["securityContext"];
            ensure!(security["privileged"] != true, "{name} is privileged");
            let words = |value: &Value| -> Vec<String> {
                value.as_array().into_iter().flatten().filter_map(|w| w.as_str().map(str::to_owned)).collect()
            };
            let mounts = container["volumeMounts"].as_array().into_iter().flatten().map(|mount| {
                let volume = volumes.iter().find(|(volume, _)| mount["name"] == volume.as_str());
                let (_, host) = volume.with_context(|| format!("{name}: no volume {}", mount["name"]))?;
                ensure!(mount.get("mountPropagation").is_none(), "{name} asks for propagation");
                Ok(m::Mount {
                    container: mount["mountPath"].as_str().unwrap_or_default().to_owned(),
                    host: host.clone(),
                    readonly: mount["readOnly"] == true,
                })
            });
            let url = self.lab.api_url();
            let host = url.strip_prefix("https://").and_then(|rest| rest.strip_suffix(":6443"));
            let host = host.with_context(|| format!("{url} is no address"))?;
            let mut environment = vec![
                m::Variable { name: "KUBERNETES_SERVICE_HOST".into(), value: host.to_owned() },
                m::Variable { name: "KUBERNETES_SERVICE_PORT".into(), value: API_PORT.to_string() },
            ];
            // By which the lab finds what a crash left.
            let (mark, value) = self.lab.dir.mark();
            environment.push(m::Variable { name: mark.into(), value: value.into() });
            for variable in container["env"].as_array().into_iter().flatten() {
                let value = match variable.pointer("/valueFrom/fieldRef/fieldPath").and_then(Value::as_str) {
                    Some("spec.nodeName") => node.name.clone(),
                    Some("metadata.name") => pod_name.clone(),
                    Some("metadata.uid") => uid.clone(),
                    Some("status.podIPs") => addresses.clone(),
                    Some(other) => bail!("{name}: this kubelet knows no field {other}"),
                    None => variable["value"].as_str().unwrap_or_default().to_owned(),
                };
                let name = variable["name"].as_str().unwrap_or_default().to_owned();
                environment.push(m::Variable { name, value });
            }
            let linux = m::ContainerLinux {
                security: Some(m::ContainerSecurity {
                    capabilities: Some(m::Capabilities {
                        add: words(&security["capabilities"]["add"]),
                        drop: words(&security["capabilities"]["drop"]),
                    }),
                    privileged: false,
                    namespaces: Some(namespaces()),
                    user: spec["securityContext"]["runAsUser"].as_i64().map(|value| m::Number { value }),
                    group: spec["securityContext"]["runAsGroup"].as_i64().map(|value| m::Number { value }),
                    readonly_root: security["readOnlyRootFilesystem"] == true,
                    no_new_privileges: security["allowPrivilegeEscalation"] == false,
                    masked_paths: MASKED.map(str::to_owned).to_vec(),
                    readonly_paths: READ_ONLY.map(str::to_owned).to_vec(),
                    selinux: selinux(),
                    seccomp: seccomp(),
                    // A kubelet says nothing where the pod says nothing.
                    apparmor: unconfined.then_some(m::Profile { kind: 1 }),
                }),
            };
            let config_of = m::ContainerConfig {
                metadata: Some(m::ContainerName { name: name.to_owned() }),
                image: Some(m::Image { image: self.image.clone() }),
                command: words(&container["command"]),
                args: words(&container["args"]),
                environment,
                mounts: mounts.chain(token.clone().map(Ok)).collect::<Result<_>>()?,
                log_path: format!("{name}.log"),
                linux: Some(linux),
            };
            let create = m::CreateContainer {
                sandbox: pod.sandbox.clone(),
                config: Some(config_of),
                sandbox_config: Some(config.clone()),
            };
            let made: m::Id = runtime.ask("CreateContainer", create).with_context(|| name.to_owned())?;
            let _: m::Empty = runtime.ask("StartContainer", made.clone()).with_context(|| name.to_owned())?;
            Ok(made.id)
        };
        for container in spec["initContainers"].as_array().into_iter().flatten() {
            let id = run(container)?;
            eventually(LONG, "an init container has ended", || {
                let status: m::ContainerStatus =
                    runtime.ask("ContainerStatus", m::Id { id: id.clone() }).map_err(|e| format!("{e:#}"))?;
                status.status.filter(|status| status.state == 2).ok_or("it runs".to_owned())
            })
            .map_err(anyhow::Error::from)
            .and_then(|ended| {
                let name = container["name"].as_str().unwrap_or_default();
                ensure!(ended.exit_code == 0, "{name}: {ended:?}: {}", self.log(&pod, name));
                Ok(())
            })?;
        }
        for container in spec["containers"].as_array().into_iter().flatten() {
            pod.containers.push(run(container)?);
        }
        Ok(pod)
    }

    /// Makes a pod's object in the API; its UID.
    fn create(&self, template: &Value, name: &str) -> Result<String> {
        let mut object = template.clone();
        object["apiVersion"] = "v1".into();
        object["kind"] = "Pod".into();
        object["metadata"]["name"] = name.into();
        object["metadata"]["namespace"] = "hawser-system".into();
        object["spec"]["nodeName"] = self.lab.node(self.runtime.node).name.clone().into();
        let created: Value = self.lab.api().store().create(&object).map_err(|error| anyhow!("{error}"))?;
        Ok(created["metadata"]["uid"].as_str().context("a pod without UID")?.to_owned())
    }

    /// What a kubelet mounts into pods by itself: a token of their ServiceAccount, that the pod's user alone can read.
    fn token(&self, spec: &Value, uid: &str) -> Result<String> {
        let node = self.lab.node(self.runtime.node);
        let place = format!("{HOME}/volumes/{uid}/kube-api-access");
        let account = spec["serviceAccountName"].as_str().context("no ServiceAccount")?;
        let token = self.lab.api().tokens().issue(User::service_account("hawser-system", account));
        node.sh(&format!("mkdir -p {place}"))?;
        for (file, text) in
            [("token", token.as_str()), ("ca.crt", self.lab.api().ca_pem()), ("namespace", "hawser-system")]
        {
            node.write_file(&format!("{place}/{file}"), text)?;
        }
        let user = spec["securityContext"]["runAsUser"].as_i64().unwrap_or(0);
        node.sh(&format!("chmod -R a+rX {place}"))?;
        node.sh(&format!("chown {user} {place}/token"))?;
        node.sh(&format!("chmod 600 {place}/token"))?;
        Ok(place)
    }

    /// Name of each volume, and where it is on the node.
    fn volumes(&self, spec: &Value, uid: &str) -> Result<Vec<(String, String)>> {
        let node = self.lab.node(self.runtime.node);
        let mut all = Vec::new();
        for volume in spec["volumes"].as_array().into_iter().flatten() {
            let name = volume["name"].as_str().context("a volume without a name")?;
            let made = format!("{HOME}/volumes/{uid}/{name}");
            let write = |file: &str, text: &str| -> Result<()> {
                node.sh(&format!("mkdir -p {made}"))?;
                node.write_file(&format!("{made}/{file}"), text)
            };
            let place = if let Some(path) = volume["hostPath"]["path"].as_str() {
                match volume["hostPath"]["type"].as_str() {
                    Some("DirectoryOrCreate") => node.sh(&format!("mkdir -p {path}")).map(drop)?,
                    Some("Directory") => node.sh(&format!("test -d {path}")).map(drop)?,
                    Some("CharDevice") => node.sh(&format!("test -c {path}")).map(drop)?,
                    other => bail!("volume {name}: type {other:?}"),
                }
                path.to_owned()
            } else if let Some(map) = volume["configMap"]["name"].as_str() {
                for (file, text) in self.object("ConfigMap", map)?["data"].as_object().into_iter().flatten() {
                    write(file, text.as_str().unwrap_or_default())?;
                }
                // Their default mode.
                node.sh(&format!("chmod -R a+rX {made}"))?;
                made.clone()
            } else if volume.get("emptyDir").is_some() {
                node.sh(&format!("mkdir -p {made}"))?;
                made.clone()
            } else {
                for source in volume["projected"]["sources"].as_array().context("an unknown volume")? {
                    if source["configMap"]["optional"] == true {
                        let there = self
                            .object("ConfigMap", source["configMap"]["name"].as_str().unwrap_or_default());
                        ensure!(there.is_err(), "an optional ConfigMap that is there has to be mounted");
                    } else if source.get("serviceAccountToken").is_some() {
                        ensure!(spec["serviceAccountName"] == "mesh-agent");
                        let object: Value = self.lab.api().store().get("nodes", None, &node.name)?;
                        let node_uid = object["metadata"]["uid"].as_str().unwrap_or_default();
                        let user = User::agent_of_node(&node.name, node_uid);
                        write("token", &self.lab.api().tokens().issue(user))?;
                    } else if source["configMap"]["name"] == "kube-root-ca.crt" {
                        write("ca.crt", self.lab.api().ca_pem())?;
                    } else {
                        write("namespace", "hawser-system")?;
                    }
                }
                made.clone()
            };
            all.push((name.to_owned(), place));
        }
        Ok(all)
    }

    pub(super) fn log(&self, pod: &DaemonPod, container: &str) -> String {
        let node = self.lab.node(self.runtime.node);
        node.sh(&format!("cat {}/{container}.log", pod.logs)).unwrap_or_else(|error| format!("{error:#}"))
    }

    pub(super) fn stop(&self, pod: &DaemonPod) -> Result<()> {
        self.runtime.stop(&pod.sandbox)?;
        self.runtime.remove(&pod.sandbox)
    }
}

pub(super) struct DaemonPod {
    pub(super) sandbox: String,
    logs: String,
    /// Those that are no init containers, in the order of the manifest.
    pub(super) containers: Vec<String>,
    /// Of a pod that is not on the node's network.
    pub(super) ips: Vec<IpAddr>,
}

fn kubeapi_uid() -> String {
    use sha2::Digest as _;
    let digest = sha2::Sha256::digest(netlab::unique_name("pod").as_bytes());
    digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// What `deploy/` gives for a lab's cluster and this image, and what takes it off the nodes.
pub(super) fn manifests(image: &str) -> Result<Vec<Value>> {
    let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/chart/hawser");
    let mut values = Values::default();
    image.clone_into(&mut values.image.name);
    "lab".clone_into(&mut values.cluster_name);
    values.pod_cidrs = vec!["10.244.0.0/16".to_owned(), "fd00:10:244::/48".to_owned()];
    "/sys/fs/bpf/mesh".clone_into(&mut values.bpffs.pin_directory);
    values.clustermesh.enabled = true;
    let mut rendered = xtask::deploy::manifests(&chart, &values)?;
    values.uninstall.enabled = true;
    values.uninstall.reset_forwarding = true;
    rendered.extend(xtask::deploy::manifests(&chart, &values)?.remove_entry("uninstall.yaml"));
    let mut objects = Vec::new();
    for text in rendered.values() {
        objects.extend(serde_saphyr::from_multiple::<Value>(text)?.into_iter().filter(|o| !o.is_null()));
    }
    Ok(objects)
}

/// The sets of capabilities of a program on a node, by their names in `/proc/PID/status`.
fn capabilities(lab: &Lab, number: u8, program: &str) -> Result<Vec<(String, u64)>> {
    for pid in lab.node(number).namespace.processes()? {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        if status.starts_with(&format!("Name:\t{program}\n")) {
            return capability_sets(&status);
        }
    }
    bail!("no {program} runs on node-{number}")
}

/// Those of one process.
pub(super) fn capability_sets(status: &str) -> Result<Vec<(String, u64)>> {
    let sets = status.lines().filter_map(|line| line.strip_prefix("Cap")?.split_once(":\t"));
    sets.map(|(name, bits)| Ok((name.to_owned(), u64::from_str_radix(bits.trim(), 16)?))).collect()
}

#[test]
fn nodes_installed_from_the_manifests_of_deploy_have_a_network_with_the_capabilities_that_these_name_alone()
-> Result<()> {
    for (program, package) in NEEDED {
        ensure!(Path::new(program).exists(), "{program} is missing: apt-get install {package}");
    }
    let work = tempfile::tempdir()?;
    let lab = Lab::up(LabOptions { bare: true, ..LabOptions::new(netlab::unique_name("deploy")).nodes(2) })?;
    let binaries = chaos_tests::binaries::Binaries::find()?;
    let given = std::env::var_os("HAWSER_IMAGE").map(PathBuf::from);
    // One image for pods and ours, unless there is a real one.
    let ours = if given.is_some() { vec![] } else { vec![binaries.agent, binaries.tunnel, binaries.cni] };
    let archive = archive(work.path(), lab.dir.mark(), &ours)?;
    let image = if given.is_some() { Values::default().image.name } else { IMAGE.to_owned() };
    let manifests = manifests(&image)?;
    for number in 1..=2 {
        let node = lab.node(number);
        // As on a node that nothing has prepared.
        node.sh("umount /sys/fs/bpf")?;
        // Some installers give them to a user of their own.
        node.sh("chown 1000:1000 /opt/cni /etc/cni")?;
        node.sh("mkdir -p /opt/cni/bin /etc/cni/net.d")?;
        node.sh("chown 1000:1000 /opt/cni/bin /etc/cni/net.d")?;
        let taints = json!({"spec": {"taints": [{"key": "hawser.dev/agent-not-ready", "effect": "NoSchedule"},
            {"key": "dedicated", "value": "x", "effect": "NoSchedule"}]}});
        lab.api().store().patch("nodes", None, &node_name(number), &kubeapi::Patch::Merge(taints))?;
    }
    let runtimes = [Containerd::start(&lab, 1, &archive)?, Containerd::start(&lab, 2, &archive)?];
    if let Some(file) = &given {
        for (runtime, number) in runtimes.iter().zip(1..) {
            runtime
                .import(&std::fs::read(file)?)
                .with_context(|| format!("{} on {number}", file.display()))?;
        }
    }
    let kubelet = |runtime| Kubelet { lab: &lab, runtime, manifests: &manifests, image: image.clone() };
    let kubelets = [kubelet(&runtimes[0]), kubelet(&runtimes[1])];

    // Without what it needs for its programs an agent says so, and no runtime gets a configuration.
    let crippled = kubelets[0].start("mesh-agent", |spec| {
        let add = &mut spec["containers"][0]["securityContext"]["capabilities"]["add"];
        add.as_array_mut().unwrap().retain(|capability| capability != "SYS_ADMIN");
    })?;
    eventually(LONG, "the agent says that it has no data path", || {
        let log = kubelets[0].log(&crippled, "mesh-agent");
        if log.contains("There is no data path") { Ok(()) } else { Err(log) }
    })?;
    ensure!(
        lab.node(1).sh("ls /etc/cni/net.d")?.trim().is_empty(),
        "a conflist though the agent is not ready"
    );
    kubelets[0].stop(&crippled)?;

    let mut pods = Vec::new();
    for kubelet in &kubelets {
        pods.push((kubelet.start("mesh-tunnel", |_| ())?, kubelet.start("mesh-agent", |_| ())?));
    }
    let logs = || {
        let all = kubelets.iter().zip(&pods).flat_map(|(kubelet, (tunnel, agent))| {
            [("mesh-tunnel", tunnel), ("mesh-agent", agent), ("cni-installer", agent)]
                .map(|(name, pod)| format!("{name}: {}", kubelet.log(pod, name)))
        });
        all.collect::<Vec<_>>().join("\n")
    };
    let settled = lab.await_settled(Duration::from_secs(60)).map_err(|error| error.context(logs()));
    settled?;
    runtimes.iter().try_for_each(Containerd::await_ready).with_context(logs)?;

    for number in 1..=2 {
        for (program, numbers) in CAPABILITIES {
            let wanted = numbers.iter().fold(0_u64, |bits, number| bits | (1 << number));
            for (set, bits) in capabilities(&lab, number, program)? {
                let inherited = matches!(set.as_str(), "Inh" | "Amb");
                ensure!(
                    bits == wanted || inherited && bits & !wanted == 0,
                    "{program}: Cap{set} is {bits:x}, wanted {wanted:x}"
                );
            }
        }
        let taints = |node: Value| node["spec"]["taints"].clone();
        eventually(LONG, "the start-up taint is off, and no other", || {
            match taints(lab.api().store().get("nodes", None, &node_name(number)).map_err(|e| e.to_string())?)
            {
                now if now == json!([{"key": "dedicated", "value": "x", "effect": "NoSchedule"}]) => Ok(()),
                now => Err(now.to_string()),
            }
        })?;
        ensure!(lab.node(number).sh("stat -f -c %T /sys/fs/bpf")?.trim() == "bpf_fs");
    }

    let web =
        [runtimes[0].pod("pod-a", "page-a")?, runtimes[1].pod_at("pod-b", "page-b", services::published())?];
    let reaches = |from: usize, to: usize, wanted: bool| -> Result<()> {
        for ip in &web[to].ips {
            let get = format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | /bin/busybox nc -w 2 {ip} 80");
            let answer = runtimes[from].exec(&web[from], &["/bin/busybox", "sh", "-c", &get]);
            let answered = answer.as_ref().is_ok_and(|text| text.contains("page-"));
            ensure!(answered == wanted, "{ip}: {answer:?}");
        }
        Ok(())
    };
    reaches(0, 1, true).with_context(logs)?;
    reaches(1, 0, true)?;
    // Policy is in force with these capabilities, too.
    objects::apply(
        &lab,
        &objects::network_policy("closed", json!({"podSelector": {}, "policyTypes": ["Ingress"]})),
    )?;
    eventually(LONG, "a policy that denies is in force", || {
        reaches(0, 1, false).and_then(|()| reaches(1, 0, false)).map_err(|error| format!("{error:#}"))
    })?;
    objects::delete_policy(&lab, "closed")?;
    // Every agent has to know of it, before one is taken away.
    eventually(LONG, "what the policy denied is open again", || {
        reaches(0, 1, true).and_then(|()| reaches(1, 0, true)).map_err(|error| format!("{error:#}"))
    })?;

    services::every_way(&lab, &runtimes, ("pod-a", &web[0]), ("pod-b", &web[1])).with_context(logs)?;

    // A new agent's pod finds what the former has left in the kernel, and pods go on without it.
    kubelets[1].stop(&pods[1].1)?;
    eventually(LONG, "without an agent pods reach each other", || {
        reaches(0, 1, true).map_err(|error| format!("{error:#}"))
    })?;
    let successor = kubelets[1].start("mesh-agent", |_| ())?;
    eventually(LONG, "its successor is ready", || lab.node(2).ready())
        .with_context(|| kubelets[1].log(&successor, "mesh-agent"))?;
    reaches(1, 0, true)?;
    for (runtime, CriPod { sandbox, .. }) in runtimes.iter().zip(&web) {
        runtime.stop(sandbox)?;
        runtime.remove(sandbox)?;
        ensure!(runtime.attachments().is_empty());
    }
    pods[0].0 = tunnel_replaced(&kubelets[0], &pods[0].0)?;
    for (kubelet, (tunnel, agent)) in kubelets.iter().zip(&pods) {
        kubelet.stop(tunnel)?;
        kubelet.stop(if kubelet.runtime.node == 2 { &successor } else { agent })?;
        taken_off(kubelet)?;
    }
    lab.agents_were_refused_nothing()
}

/// A second tunnel beside the first, as an upgrade starts one: by the manifest's own probe it is ready when it has both devices, and
/// the first is until then, or a DaemonSet would end it with a device that is in use. Which is handed over when is the agent's to say.
fn tunnel_replaced(kubelet: &Kubelet<'_>, first: &DaemonPod) -> Result<DaemonPod> {
    let node = kubelet.lab.node(kubelet.runtime.node);
    let second = kubelet.start("mesh-tunnel", |_| ())?;
    let container = &kubelet.object("DaemonSet", "mesh-tunnel")?["spec"]["template"]["spec"]["containers"][0];
    let asked = |pod: &DaemonPod, probe: &str| {
        let words = container[probe]["exec"]["command"].as_array().ok_or_else(|| format!("no {probe}"))?;
        let words: Vec<&str> = words.iter().filter_map(Value::as_str).collect();
        let container = pod.containers[0].clone();
        let pod = CriPod { sandbox: pod.sandbox.clone(), container, ips: Vec::new() };
        kubelet.runtime.exec(&pod, &words).map_err(|error| format!("{error:#}"))
    };
    let ready = |pod: &DaemonPod| asked(pod, "readinessProbe");
    for device in ["hawser1", "hawser0"] {
        eventually(LONG, "the second tunnel waits", || {
            node.sh(&format!("flock --nonblock --shared /run/wireguard/{device}.next true"))
                .map_or(Ok(()), |_| Err("it is not locked".to_owned()))
        })?;
        let told = ready(&second);
        ensure!(told.as_ref().is_err_and(|why| why.contains("another container serves hawser0")), "{told:?}");
        ready(first).map_err(anyhow::Error::msg)?;
        for pod in [first, &second] {
            asked(pod, "livenessProbe").map_err(anyhow::Error::msg)?;
        }
        node.sh(&format!("rm /run/wireguard/{device}.sock"))?;
        eventually(LONG, "the device was handed over", || {
            let log = kubelet.log(first, "mesh-tunnel");
            let said = |line: &&str| line.contains("handed over") && line.contains(device);
            log.lines().find(said).map(drop).ok_or(log.clone())
        })?;
        ready(first).map_err(anyhow::Error::msg)?;
    }
    eventually(LONG, "the second tunnel is ready", || ready(&second))?;
    kubelet.stop(first)?;
    eventually(LONG, "the agent has programmed it", || node.ready())?;
    Ok(second)
}

/// The DaemonSet that takes Hawser off a node does so with the mounts and capabilities that it has, and its pod stays.
fn taken_off(kubelet: &Kubelet<'_>) -> Result<()> {
    let node = kubelet.lab.node(kubelet.runtime.node);
    let pod = kubelet.start("hawser-uninstall", |_| ())?;
    let looked = eventually(LONG, "a second look finds nothing", || match kubelet.log(&pod, "done") {
        log if log.contains("done: nothing of Hawser is left here") => Ok(()),
        log => Err(log),
    });
    let said = kubelet.log(&pod, "node");
    looked.with_context(|| said.clone())?;
    ensure!(said.contains("removed: programs and maps pinned in /sys/fs/bpf/mesh/v"), "{said}");
    for (command, gone) in [
        ("ip link", "hawser"),
        ("ip route show table all", "proto 202"),
        ("ip -6 route show table all", "proto 202"),
        ("ip rule", "proto 202"),
        ("ip addr show lo", "10.244."),
        ("nft list tables", "hawser"),
        ("ls /sys/fs/bpf", "mesh"),
        ("find /var/lib/hawser /run/hawser -mindepth 1", "/"),
        ("ls /etc/cni/net.d", "hawser"),
        ("ls /opt/cni/bin", "hawser"),
    ] {
        let shown = node.sh(command)?;
        ensure!(!shown.contains(gone), "{command} on {}: {shown}; {said}", node.name);
    }
    let object: Value = kubelet.lab.api().store().get("nodes", None, &node.name)?;
    ensure!(object["metadata"]["annotations"].get("hawser.dev/wireguard").is_none(), "{object}");
    kubelet.stop(&pod)
}
