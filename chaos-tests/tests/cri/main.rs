//! Pods started by a real container runtime (Debian's containerd and runc) through CRI, as a kubelet does, with our
//! plugin: containerd runs inside the namespaces of a lab's node and finds binary and conflist where
//! `hawser-cni install` has put them.

#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use chaos_tests::matrix::{self, Probe, verdict};
use chaos_tests::pod::{NAMESPACE, create_object};
use chaos_tests::{Lab, LabOptions};
use netlab::{CaptureOptions, Output, Process, eventually};
use serde_json::json;
use sha2::{Digest, Sha256};

mod clustermesh;
mod deploy;
mod messages;
mod services;

use messages as m;

/// The only image: sandbox and container alike.
const IMAGE: &str = "lab.local/busybox:1";
/// Where containerd has everything; on the node's own `/run`.
const HOME: &str = "/run/cri";
const SOCKET: &str = "/run/cri/containerd.sock";
const LONG: Duration = Duration::from_secs(30);

/// Program, and Debian's package of it.
const NEEDED: [(&str, &str); 4] = [
    ("/usr/bin/containerd", "containerd"),
    ("/usr/bin/ctr", "containerd"),
    ("/usr/sbin/runc", "runc"),
    ("/bin/busybox", "busybox-static"),
];

/// Everything of containerd that is not as its defaults are. No control over scores of the out-of-memory killer and no
/// overlay: both may be refused where a lab runs.
fn config() -> String {
    format!(
        r#"version = 2
root = "{HOME}/root"
state = "{HOME}/state"
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs", "io.containerd.internal.v1.opt"]
[grpc]
  address = "{SOCKET}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{IMAGE}"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "native"
"#
    )
}

/// A `docker save` archive of one layer with busybox alone. `mark` is in the environment of every process of it, by
/// which a lab finds what a crash left.
///
/// `programs` are put into its root, each with the libraries that it wants.
fn archive(directory: &Path, mark: (&str, &str), programs: &[PathBuf]) -> Result<PathBuf> {
    let tar = |output: &Path, from: &Path| -> Result<()> {
        let status = Command::new("tar").arg("-C").arg(from).arg("-cf").arg(output).arg(".").status()?;
        ensure!(status.success(), "tar: {status}");
        Ok(())
    };
    let (layer, image) = (directory.join("layer"), directory.join("image"));
    for made in [layer.join("bin"), layer.join("tmp"), layer.join("proc"), layer.join("etc"), image.clone()] {
        std::fs::create_dir_all(made)?;
    }
    std::fs::copy("/bin/busybox", layer.join("bin/busybox"))?;
    std::os::unix::fs::symlink("busybox", layer.join("bin/sh"))?;
    for program in programs {
        with_libraries(program, &layer)?;
    }
    tar(&image.join("layer.tar"), &layer)?;
    let digest = Sha256::digest(std::fs::read(image.join("layer.tar"))?);
    let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    let config = json!({
        "architecture": std::env::consts::ARCH.replace("x86_64", "amd64").replace("aarch64", "arm64"), "os": "linux",
        "config": {"Entrypoint": ["/bin/busybox", "sleep", "100000"], "Env": [format!("{}={}", mark.0, mark.1)]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{digest}")]},
    });
    std::fs::write(image.join("config.json"), config.to_string())?;
    let manifest = json!([{"Config": "config.json", "RepoTags": [IMAGE], "Layers": ["layer.tar"]}]);
    std::fs::write(image.join("manifest.json"), manifest.to_string())?;
    let path = directory.join("image.tar");
    tar(&path, &image)?;
    Ok(path)
}

/// Copies a program without what only a debugger reads, and its libraries where it looks for them.
fn with_libraries(program: &Path, root: &Path) -> Result<()> {
    let name = program.file_name().context("a program without a name")?;
    let status = Command::new("strip").arg("-o").arg(root.join(name)).arg(program).status()?;
    ensure!(status.success(), "strip {}: {status}", program.display());
    // Fails for a static one, which needs none.
    let listed = Command::new("ldd").arg(program).output()?;
    let text = String::from_utf8_lossy(&listed.stdout).into_owned();
    for library in text.split_whitespace().filter(|word| word.starts_with('/')) {
        let place = root.join(library.trim_start_matches('/'));
        std::fs::create_dir_all(place.parent().context("a library without a folder")?)?;
        std::fs::copy(library, place)?;
    }
    Ok(())
}

/// containerd on a node. Dropping it ends its pods.
struct Containerd<'a> {
    lab: &'a Lab,
    node: u8,
    /// Parent of its pods' control groups, of our own so that it can be removed.
    cgroup: String,
    runtime: tokio::runtime::Runtime,
    channel: tonic::transport::Channel,
    _process: Process,
}

