//! A node: namespaces, its files, and the processes under test.

use std::io::Read as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use netlab::{LabDir, Namespace, Output, PortId, Process};

use crate::binaries::Binaries;
use crate::cluster::{Lab, log_path, node_name};

/// Seconds that a command on a node may take.
const COMMAND: u64 = 30;

/// A node with its processes.
#[derive(Debug)]
pub struct Node {
    /// 1 and up.
    pub number: u8,
    /// `node-N`.
    pub name: String,
    /// Its port on the switch.
    pub port: PortId,
    agent: Option<Process>,
    tunnel: Option<Process>,
    /// A second one, that waits for the devices of the first.
    next_tunnel: Option<Process>,
    /// After the processes, so that they end first.
    pub namespace: Namespace,
    drift_interval: u64,
    kernel_wireguard: bool,
    binaries: Binaries,
    dir: LabDir,
    /// Where its data path is pinned: nodes may share one BPF file system.
    pins: PathBuf,
}

impl Drop for Node {
    fn drop(&mut self) {
        // Its programs first: the agent would pin anew.
        drop((self.agent.take(), self.tunnel.take(), self.next_tunnel.take()));
        let pins = self.pins.clone();
        let removed = self.namespace.run(move || match std::fs::remove_dir_all(&pins) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(anyhow!("{}: {error}", pins.display()))
            }
            Ok(()) | Err(_) => Ok(()),
        });
        if let Err(error) = removed {
            tracing::warn!(node = self.name, %error, "could not remove the pins of a node's data path");
        }
    }
}

/// A peer, as `wg show all dump` prints it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WgPeer {
    /// The device.
    pub device: String,
    /// The peer's key.
    pub public_key: String,
    /// Where it is.
    pub endpoint: String,
    /// Its prefixes.
    pub allowed_ips: String,
    /// Seconds since 1970, 0 for never.
    pub latest_handshake: u64,
    /// Bytes received.
    pub received: u64,
    /// Bytes sent.
    pub sent: u64,
    /// Persistent keepalive in seconds.
    pub keepalive: Option<u16>,
}

/// How many programs are on a node's links by which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attached {
    /// By links of the BPF kind, which are pinned.
    pub tcx: usize,
    /// By filters, as `tc` shows them.
    pub clsact: usize,
}

impl std::fmt::Display for Attached {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} programs by tcx, {} by clsact", self.tcx, self.clsact)
    }
}

impl Node {
    pub(crate) fn start(lab: &Lab, number: u8, kubeconfig: &str) -> Result<Self> {
        let name = node_name(number);
        let disk = lab.disk_of(number);
        std::fs::create_dir_all(&disk)?;
        let namespace = Namespace::builder(name.as_str())
            .lab(&lab.dir)
            // Before /run is covered, since the disk lies there.
            .bind(disk, "/var/lib/hawser")
            .tmpfs("/run")
            .tmpfs("/etc/hawser")
            .tmpfs("/etc/cni")
            .tmpfs("/opt/cni")
            // Results that a runtime remembers.
            .tmpfs("/var/lib/cni")
            .build()?;
        let port = lab.attach_node(&namespace, number)?;
        let mut node = Self {
            number,
            name,
            port,
            agent: None,
            tunnel: None,
            next_tunnel: None,
            namespace,
            drift_interval: lab.options.drift_interval,
            kernel_wireguard: lab.options.kernel_wireguard,
            binaries: lab.binaries.clone(),
            dir: lab.dir.clone(),
            pins: pins(lab.dir.path(), number),
        };
        if lab.options.bare {
            return Ok(node);
        }
        node.install(&config(lab), kubeconfig)?;
        Ok(node)
    }

    /// Puts Hawser onto this node, as a lab does that is not bare.
    ///
    /// # Errors
    /// A file cannot be written, or a program not be started.
    pub(crate) fn install(&mut self, config: &str, kubeconfig: &str) -> Result<()> {
        self.write_file("/etc/hawser/config.yaml", config)?;
        self.write_file("/etc/hawser/kubeconfig", kubeconfig)?;
        if !self.kernel_wireguard {
            self.start_tunnel()?;
        }
        self.start_agent()?;
        self.install_cni()
    }

