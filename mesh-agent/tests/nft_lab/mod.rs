//! Network namespaces for one test, with names of its own, gone when it ends or panics.

#![allow(dead_code, reason = "each test binary uses its share")]

use std::fs::File;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// A handful of namespaces with a common name.
pub(crate) struct Lab {
    id: String,
    roles: &'static [&'static str],
}

static NEXT: AtomicU32 = AtomicU32::new(0);

impl Lab {
    /// One namespace for each role, loopback up.
    pub(crate) fn new(roles: &'static [&'static str]) -> Self {
        assert!(rustix::process::geteuid().is_root(), "this test makes network namespaces: run it as root");
        let id = format!("hawser-t{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let lab = Self { id, roles };
        for role in roles {
            run("ip", &["netns", "add", &lab.ns(role)]);
            lab.ip(role, "link set lo up");
        }
        lab
    }

    pub(crate) fn ns(&self, role: &str) -> String {
        format!("{}-{role}", self.id)
    }

    /// Runs `ip` with words of `args` inside the namespace of `role`.
    pub(crate) fn ip(&self, role: &str, args: &str) {
        let ns = self.ns(role);
        let mut words = vec!["-n", &ns];
        words.extend(args.split_whitespace());
        run("ip", &words);
    }

    /// Runs a program inside the namespace of `role`; the last argument is `last`, unsplit, if not empty.
    pub(crate) fn exec(&self, role: &str, command: &str, last: &str) -> Output {
        let ns = self.ns(role);
        let mut words = vec!["netns", "exec", &ns];
        words.extend(command.split_whitespace());
        if !last.is_empty() {
            words.push(last);
        }
        Command::new("ip").args(&words).output().expect("ip runs")
    }

    /// As [`Self::exec`], must succeed; its standard output.
    pub(crate) fn sh(&self, role: &str, command: &str, last: &str) -> String {
        let output = self.exec(role, command, last);
        assert!(output.status.success(), "{command} {last}: {output:?}");
        String::from_utf8(output.stdout).expect("text")
    }

    /// A pair of veths, each end in its namespace and up.
    pub(crate) fn veth(&self, (role_a, name_a): (&str, &str), (role_b, name_b): (&str, &str)) {
        let peer = self.ns(role_b);
        self.ip(role_a, &format!("link add {name_a} type veth peer name {name_b} netns {peer}"));
        self.ip(role_a, &format!("link set {name_a} up"));
        self.ip(role_b, &format!("link set {name_b} up"));
    }

    /// Runs `work` on a thread inside the namespace of `role`.
    pub(crate) fn inside<T: Send>(&self, role: &str, work: impl FnOnce() -> T + Send) -> T {
        let ns = File::open(format!("/run/netns/{}", self.ns(role))).expect("the namespace exists");
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let kind = Some(rustix::thread::LinkNameSpaceType::Network);
                rustix::thread::move_into_link_name_space(ns.as_fd(), kind).expect("enters the namespace");
                work()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// A UDP socket of the namespace of `role`.
    pub(crate) fn udp(&self, role: &str, local: &str) -> UdpSocket {
        let local: SocketAddr = local.parse().expect("an address");
        let socket = self.inside(role, || UdpSocket::bind(local));
        let socket = socket.unwrap_or_else(|error| panic!("bind {local} in {role}: {error}"));
        socket.set_read_timeout(Some(Duration::from_secs(5))).expect("timeout");
        socket
    }

    /// Writes below /proc/sys/net of the namespace of `role`.
    pub(crate) fn sysctl(&self, role: &str, key: &str, value: &str) {
        self.inside(role, || {
            let path = format!("/proc/sys/net/{key}");
            std::fs::write(&path, value).unwrap_or_else(|error| panic!("{path}: {error}"));
        });
    }

    /// Reads below /proc/sys/net of the namespace of `role`.
    pub(crate) fn sysctl_of(&self, role: &str, key: &str) -> String {
        let text = self.inside(role, || std::fs::read_to_string(format!("/proc/sys/net/{key}")));
        text.unwrap_or_else(|error| panic!("{key}: {error}")).trim().to_owned()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for role in self.roles {
            // One that was never made is no matter.
            let _ = Command::new("ip").args(["netns", "del", &self.ns(role)]).output();
        }
    }
}

fn run(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output().expect("the program runs");
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Polls until `probe` says yes; panics with `what` after ten seconds.
pub(crate) fn eventually(what: &str, mut probe: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !probe() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::yield_now();
    }
}