impl<'a> Containerd<'a> {
    fn start(lab: &'a Lab, node: u8, archive: &Path) -> Result<Self> {
        let host = lab.node(node);
        host.sh(&format!("mkdir -p {HOME}"))?;
        host.write_file(&format!("{HOME}/config.toml"), &config())?;
        // The node's /run covers the lab's directory.
        let image = std::fs::read(archive)?;
        host.namespace.run(move || std::fs::write(format!("{HOME}/image.tar"), image))?;
        let mut command = Command::new("containerd");
        command.args(["--config", &format!("{HOME}/config.toml")]);
        let log = lab.log_path(node, "containerd");
        let process = host.namespace.spawn(command, Output::File(log.clone()))?;
        let import = format!("ctr -a {SOCKET} -n k8s.io images import --no-unpack {HOME}/image.tar");
        let begun = Instant::now();
        let said = || std::fs::read_to_string(&log).unwrap_or_default();
        eventually(LONG, "containerd takes the image", || {
            host.sh(&import).map_err(|error| format!("{error:#}\n{}", said()))
        })?;
        eprintln!("containerd on {} takes images after {:?}", host.name, begun.elapsed());
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        // The socket lies in the node's mount namespace.
        let path = host.namespace.root().join(SOCKET.trim_start_matches('/'));
        let connect = tower::service_fn(move |_| {
            let path = path.clone();
            async move { tokio::net::UnixStream::connect(path).await.map(hyper_util::rt::TokioIo::new) }
        });
        let endpoint =
            tonic::transport::Endpoint::from_static("http://containerd").timeout(Duration::from_secs(60));
        let channel = runtime.block_on(endpoint.connect_with_connector(connect))?;
        Ok(Self {
            lab,
            node,
            cgroup: format!("/{}", netlab::unique_name("hawser-cri")),
            runtime,
            channel,
            _process: process,
        })
    }

    /// Takes one more image.
    fn import(&self, image: &[u8]) -> Result<()> {
        let (host, image) = (self.lab.node(self.node), image.to_owned());
        host.namespace.run(move || std::fs::write(format!("{HOME}/more.tar"), image))?;
        host.sh(&format!("ctr -a {SOCKET} -n k8s.io images import --no-unpack {HOME}/more.tar")).map(drop)
    }

    fn call<Q, A>(&self, service: &str, method: &str, question: Q) -> Result<A>
    where
        Q: prost::Message + Send + Sync + 'static,
        A: prost::Message + Default + Send + Sync + 'static,
    {
        let path: http::uri::PathAndQuery = format!("/runtime.v1.{service}Service/{method}").parse()?;
        let mut client = tonic::client::Grpc::new(self.channel.clone());
        let answer = self.runtime.block_on(async {
            client.ready().await?;
            let codec = tonic_prost::ProstCodec::<Q, A>::default();
            client.unary(tonic::Request::new(question), path, codec).await.map_err(anyhow::Error::from)
        });
        Ok(answer.with_context(|| format!("{method} on node-{}", self.node))?.into_inner())
    }

    fn ask<Q, A>(&self, method: &str, question: Q) -> Result<A>
    where
        Q: prost::Message + Send + Sync + 'static,
        A: prost::Message + Default + Send + Sync + 'static,
    {
        self.call("Runtime", method, question)
    }

    /// As a kubelet waits before it starts pods.
    fn await_ready(&self) -> Result<()> {
        let image = m::ImageQuery { image: Some(m::Image { image: IMAGE.to_owned() }) };
        let ready = || -> Result<()> {
            let status: m::Status = self.ask("Status", m::Empty {})?;
            let conditions = status.status.context("no status")?.conditions;
            for kind in ["RuntimeReady", "NetworkReady"] {
                let condition = conditions.iter().find(|condition| condition.kind == kind).context(kind)?;
                ensure!(condition.status, "{condition:?}");
            }
            let found: m::ImageAnswer = self.call("Image", "ImageStatus", image.clone())?;
            found.image.context("the image is not known to CRI yet").map(drop)
        };
        Ok(eventually(LONG, "the runtime is ready", || ready().map_err(|error| format!("{error:#}")))?)
    }

    /// A pod with one container that serves `page` by HTTP.
    fn pod(&self, name: &str, page: &str) -> Result<CriPod> {
        self.pod_at(name, page, Vec::new())
    }

