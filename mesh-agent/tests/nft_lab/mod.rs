//! Network namespaces for one test. They are held by this process alone, so they go with it, however it ends.

#![allow(dead_code, reason = "each test binary uses its share")]

use std::fs::File;
use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use netlab::Namespace;

/// A handful of namespaces, each with a role.
pub(crate) struct Lab(Vec<(&'static str, Namespace)>);

impl Lab {
    /// One namespace for each role, loopback up.
    pub(crate) fn new(roles: &'static [&'static str]) -> Self {
        assert!(rustix::process::geteuid().is_root(), "this test makes network namespaces: run it as root");
        let made = |role: &&'static str| {
            let namespace = Namespace::net_only(netlab::unique_name(role)).build();
            (*role, namespace.unwrap_or_else(|error| panic!("{role}: {error}")))
        };
        Self(roles.iter().map(made).collect())
    }

    fn of(&self, role: &str) -> &Namespace {
        let found = self.0.iter().find(|(name, _)| *name == role);
        &found.unwrap_or_else(|| panic!("no namespace is {role}")).1
    }

    /// Runs `ip` with words of `args` inside the namespace of `role`.
    pub(crate) fn ip(&self, role: &str, args: &str) {
        let output = self.exec(role, &format!("ip {args}"), "");
        assert!(output.status.success(), "ip {args}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Runs a program inside the namespace of `role`; the last argument is `last`, unsplit, if not empty.
    pub(crate) fn exec(&self, role: &str, command: &str, last: &str) -> Output {
        let mut words = command.split_whitespace();
        let mut program = Command::new(words.next().expect("a program"));
        program.args(words).args(Some(last).filter(|last| !last.is_empty()));
        // A child is where its starter's thread is.
        self.inside(role, || program.output()).unwrap_or_else(|error| panic!("{command}: {error}"))
    }

    /// As [`Self::exec`], must succeed; its standard output.
    pub(crate) fn sh(&self, role: &str, command: &str, last: &str) -> String {
        let output = self.exec(role, command, last);
        assert!(output.status.success(), "{command} {last}: {output:?}");
        String::from_utf8(output.stdout).expect("text")
    }

    /// A pair of veths, each end in its namespace and up.
    pub(crate) fn veth(&self, (role_a, name_a): (&str, &str), (role_b, name_b): (&str, &str)) {
        let peer = self.of(role_b).netns_path();
        let peer = peer.display();
        self.ip(role_a, &format!("link add {name_a} type veth peer name {name_b} netns {peer}"));
        self.ip(role_a, &format!("link set {name_a} up"));
        self.ip(role_b, &format!("link set {name_b} up"));
    }

    /// Runs `work` on a thread inside the namespace of `role`.
    pub(crate) fn inside<T: Send>(&self, role: &str, work: impl FnOnce() -> T + Send) -> T {
        let ns = File::open(self.of(role).netns_path()).expect("the namespace exists");
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
        let mut socket = None;
        // The last one there may live on for a moment, in a process that another test has forked and that has not begun yet.
        eventually(&format!("bind {local} in {role}"), || {
            match self.inside(role, || UdpSocket::bind(local)) {
                Ok(bound) => socket = Some(bound),
                Err(error) if error.kind() == ErrorKind::AddrInUse => {}
                Err(error) => panic!("bind {local} in {role}: {error}"),
            }
            socket.is_some()
        });
        let socket = socket.expect("it is bound");
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

/// Polls until `probe` says yes; panics with `what` after ten seconds.
pub(crate) fn eventually(what: &str, mut probe: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !probe() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::yield_now();
    }
}