    /// Runs `mesh-agent uninstall` with the agent's own flags and these; whether it succeeded, and what it said.
    ///
    /// # Errors
    /// It cannot be run, or does not end.
    pub fn uninstall(&self, flags: &[&str]) -> Result<(bool, String)> {
        let mut command = Command::new(&self.binaries.agent);
        command.args(["uninstall", "--kubeconfig", "/etc/hawser/kubeconfig", "--node-name", &self.name]);
        command.arg("--bpf-pin-dir").arg(&self.pins).args(flags).env("NO_COLOR", "1");
        let output = self.namespace.exec(command, Duration::from_secs(COMMAND) * netlab::slowness())?;
        Ok((output.status.success(), output.stdout_text() + &output.stderr_text()))
    }

    /// Runs `hawser-cni uninstall`; what it said.
    ///
    /// # Errors
    /// It failed.
    pub fn uninstall_cni(&self) -> Result<String> {
        let mut command = Command::new(&self.binaries.cni);
        command.arg("uninstall");
        self.run(command)
    }

    /// Where the data path of this node is pinned.
    pub fn pins(&self) -> &Path {
        &self.pins
    }

    /// Writes a file of this node, mode 0600.
    ///
    /// # Errors
    /// As the file system says.
    pub fn write_file(&self, path: &str, text: &str) -> Result<()> {
        let (path, text) = (PathBuf::from(path), text.to_owned());
        self.namespace.run(move || write_private(&path, &text)).with_context(|| format!("on {}", self.name))
    }