    /// The same, which ports of the node lead to.
    fn pod_at(&self, name: &str, page: &str, ports: Vec<m::PortMapping>) -> Result<CriPod> {
        let uid = create_object(self.lab, self.node, name, &json!({}))?;
        let metadata =
            m::Metadata { name: name.to_owned(), uid, namespace: NAMESPACE.to_owned(), attempt: 0 };
        let config = m::SandboxConfig {
            metadata: Some(metadata.clone()),
            hostname: name.to_owned(),
            ports,
            annotations: HashMap::from([("lab".to_owned(), "yes".to_owned())]),
            linux: Some(m::Linux { cgroup_parent: self.cgroup.clone(), security: None }),
            ..m::SandboxConfig::default()
        };
        let begun = Instant::now();
        let sandbox: m::Id = self.ask("RunPodSandbox", m::RunSandbox { config: Some(config.clone()) })?;
        let script = format!("echo {page} > /tmp/index.html; exec /bin/busybox httpd -f -p 80 -h /tmp");
        let container = m::ContainerConfig {
            metadata: Some(m::ContainerName { name: "web".to_owned() }),
            image: Some(m::Image { image: IMAGE.to_owned() }),
            command: ["/bin/busybox", "sh", "-c", &script].map(str::to_owned).to_vec(),
            linux: Some(m::ContainerLinux::default()),
            ..m::ContainerConfig::default()
        };
        let create = m::CreateContainer {
            sandbox: sandbox.id.clone(),
            config: Some(container),
            sandbox_config: Some(config),
        };
        let container: m::Id = self.ask("CreateContainer", create)?;
        let _: m::Empty = self.ask("StartContainer", container.clone())?;
        eprintln!("{name} runs after {:?}", begun.elapsed());
        let ips = self.ips(&sandbox, &metadata)?;
        Ok(CriPod { sandbox: sandbox.id, container: container.id, ips })
    }

    /// Addresses of a sandbox that is ready.
    fn ips(&self, sandbox: &m::Id, metadata: &m::Metadata) -> Result<Vec<IpAddr>> {
        let status: m::SandboxStatus = self.ask("PodSandboxStatus", sandbox.clone())?;
        let status = status.status.context("no status of the sandbox")?;
        ensure!(status.state == 0, "{} is not ready: {status:?}", metadata.name);
        ensure!(status.metadata.as_ref() == Some(metadata), "{status:?}");
        let network = status.network.context("no network")?;
        let all = std::iter::once(network.ip).chain(network.additional.into_iter().map(|ip| ip.ip));
        all.map(|ip| Ok(ip.parse()?)).collect()
    }

    fn exec(&self, pod: &CriPod, command: &[&str]) -> Result<String> {
        let command: Vec<String> = command.iter().map(|word| (*word).to_owned()).collect();
        let text = command.join(" ");
        let exec = m::Exec { container: pod.container.clone(), command, timeout: 20 };
        let done: m::Executed = self.ask("ExecSync", exec)?;
        let (out, err) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
        if done.code != 0 {
            bail!("{text}: code {}: {out}{err}", done.code);
        }
        Ok(out.into_owned())
    }

    fn sandboxes(&self) -> Result<Vec<m::Id>> {
        let listed: m::ListedSandboxes = self.ask("ListPodSandbox", m::Empty {})?;
        Ok(listed.items)
    }

    fn stop(&self, sandbox: &str) -> Result<()> {
        let _: m::Empty = self.ask("StopPodSandbox", m::Id { id: sandbox.to_owned() })?;
        Ok(())
    }

    fn remove(&self, sandbox: &str) -> Result<()> {
        let _: m::Empty = self.ask("RemovePodSandbox", m::Id { id: sandbox.to_owned() })?;
        Ok(())
    }

    fn attachments(&self) -> BTreeSet<String> {
        self.lab.node(self.node).namespace.run(|| {
            let entries = std::fs::read_dir("/var/lib/hawser/attachments").into_iter().flatten().flatten();
            let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
            names.filter(|name| name.ends_with(".json")).collect()
        })
    }
}

impl Drop for Containerd<'_> {
    fn drop(&mut self) {
        // Containers live in namespaces of their own, which do not end with the node's.
        for sandbox in self.sandboxes().unwrap_or_default() {
            if let Err(error) = self.stop(&sandbox.id).and_then(|()| self.remove(&sandbox.id)) {
                eprintln!("sandbox {} stays behind: {error:#}", sandbox.id);
            }
        }
        // One below each hierarchy of version 1, or one in all of version 2.
        let roots =
            std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|entry| entry.path());
        for root in roots.chain([PathBuf::from("/sys/fs/cgroup")]) {
            let group = root.join(self.cgroup.trim_start_matches('/'));
            if group.is_dir()
                && let Err(error) = std::fs::remove_dir(&group)
            {
                eprintln!("{} stays behind: {error}", group.display());
            }
        }
    }
}

