//! What the tests share: calls of the binary, an agent that does what a test tells it, network namespaces.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;

use proto::cni::{self, Attached, AttachedIp, Failure, Outcome, Request, Response, Verb};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::{Value, json};
use tempfile::TempDir;

pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_hawser-cni");

/// What a call left behind.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) exit: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Output {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Code of a failed call, 0 of one that succeeded.
    pub(crate) fn code(&self) -> u64 {
        if self.exit == 0 { 0 } else { self.json()["code"].as_u64().expect("an error has a code") }
    }
}

pub(crate) fn finish(command: &mut Command, stdin: &[u8]) -> Output {
    let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the plugin starts");
    // A plugin that refuses the environment does not read stdin: EPIPE is fine.
    let _ = child.stdin.take().expect("piped").write_all(stdin);
    let output = child.wait_with_output().expect("the plugin ends");
    Output {
        exit: output.status.code().expect("the plugin is not killed by a signal"),
        stdout: String::from_utf8(output.stdout).expect("stdout is UTF-8"),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Calls a plugin with exactly this environment.
pub(crate) fn call<V: AsRef<OsStr>>(binary: &str, environment: &[(&str, V)], stdin: &[u8]) -> Output {
    let mut command = Command::new(binary);
    command.env_clear().envs(environment.iter().map(|(key, value)| (key, value.as_ref())));
    finish(&mut command, stdin)
}

/// A call with the usual environment of attachment c1/eth0.
pub(crate) fn verb(verb: &str, netns: &str, stdin: &Value) -> Output {
    let environment = [
        ("CNI_COMMAND", verb),
        ("CNI_CONTAINERID", "c1"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_NETNS", netns),
        ("CNI_PATH", "/opt/cni/bin"),
    ];
    call(BINARY, &environment, stdin.to_string().as_bytes())
}

/// What the test agent does with a request.
pub(crate) enum Reply {
    Answer(Outcome),
    Raw(Vec<u8>),
    Close,
    Hang,
}

/// A request that the agent got, with inode of the namespace that came with it.
#[derive(Clone, Debug)]
pub(crate) struct Got {
    pub(crate) verb: Verb,
    pub(crate) netns_inode: Option<u64>,
}

/// An agent in a directory of its own.
pub(crate) struct Agent {
    pub(crate) dir: TempDir,
    got: Arc<Mutex<Vec<Got>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    socket: PathBuf,
}

impl Agent {
    pub(crate) fn start(reply: impl Fn(&Request, Option<OwnedFd>) -> Reply + Send + 'static) -> Self {
        let dir = TempDir::new().expect("a temporary directory");
        let socket = dir.path().join("cni.sock");
        let listener = UnixListener::bind(&socket).expect("a socket");
        let (got, stop) = (Arc::<Mutex<Vec<Got>>>::default(), Arc::<AtomicBool>::default());
        let (log, stopped) = (got.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            let mut held = Vec::new();
            for stream in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                let mut stream = stream.expect("a connection");
                let Some((request, netns)) = receive(&mut stream) else { continue };
                let inode = |fd: &OwnedFd| {
                    File::from(fd.try_clone().expect("a descriptor")).metadata().expect("metadata").ino()
                };
                let netns_inode = netns.as_ref().map(inode);
                log.lock().unwrap().push(Got { verb: request.verb.clone(), netns_inode });
                match reply(&request, netns) {
                    Reply::Answer(outcome) => {
                        let _ = cni::write_frame(&mut stream, &Response { v: cni::VERSION, outcome });
                    }
                    Reply::Raw(bytes) => {
                        let _ = stream.write_all(&bytes);
                    }
                    Reply::Close => {}
                    Reply::Hang => held.push(stream),
                }
            }
        });
        Self { dir, got, stop, thread: Some(thread), socket }
    }

    /// An agent that succeeds in everything.
    pub(crate) fn good() -> Self {
        Self::start(|request, _| Reply::Answer(success(request)))
    }

    pub(crate) fn failing(code: u32) -> Self {
        Self::start(move |_, _| Reply::Answer(Outcome::Failed(Failure::new(code, "no", "because"))))
    }

    pub(crate) fn got(&self) -> Vec<Got> {
        self.got.lock().unwrap().clone()
    }

    pub(crate) fn config(&self, version: &str) -> Value {
        config(self.dir.path(), version)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = UnixStream::connect(&self.socket);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A configuration whose agent and notes live in `dir`.
pub(crate) fn config(dir: &Path, version: &str) -> Value {
    json!({
        "cniVersion": version,
        "name": "hawser",
        "type": "hawser-cni",
        "agentSocket": dir.join("cni.sock"),
        "pendingDeletes": dir.join("notes"),
        "agentTimeoutSeconds": 1,
    })
}

/// A configuration with more keys.
pub(crate) fn with(mut config: Value, more: Value) -> Value {
    let (Some(map), Value::Object(more)) = (config.as_object_mut(), more) else { panic!("two objects") };
    map.extend(more);
    config
}

pub(crate) fn success(request: &Request) -> Outcome {
    match &request.verb {
        Verb::Add(attach) => Outcome::Attached(Attached {
            host_ifname: attach.id.veth(),
            host_mac: "02:00:00:00:00:01".to_owned(),
            pod_mac: "02:00:00:00:00:02".to_owned(),
            mtu: 1420,
            ips: vec![
                AttachedIp { address: "10.1.0.7/32".parse().unwrap(), gateway: "10.1.0.1".parse().unwrap() },
                AttachedIp {
                    address: "fd00:1::7/128".parse().unwrap(),
                    gateway: "fd00:1::1".parse().unwrap(),
                },
            ],
        }),
        Verb::Del(_) | Verb::Check(_) | Verb::Status | Verb::Gc(_) => Outcome::Done,
    }
}

/// One request, and the descriptor that came with its first byte.
fn receive(stream: &mut UnixStream) -> Option<(Request, Option<OwnedFd>)> {
    let mut header = [0; 4];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let first = recvmsg(
        stream.as_fd(),
        &mut [IoSliceMut::new(&mut header[..1])],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    );
    if first.ok()?.bytes != 1 {
        return None;
    }
    let mut descriptors = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    assert!(descriptors.len() <= 1, "one descriptor at most");
    stream.read_exact(&mut header[1..]).ok()?;
    let mut body = vec![0; cni::body_length(header).expect("a length within the limit")];
    stream.read_exact(&mut body).ok()?;
    Some((cni::decode(&body).expect("a request"), descriptors.pop()))
}

/// A network namespace that lives as long as this value: a thread sits in it.
pub(crate) struct Netns {
    pub(crate) path: String,
    pub(crate) inode: u64,
    leave: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Netns {
    pub(crate) fn new() -> Self {
        let (leave, left) = mpsc::channel::<()>();
        let (tell, told) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)
                .expect("a network namespace: the tests need root");
            let path = format!("/proc/{}/task/{}/ns/net", std::process::id(), nix::unistd::gettid());
            tell.send(path).unwrap();
            let _ = left.recv();
        });
        let path: String = told.recv().expect("the thread is inside");
        let inode = fs::metadata(&path).unwrap().ino();
        assert_ne!(inode, fs::metadata("/proc/self/ns/net").unwrap().ino(), "a namespace of its own");
        Self { path, inode, leave: Some(leave), thread: Some(thread) }
    }

    /// Runs a command inside and returns its stdout.
    pub(crate) fn run(&self, command: &[&str]) -> String {
        let output = Command::new("nsenter")
            .arg(format!("--net={}", self.path))
            .args(command)
            .output()
            .expect("nsenter of util-linux");
        assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        drop(self.leave.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