    /// Starts `mesh-tunnel`.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start_tunnel(&mut self) -> Result<()> {
        let mut command = Command::new(&self.binaries.tunnel);
        command.args(["hawser0", "hawser1"]);
        self.tunnel = Some(self.spawn(command, "mesh-tunnel")?);
        Ok(())
    }

    /// Starts a second `mesh-tunnel` beside the first, as a DaemonSet with a surge does.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start_next_tunnel(&mut self) -> Result<()> {
        let mut command = Command::new(&self.binaries.tunnel);
        command.args(["hawser0", "hawser1"]);
        self.start_next_tunnel_as(command)
    }

    /// [`Node::start_next_tunnel`] of a release that is another program.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start_next_tunnel_as(&mut self, command: Command) -> Result<()> {
        self.next_tunnel = Some(self.spawn(command, "mesh-tunnel-next")?);
        Ok(())
    }

    /// The second `mesh-tunnel`, if there is one.
    pub const fn next_tunnel(&self) -> Option<&Process> {
        self.next_tunnel.as_ref()
    }

    /// SIGTERM to the first `mesh-tunnel`, and its end awaited; the second one is the first from now on.
    ///
    /// # Errors
    /// One of them is not running, or the first does not end.
    pub fn retire_tunnel(&mut self) -> Result<()> {
        let next = self.next_tunnel.take().context("no second tunnel is running")?;
        self.stop_tunnel()?;
        self.tunnel = Some(next);
        Ok(())
    }

    /// The process that serves the socket of a slot's device.
    ///
    /// # Errors
    /// Nobody does.
    pub fn serves(&self, device: &str) -> Result<i32> {
        let path = format!("/var/run/wireguard/{device}.sock");
        self.namespace.run(move || {
            let stream = std::os::unix::net::UnixStream::connect(&path).context(path)?;
            Ok(nix::sys::socket::getsockopt(&stream, nix::sys::socket::sockopt::PeerCredentials)?.pid())
        })
    }

    /// Starts `mesh-agent`.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start_agent(&mut self) -> Result<()> {
        self.start_agent_with(&[])
    }

    /// [`Node::start_agent`], with more in its environment.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start_agent_with(&mut self, environment: &[(&str, &Path)]) -> Result<()> {
        let mut command = Command::new(&self.binaries.agent);
        command
            .args(["--kubeconfig", "/etc/hawser/kubeconfig", "--node-name", &self.name])
            .args(["--drift-interval", &self.drift_interval.to_string()])
            .arg("--bpf-pin-dir")
            .arg(&self.pins)
            .env("NO_COLOR", "1")
            .envs(environment.iter().copied());
        self.agent = Some(self.spawn(command, "mesh-agent")?);
        Ok(())
    }

    fn spawn(&self, command: Command, program: &str) -> Result<Process> {
        let log = log_path(self.dir.path(), self.number, program);
        self.namespace
            .spawn(command, Output::File(log))
            .with_context(|| format!("{program} on {}", self.name))
    }

    fn install_cni(&self) -> Result<()> {
        let mut command = Command::new(&self.binaries.cni);
        command.arg("install");
        self.run(command)?;
        Ok(())
    }

    /// `mesh-agent`, if it was started.
    pub const fn agent(&self) -> Option<&Process> {
        self.agent.as_ref()
    }

    /// `mesh-tunnel`, if it was started.
    pub const fn tunnel(&self) -> Option<&Process> {
        self.tunnel.as_ref()
    }

    /// SIGKILL to the agent.
    ///
    /// # Errors
    /// It is not running.
    pub fn kill_agent(&mut self) -> Result<()> {
        self.agent.take().context("no agent is running")?.kill()?;
        Ok(())
    }

    /// SIGTERM to the agent, and its end awaited.
    ///
    /// # Errors
    /// It is not running, or does not end.
    pub fn stop_agent(&mut self) -> Result<()> {
        let status = self.agent.take().context("no agent is running")?.stop(Duration::from_secs(10))?;
        if !status.success() {
            bail!("mesh-agent on {} ended with {status}", self.name);
        }
        Ok(())
    }

    /// SIGTERM to the tunnel, and its end awaited.
    ///
    /// # Errors
    /// It is not running, or does not end.
    pub fn stop_tunnel(&mut self) -> Result<()> {
        let status = self.tunnel.take().context("no tunnel is running")?.stop(Duration::from_secs(10))?;
        if !status.success() {
            bail!("mesh-tunnel on {} ended with {status}", self.name);
        }
        Ok(())
    }

    /// SIGKILL to the tunnel.
    ///
    /// # Errors
    /// It is not running.
    pub fn kill_tunnel(&mut self) -> Result<()> {
        self.tunnel.take().context("no tunnel is running")?.kill()?;
        Ok(())
    }

    /// Starts again what has ended, as a kubelet would. Names what was started.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn supervise(&mut self) -> Result<Vec<&'static str>> {
        let ended = |process: &Option<Process>| match process {
            Some(process) => process.try_wait().is_ok_and(|status| status.is_some()),
            None => true,
        };
        let mut started = Vec::new();
        if ended(&self.tunnel) {
            self.start_tunnel()?;
            started.push("mesh-tunnel");
        }
        if ended(&self.agent) {
            self.start_agent()?;
            started.push("mesh-agent");
        }
        Ok(started)
    }

    /// Runs a command on this node; its output if it succeeds.
    ///
    /// # Errors
    /// It fails, or takes longer than half a minute times [`netlab::slowness`]; the error has its output.
    pub fn run(&self, command: Command) -> Result<String> {
        let text = format!("{command:?}");
        let output = self.namespace.exec(command, Duration::from_secs(COMMAND) * netlab::slowness())?;
        if !output.status.success() {
            bail!(
                "{text} on {}: {}: {}{}",
                self.name,
                output.status,
                output.stdout_text(),
                output.stderr_text()
            );
        }
        Ok(output.stdout_text())
    }

    /// Runs a command given as words.
    ///
    /// # Errors
    /// As [`Node::run`].
    pub fn sh(&self, words: &str) -> Result<String> {
        let mut words = words.split_whitespace();
        let mut command = Command::new(words.next().context("no command")?);
        command.args(words);
        self.run(command)
    }

    /// The body of `http://127.0.0.1:<port><path>` on this node, if its status is 200.
    ///
    /// # Errors
    /// No answer, or another status, with its body.
    pub fn http(&self, port: u16, path: &str) -> Result<String> {
        let path = path.to_owned();
        self.namespace.run(move || http_get(port, &path))
    }

    /// Is the agent ready to connect pods, and its tunnel there?
    ///
    /// # Errors
    /// Why not.
    pub fn ready(&self) -> Result<(), String> {
        let answer = self.http(mesh_core::numbers::PORT_HEALTH, "/readyz");
        answer.map(|_| ()).map_err(|error| format!("{}: {error:#}", self.name))
    }

    /// One sample of `/metrics`, by its line's beginning.
    ///
    /// # Errors
    /// No answer.
    pub fn metric(&self, beginning: &str) -> Result<f64> {
        let text = self.http(mesh_core::numbers::PORT_METRICS, "/metrics")?;
        let line = text.lines().find(|line| line.starts_with(beginning));
        let value = line.and_then(|line| line.rsplit(' ').next()).map_or(Ok(0.0), str::parse);
        value.with_context(|| format!("{beginning} on {}", self.name))
    }

    /// What the tunnel and the data path of this node have dropped since they are there, by reason; for the text of a failure.
    pub fn dropped(&self) -> String {
        let read = |device: &'static str| -> Result<String> {
            let path = format!("/var/run/wireguard/{device}.stats");
            let text = self.namespace.run(move || -> Result<String> {
                let mut text = String::new();
                std::os::unix::net::UnixStream::connect(&path)?.read_to_string(&mut text)?;
                Ok(text)
            })?;
            let stats: serde_json::Value = serde_json::from_str(&text)?;
            let drops = stats["drops"].as_object().into_iter().flatten();
            let some = drops.filter(|(_, count)| count.as_u64() != Some(0));
            Ok(some
                .map(|(reason, count)| format!("{device} {reason} {count}"))
                .collect::<Vec<_>>()
                .join(", "))
        };
        let tunnel = ["hawser0", "hawser1"]
            .map(|device| read(device).unwrap_or_else(|error| format!("{device}: {error:#}")));
        let metrics = self.http(mesh_core::numbers::PORT_METRICS, "/metrics").unwrap_or_default();
        let counted = |line: &&str| {
            ["drop", "refused"].iter().any(|word| line.contains(word))
                && !line.starts_with('#')
                && !line.ends_with(" 0")
        };
        let data_path: Vec<&str> = metrics.lines().filter(counted).collect();
        format!("{}: {}; {}", self.name, tunnel.join("; "), data_path.join(", "))
    }

    /// Peers of both slots, from `wg show all dump`.
    ///
    /// # Errors
    /// `wg` failed.
    pub fn peers(&self) -> Result<Vec<WgPeer>> {
        let dump = self.sh("wg show all dump")?;
        let peer = |line: &str| {
            let field: Vec<&str> = line.split('\t').collect();
            // A device has five fields, a peer nine.
            (field.len() == 9).then(|| WgPeer {
                device: field[0].to_owned(),
                public_key: field[1].to_owned(),
                endpoint: field[3].to_owned(),
                allowed_ips: field[4].to_owned(),
                latest_handshake: field[5].parse().unwrap_or(0),
                received: field[6].parse().unwrap_or(0),
                sent: field[7].parse().unwrap_or(0),
                keepalive: field[8].parse().ok(),
            })
        };
        Ok(dump.lines().filter_map(peer).collect())
    }

    /// Names of the data path's pinned links on one of its devices, `<kind>-<ifindex>-<hook>` each.
    ///
    /// # Errors
    /// There is no such device, or the pins cannot be listed.
    pub fn pinned_on(&self, device: &str) -> Result<Vec<String>> {
        let (device, pins) = (device.to_owned(), self.pins.clone());
        self.namespace.run(move || {
            let index = std::fs::read_to_string(format!("/sys/class/net/{device}/ifindex"))
                .with_context(|| device.clone())?;
            let index = format!("-{}-", index.trim());
            let mut names = Vec::new();
            // One directory for each version of the layout.
            for version in std::fs::read_dir(&pins)? {
                let Ok(links) = std::fs::read_dir(version?.path().join("links")) else { continue };
                for link in links {
                    names.push(link?.file_name().to_string_lossy().into_owned());
                }
            }
            names.retain(|name| name.contains(&index));
            Ok(names)
        })
    }

    /// How the data path's programs are on this node's links.
    ///
    /// # Errors
    /// Links cannot be listed, or `tc` failed.
    pub fn attached(&self) -> Result<Attached> {
        let pins = self.pins.clone();
        let tcx = self.namespace.run(move || pinned_links(&pins))?;
        let mut clsact = 0;
        for link in self.sh("ip -brief link show")?.lines() {
            let name = link.split([' ', '@']).next().context("a link without a name")?;
            for hook in ["ingress", "egress"] {
                clsact += self.sh(&format!("tc filter show dev {name} {hook}"))?.matches("hawser:").count();
            }
        }
        Ok(Attached { tcx, clsact })
    }

    /// The log of one of its programs.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn log(&self, program: &str) -> Result<String> {
        let path = log_path(self.dir.path(), self.number, program);
        std::fs::read_to_string(&path).map_err(|error| anyhow!("{}: {error}", path.display()))
    }

    /// Its addresses on the switch.
    ///
    /// # Errors
    /// Netlink failed.
    pub fn addresses(&self) -> Result<Vec<IpAddr>> {
        let all = self.namespace.netlink(async |nl| nl.addrs("eth0").await)?;
        let global = |ip: &IpAddr| mesh_core::prefix::is_unicast(*ip);
        Ok(all.iter().map(ipnet::IpNet::addr).filter(global).collect())
    }
}