#[derive(Debug)]
struct CriPod {
    sandbox: String,
    container: String,
    ips: Vec<IpAddr>,
}

#[test]
fn containerd_starts_pods_that_reach_each_other_through_the_mesh_and_leave_nothing() -> Result<()> {
    for (program, package) in NEEDED {
        ensure!(Path::new(program).exists(), "{program} is missing: apt-get install {package}");
    }
    let work = tempfile::tempdir()?;
    let lab = Lab::up(LabOptions::new(netlab::unique_name("cri")).nodes(2))?;
    let archive = archive(work.path(), lab.dir.mark(), &[])?;
    lab.await_settled(Duration::from_secs(60))?;
    let nodes = [Containerd::start(&lab, 1, &archive)?, Containerd::start(&lab, 2, &archive)?];
    nodes.iter().try_for_each(Containerd::await_ready)?;
    let capture = lab.switch.capture(CaptureOptions::default())?;

    // One canary per pod, in its page; the letters that a random number has in hexadecimal.
    let canaries: Vec<String> = (0..2)
        .map(|_| matrix::canary().iter().take(32).map(|byte| format!("{byte:02x}")).collect())
        .collect();
    let pods = [nodes[0].pod("pod-a", &canaries[0])?, nodes[1].pod("pod-b", &canaries[1])?];
    let mut probes = Vec::new();
    for (from, to) in [(0, 1), (1, 0)] {
        let (node, pod, target) = (&nodes[from], &pods[from], &pods[to]);
        assert_eq!(target.ips.len(), 2, "both families: {target:?}");
        let announced = lab.api().store().find("pods", Some(NAMESPACE), ["pod-a", "pod-b"][to]);
        let announced = announced.context("the pod")?["metadata"]["annotations"]["hawser.dev/ips"].clone();
        assert_eq!(announced, target.ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(","));
        assert_eq!(node.attachments().len(), 1);
        for ip in &target.ips {
            let (address, family) = (ip.to_string(), if ip.is_ipv4() { "v4" } else { "v6" });
            let ping = if ip.is_ipv4() { "ping" } else { "ping6" };
            let pinged = node.exec(pod, &["/bin/busybox", ping, "-c", "3", "-W", "2", &address])?;
            assert!(pinged.contains(" 0% packet loss"), "{pinged}");
            // Not wget: in a static busybox it needs the name service of a whole system.
            let get =
                format!("printf 'GET /index.html HTTP/1.0\\r\\n\\r\\n' | /bin/busybox nc -w 10 {address} 80");
            let page = node.exec(pod, &["/bin/busybox", "sh", "-c", &get])?;
            assert_eq!(page.lines().last(), Some(canaries[to].as_str()), "{page}");
            probes.push(Probe {
                from: format!("node-{}", node.node),
                to: format!("pod on {family}"),
                protocol: "http",
                family,
                error: None,
                canary: canaries[to].clone().into_bytes(),
            });
        }
    }
    let verdict = verdict(&lab, &capture, &probes)?;
    eprintln!("{} frames between the nodes: {:?}", verdict.frames, verdict.classes);
    assert!(verdict.is_clean(), "{verdict:#?}");
    assert!(verdict.frames > 0);

    for (node, pod) in nodes.iter().zip(&pods) {
        // StopPodSandbox calls DEL with everything, RemovePodSandbox again with nothing.
        node.stop(&pod.sandbox)?;
        assert_eq!(node.attachments(), BTreeSet::new());
        node.remove(&pod.sandbox)?;
        assert_eq!(node.sandboxes()?, []);
        let links = lab.node(node.node).sh("ip -o link")?;
        assert!(!links.lines().any(|line| line.contains(": hw") && line.contains("@if")), "{links}");
    }

    // What the plugin refuses, and why, reaches the kubelet.
    let unknown = nodes[0].ask::<_, m::Id>(
        "RunPodSandbox",
        m::RunSandbox {
            config: Some(m::SandboxConfig {
                metadata: Some(m::Metadata {
                    name: "nobody".to_owned(),
                    uid: "0b5d3a4e-0000-4000-8000-00000000000f".to_owned(),
                    namespace: NAMESPACE.to_owned(),
                    attempt: 0,
                }),
                linux: Some(m::Linux { cgroup_parent: nodes[0].cgroup.clone(), security: None }),
                ..m::SandboxConfig::default()
            }),
        },
    );
    let refusal = format!("{:#}", unknown.expect_err("a pod that the API does not know"));
    assert!(refusal.contains("default/nobody") && refusal.contains("is not known"), "{refusal}");
    assert_eq!(nodes[0].attachments(), BTreeSet::new());
    Ok(())
}
