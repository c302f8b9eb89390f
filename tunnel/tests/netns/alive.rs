//! A process whose threads go on, one that was stopped, and one with threads that hang.

use std::time::Duration;

use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use crate::THREADS;
use crate::lab::{Lab, Node, Proc, Program, eventually};

const SOON: Duration = Duration::from_secs(10);
const PROGRAM: &str = env!("CARGO_BIN_EXE_mesh-tunnel");

/// What `mesh-tunnel` says when it is asked as by a probe.
fn probe(node: &Node, question: &str) -> Result<(), String> {
    let mut command = node.ns.command(&format!("{PROGRAM} {question}"));
    // What went wrong, not where in the program.
    let out = command.env("RUST_BACKTRACE", "0").output().unwrap();
    if out.status.success() { Ok(()) } else { Err(String::from_utf8(out.stderr).unwrap()) }
}

fn alive(node: &Node, door: &str) -> Result<(), String> {
    probe(node, &format!("--check-alive --alive /run/wireguard/{door}"))
}

/// Threads of a process that stand still, as in a lock that nobody gives back, until dropped. Of the caller's thread.
pub(crate) struct Hanging(Vec<Pid>);

impl Hanging {
    pub(crate) fn of(process: &Proc, names: &[&str]) -> Self {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", process.0.id())).unwrap();
        let named = tasks.filter_map(|task| {
            let task = task.unwrap();
            let name = std::fs::read_to_string(task.path().join("comm")).unwrap();
            let id = task.file_name().into_string().unwrap().parse().unwrap();
            names.contains(&name.trim_end()).then_some(Pid::from_raw(id))
        });
        let threads: Vec<Pid> = named.collect();
        assert_eq!(threads.len(), names.len(), "{names:?}");
        for thread in &threads {
            ptrace::seize(*thread, ptrace::Options::empty()).unwrap();
            ptrace::interrupt(*thread).unwrap();
            waitpid(*thread, Some(WaitPidFlag::__WALL)).unwrap();
        }
        Self(threads)
    }
}

impl Drop for Hanging {
    fn drop(&mut self) {
        for thread in &self.0 {
            let _ = ptrace::detach(*thread, None);
        }
    }
}

#[test]
fn a_tunnel_that_serves_or_waits_is_alive_and_one_that_was_stopped_or_hangs_is_not() {
    let mut lab = Lab::bare(&[Program::Ours]);
    lab.nodes[0].start_with("--alive /run/wireguard/first hawser0 hawser1");
    let node = &lab.nodes[0];
    let socket = |name: &str| node.ns.proc(&format!("root/run/wireguard/{name}")).exists();
    eventually("both are served", SOON, || socket("hawser0.sock") && socket("hawser1.sock"));
    let second = node.spawn("--alive /run/wireguard/second hawser0 hawser1");
    eventually("it waits for both", SOON, || socket("hawser0.next") && socket("hawser1.next"));
    for door in ["first", "second"] {
        assert_eq!(alive(node, door), Ok(()), "{door}");
    }
    let refused = alive(node, "nobody").unwrap_err();
    assert!(refused.contains("no mesh-tunnel answers"), "{refused}");

    for process in [node.process.as_ref().unwrap(), &second] {
        process.signal(Signal::SIGSTOP);
    }
    for door in ["first", "second"] {
        let told = alive(node, door).unwrap_err();
        assert!(told.contains("hangs or was stopped"), "{told}");
    }
    for process in [node.process.as_ref().unwrap(), &second] {
        process.signal(Signal::SIGCONT);
    }
    for door in ["first", "second"] {
        eventually("it goes on", SOON, || alive(node, door).is_ok());
    }

    let hang = |process: &Proc, door: &str, names: &[&str]| {
        let hanging = Hanging::of(process, names);
        let told = alive(node, door).unwrap_err();
        let (_, told) = told.split_once("no progress for 10 s: ").unwrap_or_else(|| panic!("{told}"));
        let mut named: Vec<&str> = told.trim_end().split(", ").collect();
        named.sort_unstable();
        assert_eq!(named, names);
        drop(hanging);
        assert_eq!(alive(node, door), Ok(()), "they go on");
    };
    let first = node.process.as_ref().unwrap();
    if THREADS == 1 {
        hang(first, "first", &["hawser0", "hawser0-carry", "hawser1-accept", "hawser1-timers"]);
    } else {
        hang(first, "first", &["hawser0-carry0", "hawser0-carry3", "hawser1-carry1", "hawser1-read"]);
    }
    hang(&second, "second", &["hawser1"]);
}

#[test]
fn a_tunnel_with_all_devices_is_ready_only_while_each_engine_answers_and_each_thread_goes_on() {
    let mut lab = Lab::bare(&[Program::Ours]);
    lab.nodes[0].start_with("--alive /run/wireguard/first hawser0 hawser1");
    let node = &lab.nodes[0];
    let ready = || probe(node, "--check --alive /run/wireguard/first hawser0 hawser1");
    eventually("it is ready", SOON, || ready().is_ok());
    let process = node.process.as_ref().unwrap();
    for (name, what) in [
        ("hawser0-accept", "the engine of hawser0 does not answer"),
        (if THREADS == 1 { "hawser1-carry" } else { "hawser1-carry2" }, "mesh-tunnel hangs or was stopped"),
        ("hawser1", "mesh-tunnel hangs or was stopped"),
    ] {
        let hanging = Hanging::of(process, &[name]);
        let told = ready().unwrap_err();
        assert!(told.contains(what), "{name}: {told}");
        drop(hanging);
        eventually("it is ready again", Duration::from_secs(30), || ready().is_ok());
    }
    assert!(ready().is_ok());
    // Keys of as many peers as make the answer come in many pieces.
    let peer = |n: u32| format!("public_key={:064x}\nallowed_ip=10.{}.{}.0/24\n", n + 2, n / 256, n % 256);
    node.set(&format!("private_key={}\n{}", "11".repeat(32), (0..500).map(peer).collect::<String>()));
    assert_eq!(ready(), Ok(()));
}
