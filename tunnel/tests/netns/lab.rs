//! Namespaces, links and processes for the tests. Everything dies with the thread that made it.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use boringtun::x25519;
use nix::sched::{CloneFlags, setns, unshare};

use crate::{HELPERS, THREADS};

/// Polls until the probe says yes; panics after the deadline.
pub(crate) fn eventually(what: &str, deadline: Duration, mut probe: impl FnMut() -> bool) {
    let end = Instant::now() + deadline;
    while !probe() {
        assert!(Instant::now() < end, "not within {deadline:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A process that is killed, by PID, when dropped.
pub(crate) struct Proc(pub(crate) Child);

impl Proc {
    pub(crate) fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(self.0.id().try_into().unwrap());
        nix::sys::signal::kill(pid, signal).unwrap();
    }
}

impl Drop for Proc {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A network and mount namespace of its own, with a private /run/wireguard.
pub(crate) struct Ns {
    holder: Proc,
}

impl Ns {
    pub(crate) fn new() -> Self {
        assert!(
            nix::unistd::geteuid().is_root(),
            "these tests make namespaces and TUN devices: run them as root"
        );
        let script = "mkdir -p /run/wireguard && mount -t tmpfs tmpfs /run/wireguard && ip link set lo up \
                      && echo ready && exec sleep infinity";
        let mut child = Command::new("setpriv")
            .args([
                "--pdeathsig",
                "KILL",
                "unshare",
                "--net",
                "--mount",
                "--propagation",
                "private",
                "sh",
                "-c",
                script,
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("setpriv and unshare (package util-linux) are needed");
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let ns = Self { holder: Proc(child) };
        assert_eq!(line, "ready\n", "the namespace could not be set up");
        assert_ne!(
            std::fs::read_link(ns.proc("ns/net")).unwrap(),
            std::fs::read_link("/proc/self/ns/net").unwrap(),
            "isolation is off"
        );
        ns
    }

    pub(crate) fn pid(&self) -> u32 {
        self.holder.0.id()
    }

    pub(crate) fn proc(&self, rest: &str) -> PathBuf {
        format!("/proc/{}/{rest}", self.pid()).into()
    }

    pub(crate) fn command(&self, line: &str) -> Command {
        let mut c = Command::new("setpriv");
        c.args(["--pdeathsig", "KILL", "nsenter", "-t", &self.pid().to_string(), "-n", "-m", "--"]);
        c.args(line.split_whitespace());
        c
    }

    /// Runs a command and returns what it printed; panics if it fails.
    pub(crate) fn run(&self, line: &str) -> String {
        let out = self.command(line).output().unwrap();
        let stderr = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "{line}: {}{stderr}", String::from_utf8_lossy(&out.stdout));
        String::from_utf8(out.stdout).unwrap()
    }

    pub(crate) fn run_with_input(&self, line: &str, input: &str) -> String {
        let mut c = self.command(line);
        let mut child =
            c.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let out = child.wait_with_output().unwrap();
        assert!(out.status.success(), "{line}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    }

    /// Runs a closure on a thread that lives in this namespace, network and mounts.
    pub(crate) fn enter<T: Send + 'static>(&self, f: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        let net = std::fs::File::open(self.proc("ns/net")).unwrap();
        let mnt = std::fs::File::open(self.proc("ns/mnt")).unwrap();
        std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_FS).unwrap();
            setns(net, CloneFlags::CLONE_NEWNET).unwrap();
            setns(mnt, CloneFlags::CLONE_NEWNS).unwrap();
            f()
        })
    }

    pub(crate) fn within<T: Send + 'static>(&self, f: impl FnOnce() -> T + Send + 'static) -> T {
        self.enter(f).join().unwrap()
    }

    pub(crate) fn udp(&self, at: SocketAddr) -> UdpSocket {
        self.within(move || UdpSocket::bind(at).unwrap_or_else(|e| panic!("bind {at}: {e}")))
    }

    pub(crate) fn loses_nothing(&self, to: &str, count: u32) -> bool {
        let out = self.command(&format!("ping -q -c {count} -i 0.02 -W 1 {to}")).output().unwrap();
        String::from_utf8_lossy(&out.stdout).contains(" 0% packet loss")
    }

    pub(crate) fn reaches(&self, to: &str) {
        eventually(&format!("ping {to}"), Duration::from_secs(10), || self.loses_nothing(to, 2));
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

pub(crate) fn base64(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

#[derive(Clone)]
pub(crate) struct Keys {
    pub(crate) private: [u8; 32],
    pub(crate) public: [u8; 32],
}

impl Keys {
    pub(crate) fn new() -> Self {
        let mut private = [0; 32];
        std::fs::File::open("/dev/urandom").unwrap().read_exact(&mut private).unwrap();
        let public = x25519::PublicKey::from(&x25519::StaticSecret::from(private)).to_bytes();
        Self { private, public }
    }
}

/// What serves a node's `hawser0`.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Program {
    Ours,
    /// Ours with `--offload off`.
    OursPlain,
    WireguardGo,
    Boringtun,
    /// The module `wireguard`: no process, and configured by `wg`.
    Kernel,
}

impl Program {
    /// The peer of interoperability: Debian's, or the one that `HAWSER_PEER` names.
    pub(crate) fn other() -> Self {
        match std::env::var("HAWSER_PEER").as_deref() {
            Err(_) | Ok("wireguard-go") => Self::WireguardGo,
            Ok("boringtun-cli") => Self::Boringtun,
            Ok("kernel") => Self::Kernel,
            Ok(name) => panic!("HAWSER_PEER={name}: there are wireguard-go, boringtun-cli and kernel"),
        }
    }

    pub(crate) const fn is_ours(self) -> bool {
        matches!(self, Self::Ours | Self::OursPlain)
    }
}

/// A host on the underlay: 192.0.2.N and 2001:db8::N; inside 10.77.0.N and fd77::N.
pub(crate) struct Node {
    pub(crate) ns: Ns,
    pub(crate) n: usize,
    pub(crate) keys: Keys,
    pub(crate) program: Program,
    pub(crate) process: Option<Proc>,
    pub(crate) log: Arc<Mutex<String>>,
}

pub(crate) const PORT: u16 = 51880;

impl Node {
    pub(crate) fn v4(&self) -> String {
        format!("192.0.2.{}:{PORT}", self.n)
    }

    pub(crate) fn v6(&self) -> String {
        format!("[2001:db8::{}]:{PORT}", self.n)
    }

    pub(crate) fn inner4(&self) -> String {
        format!("10.77.0.{}", self.n)
    }

    pub(crate) fn inner6(&self) -> String {
        format!("fd77::{}", self.n)
    }

    pub(crate) fn public(&self) -> String {
        hex(&self.keys.public)
    }

    fn path(&self, suffix: &str) -> PathBuf {
        self.ns.proc(&format!("root/run/wireguard/hawser0.{suffix}"))
    }

    /// Starts the program and waits until it can be configured.
    pub(crate) fn start(&mut self) {
        if self.program == Program::Kernel {
            self.ns.run("ip link add hawser0 type wireguard");
            return;
        }
        self.start_with("hawser0");
        let path = self.path("sock");
        eventually("the socket answers", Duration::from_secs(10), || UnixStream::connect(&path).is_ok());
    }

    pub(crate) fn start_with(&mut self, arguments: &str) {
        self.process = Some(self.spawn(arguments));
    }

    pub(crate) fn spawn(&self, arguments: &str) -> Proc {
        let program = env!("CARGO_BIN_EXE_mesh-tunnel");
        let ours = format!("{program} --log json --threads {THREADS} --helpers {HELPERS}");
        let program = match self.program {
            Program::Ours => ours,
            Program::OursPlain => ours + " --offload off",
            Program::WireguardGo => "/usr/bin/wireguard-go -f".to_owned(),
            Program::Boringtun => "boringtun-cli -f --disable-drop-privileges".to_owned(),
            Program::Kernel => panic!("the kernel is no process"),
        };
        if self.program == Program::WireguardGo {
            assert!(
                std::path::Path::new("/usr/bin/wireguard-go").exists(),
                "install the package wireguard-go"
            );
        }
        let mut child = self
            .ns
            .command(&format!("{program} {arguments}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let log = Arc::clone(&self.log);
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                let mut log = log.lock().unwrap();
                log.push_str(&line);
                log.push('\n');
            }
        });
        Proc(child)
    }

    pub(crate) fn kill(&mut self) {
        self.process.as_ref().unwrap().signal(nix::sys::signal::Signal::SIGKILL);
        self.process = None;
    }

    /// Sends a request and returns the whole answer.
    pub(crate) fn uapi(&self, request: &str) -> String {
        self.asked(request).unwrap()
    }

    /// The same of a device that may be on its way out.
    pub(crate) fn asked(&self, request: &str) -> std::io::Result<String> {
        let mut stream = UnixStream::connect(self.path("sock"))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        stream.write_all(format!("{request}\n").as_bytes())?;
        let mut answer = String::new();
        let mut reader = BufReader::new(stream);
        while !answer.ends_with("\n\n") {
            if reader.read_line(&mut answer)? == 0 {
                return Err(std::io::Error::new(ErrorKind::UnexpectedEof, format!("cut answer: {answer:?}")));
            }
        }
        Ok(answer)
    }

    pub(crate) fn set(&self, lines: &str) {
        if self.program == Program::Kernel {
            self.ns.run_with_input("wg addconf hawser0 /proc/self/fd/0", &for_wg(lines));
            return;
        }
        assert_eq!(self.uapi(&format!("set=1\n{lines}")), "errno=0\n\n", "{lines}");
    }

    pub(crate) fn get(&self) -> String {
        self.uapi("get=1\n")
    }

    /// Gives the device its key, its port and its inner addresses.
    pub(crate) fn configure(&self) {
        self.set(&format!("private_key={}\nlisten_port={PORT}\n", hex(&self.keys.private)));
        self.ns.run(&format!("ip addr add {}/32 dev hawser0", self.inner4()));
        self.ns.run(&format!("ip -6 addr add {}/128 dev hawser0 nodad", self.inner6()));
        self.ns.run("ip link set hawser0 mtu 1420 up");
        self.ns.run("ip route add 10.0.0.0/8 dev hawser0");
        self.ns.run("ip -6 route add fd00::/8 dev hawser0");
    }

    /// Makes another node a peer, with its inner addresses.
    pub(crate) fn knows(&self, other: &Self, endpoint: Option<String>, more: &str) {
        let endpoint = endpoint.map(|e| format!("endpoint={e}\n")).unwrap_or_default();
        self.set(&format!(
            "public_key={}\n{endpoint}replace_allowed_ips=true\nallowed_ip={}/32\nallowed_ip={}/128\n{more}",
            other.public(),
            other.inner4(),
            other.inner6()
        ));
    }

    /// A counter of the statistics socket, such as `drops.no_peer`.
    pub(crate) fn count(&self, name: &str) -> u64 {
        let mut text = String::new();
        UnixStream::connect(self.path("stats")).unwrap().read_to_string(&mut text).unwrap();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        let (group, name) = name.split_once('.').unwrap();
        json[group][name].as_u64().unwrap_or_else(|| panic!("{name} in {text}"))
    }

    pub(crate) fn logged(&self, text: &str) -> bool {
        self.log.lock().unwrap().contains(text)
    }
}

/// Lines of the UAPI as `wg addconf` reads them; a line that it has no word for panics.
fn for_wg(lines: &str) -> String {
    let mut text = "[Interface]\n".to_owned();
    for line in lines.lines() {
        let (key, value) = line.split_once('=').unwrap();
        let secret = || {
            let bytes =
                (0..value.len()).step_by(2).map(|at| u8::from_str_radix(&value[at..at + 2], 16).unwrap());
            base64(&bytes.collect::<Vec<_>>())
        };
        let (key, value) = match key {
            "private_key" => ("PrivateKey", secret()),
            "listen_port" => ("ListenPort", value.to_owned()),
            "public_key" => ("[Peer]\nPublicKey", secret()),
            "preshared_key" => ("PresharedKey", secret()),
            "endpoint" => ("Endpoint", value.to_owned()),
            "allowed_ip" => ("AllowedIPs", value.to_owned()),
            "persistent_keepalive_interval" => ("PersistentKeepalive", value.to_owned()),
            // It replaces those of a peer that is named again.
            "replace_allowed_ips" => continue,
            other => panic!("{other} cannot be told to wg"),
        };
        text.push_str(&format!("{key} = {value}\n"));
    }
    text
}

/// Nodes on one switch.
pub(crate) struct Lab {
    pub(crate) nodes: Vec<Node>,
    switch: Ns,
}

impl Lab {
    /// Nodes with links and addresses and without tunnels.
    pub(crate) fn bare(programs: &[Program]) -> Self {
        let switch = Ns::new();
        switch.run("ip link add br0 type bridge");
        switch.run("ip link set br0 up");
        let nodes = programs.iter().enumerate().map(|(i, program)| {
            let (n, ns) = (i + 1, Ns::new());
            switch.run(&format!("ip link add p{n} type veth peer name u0 netns {}", ns.pid()));
            switch.run(&format!("ip link set p{n} master br0 up"));
            ns.run(&format!("ip addr add 192.0.2.{n}/24 dev u0"));
            ns.run(&format!("ip -6 addr add 2001:db8::{n}/64 dev u0 nodad"));
            ns.run("ip link set u0 up");
            Node { ns, n, keys: Keys::new(), program: *program, process: None, log: Arc::default() }
        });
        Self { nodes: nodes.collect(), switch }
    }

    /// Nodes with configured tunnels and no peers.
    pub(crate) fn with(programs: &[Program]) -> Self {
        let mut lab = Self::bare(programs);
        for node in &mut lab.nodes {
            node.start();
            node.configure();
        }
        lab
    }

    pub(crate) fn new(count: usize) -> Self {
        Self::with(&vec![Program::Ours; count])
    }

    /// Two nodes that know each other by IPv4.
    pub(crate) fn pair() -> Self {
        let lab = Self::new(2);
        let (a, b) = lab.two();
        a.knows(b, Some(b.v4()), "");
        b.knows(a, Some(a.v4()), "");
        lab
    }

    /// Gives a namespace a link to the switch.
    pub(crate) fn plug(&self, ns: &Ns, link: &str) {
        let line = format!("ip link add p-{link} type veth peer name {link} netns {}", ns.pid());
        self.switch.run(&line);
        self.switch.run(&format!("ip link set p-{link} master br0 up"));
        ns.run(&format!("ip link set {link} up"));
    }

    pub(crate) fn two(&self) -> (&Node, &Node) {
        (&self.nodes[0], &self.nodes[1])
    }
}

/// Numbered datagrams at a steady rate from one namespace to another.
pub(crate) struct Stream {
    stop: Arc<AtomicBool>,
    sender: JoinHandle<u64>,
    receiver: JoinHandle<u64>,
    seen: Arc<Mutex<u64>>,
}

impl Stream {
    pub(crate) fn start(from: (&Ns, IpAddr), to: (&Ns, IpAddr), per_second: u32) -> Self {
        const LAST: u64 = u64::MAX;
        let target = SocketAddr::new(to.1, 7777);
        let (sender, receiver) = (from.0.udp(SocketAddr::new(from.1, 0)), to.0.udp(target));
        receiver.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::new(Mutex::new(0));
        let (stopping, ending) = (Arc::clone(&stop), Arc::clone(&stop));
        let sender = std::thread::spawn(move || {
            let (gap, start) = (Duration::from_secs(1) / per_second, Instant::now());
            let mut n = 0u64;
            while !stopping.load(Ordering::Relaxed) {
                let _ = sender.send_to(&n.to_be_bytes(), target);
                n += 1;
                std::thread::sleep(
                    (start + gap * u32::try_from(n).unwrap()).saturating_duration_since(Instant::now()),
                );
            }
            for _ in 0..3 {
                let _ = sender.send_to(&LAST.to_be_bytes(), target);
            }
            n
        });
        let counted = Arc::clone(&seen);
        let receiver = std::thread::spawn(move || {
            let mut numbers = std::collections::BTreeSet::new();
            let mut buf = [0; 8];
            loop {
                match receiver.recv(&mut buf) {
                    Ok(_) => {}
                    // A gap, as where an end is killed: only after the end nothing more is awaited.
                    Err(e) if e.kind() == ErrorKind::WouldBlock && !ending.load(Ordering::Relaxed) => {
                        continue;
                    }
                    Err(_) => break,
                }
                let n = u64::from_be_bytes(buf);
                if n == LAST {
                    break;
                }
                assert!(numbers.insert(n), "datagram {n} arrived twice");
                *counted.lock().unwrap() = numbers.len() as u64;
            }
            numbers.len() as u64
        });
        Self { stop, sender, receiver, seen }
    }

    pub(crate) fn seen(&self) -> u64 {
        *self.seen.lock().unwrap()
    }

    /// Waits until so many more have arrived.
    pub(crate) fn flows(&self, more: u64) {
        let target = self.seen() + more;
        eventually("the stream flows", Duration::from_secs(10), || self.seen() >= target);
    }

    /// Ends the stream; how many were sent and how many arrived.
    pub(crate) fn finish(self) -> (u64, u64) {
        self.stop.store(true, Ordering::Relaxed);
        (self.sender.join().unwrap(), self.receiver.join().unwrap())
    }
}