/// The agent's configuration on every node of a lab.
pub(crate) fn config(lab: &Lab) -> String {
    let cidrs = lab.cluster_cidrs().iter().map(|cidr| format!("'{cidr}'")).collect::<Vec<_>>().join(", ");
    let engine = if lab.options.kernel_wireguard { "kernel" } else { "userspace" };
    let name = lab.cluster_name();
    // Else a ServiceCIDR says it.
    let services = if lab.options.allocates_services {
        ""
    } else {
        "serviceCIDRs: ['10.96.0.0/16', 'fd00:10:96::/112']\n"
    };
    format!("clusterName: {name}\npodCIDRs: [{cidrs}]\n{services}wireguard: {engine}\n{}", lab.options.config)
}

/// One for each node of each lab.
fn pins(lab: &Path, number: u8) -> PathBuf {
    let lab = lab.to_string_lossy().replace('/', "-");
    PathBuf::from(format!("/sys/fs/bpf/hawser{lab}-{number}"))
}

/// Pins in `links` of each layout.
fn pinned_links(pins: &Path) -> Result<usize> {
    let mut count = 0;
    for layout in std::fs::read_dir(pins).with_context(|| pins.display().to_string())? {
        let links = layout?.path().join("links");
        count += std::fs::read_dir(&links).with_context(|| links.display().to_string())?.count();
    }
    Ok(count)
}

fn write_private(path: &Path, text: &str) -> Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    path.parent().map_or(Ok(()), std::fs::create_dir_all)?;
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(path)?;
    Ok(file.write_all(text.as_bytes())?)
}

pub(crate) fn http_get(port: u16, path: &str) -> Result<String> {
    use std::io::{Read, Write};
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], port));
    let mut stream = std::net::TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
    if head.split(' ').nth(1) != Some("200") {
        bail!("{}", body.trim());
    }
    Ok(body.to_owned())
}
