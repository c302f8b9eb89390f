//! What a scenario watches while it breaks things: a capture on the switch, numbered streams whose payload is a canary,
//! and the data path of a node as text that two moments can be compared by.

use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use netlab::probe::{self as netprobe, Canary, Report, Stream, StreamOptions, Transport};
use netlab::{Capture, CaptureOptions, Frame, Namespace, eventually};
use serde_json::Value;

use crate::cluster::Lab;
use crate::matrix::{ECHO_PORT, Party, Probe, Verdict, canary, probe_with, verdict_beside};
use crate::node::Node;

/// A capture, and every canary that was sent since it began.
#[derive(Debug)]
pub struct Witness {
    capture: Capture,
    probes: Vec<Probe>,
    /// Of streams from the world outside, and the ports of nodes that they go to: there they are in clear by their nature.
    outside: Vec<Probe>,
    node_ports: Vec<(IpAddr, SocketAddr)>,
    pace: Duration,
}

/// Between two records of a stream: 10 ms, or `HAWSER_STREAM_INTERVAL_MS`. What an emulated machine cannot send in time it sends
/// in bursts, and has no time for agents.
///
/// # Errors
/// The variable has no number of milliseconds.
pub fn usual_pace() -> Result<Duration> {
    let Some(text) = std::env::var_os("HAWSER_STREAM_INTERVAL_MS") else {
        return Ok(Duration::from_millis(10));
    };
    let milliseconds = text.to_str().and_then(|text| text.parse().ok()).filter(|number| *number > 0);
    Ok(Duration::from_millis(milliseconds.with_context(|| {
        format!("HAWSER_STREAM_INTERVAL_MS={}: not a number of milliseconds", text.display())
    })?))
}

fn probe(to: IpAddr, protocol: &'static str) -> Probe {
    Probe {
        from: "scenario".to_owned(),
        to: to.to_string(),
        protocol,
        family: if to.is_ipv4() { "v4" } else { "v6" },
        error: None,
        canary: canary(),
    }
}

impl Witness {
    /// Captures from now on.
    ///
    /// # Errors
    /// No capture socket, or [`usual_pace`].
    pub fn new(lab: &Lab) -> Result<Self> {
        Ok(Self {
            capture: lab.switch.capture(CaptureOptions::default())?,
            probes: Vec::new(),
            outside: Vec::new(),
            node_ports: Vec::new(),
            pace: usual_pace()?,
        })
    }

    /// Between two records of each stream from now on, instead of [`usual_pace`]. A lab whose records are more than its
    /// machine can carry loses some of them in the queues of its devices ([`drops`]).
    #[must_use]
    pub fn pace(self, pace: Duration) -> Self {
        Self { pace, ..self }
    }

    fn remember(&mut self, to: IpAddr, protocol: &'static str) -> Vec<u8> {
        let probe = probe(to, protocol);
        let canary = probe.canary.clone();
        self.probes.push(probe);
        canary
    }

    /// A running stream of a record at each [`Witness::pace`] towards `ip`, which `server` holds.
    ///
    /// # Errors
    /// It could not be established.
    pub fn stream(
        &mut self,
        transport: Transport,
        client: &Namespace,
        server: &Namespace,
        ip: IpAddr,
    ) -> Result<Stream> {
        let protocol = if transport == Transport::Tcp { "tcp" } else { "udp" };
        let payload = self.remember(ip, protocol);
        let options =
            StreamOptions::new(transport, SocketAddr::new(ip, 0)).payload(payload).interval(self.pace);
        Ok(Stream::start(client, server, &options)?)
    }

    /// A running stream to what `server` listens on, by another address: that of a service.
    ///
    /// # Errors
    /// It could not be established.
    pub fn stream_by(
        &mut self,
        transport: Transport,
        (client, dial): (&Namespace, SocketAddr),
        (server, listen): (&Namespace, SocketAddr),
    ) -> Result<Stream> {
        let protocol = if transport == Transport::Tcp { "tcp" } else { "udp" };
        let payload = self.remember(listen.ip(), protocol);
        let options = StreamOptions::new(transport, listen).payload(payload).interval(self.pace);
        let options = StreamOptions { dial: Some(dial), ..options };
        Ok(Stream::start(client, server, &options)?)
    }

    /// [`Witness::stream_by`] for a client in the world outside and a node's port: between the two it may be seen in clear,
    /// and nowhere else.
    ///
    /// # Errors
    /// It could not be established.
    pub fn stream_from_outside(
        &mut self,
        lab: &Lab,
        transport: Transport,
        dial: SocketAddr,
        (server, listen): (&Namespace, SocketAddr),
    ) -> Result<Stream> {
        let probe = probe(listen.ip(), if transport == Transport::Tcp { "tcp" } else { "udp" });
        let options = StreamOptions::new(transport, listen).payload(probe.canary.clone()).interval(self.pace);
        self.outside.push(probe);
        let way = (lab.world_address(dial.is_ipv4()), dial);
        if !self.node_ports.contains(&way) {
            self.node_ports.push(way);
        }
        let options = StreamOptions { dial: Some(dial), ..options };
        Ok(Stream::start(&lab.world, server, &options)?)
    }

    /// Streams over both transports to every address.
    ///
    /// # Errors
    /// One could not be established.
    pub fn streams(&mut self, client: &Namespace, server: &Namespace, ips: &[IpAddr]) -> Result<Vec<Stream>> {
        let mut streams = Vec::new();
        for ip in ips {
            for transport in [Transport::Tcp, Transport::Udp] {
                streams.push(self.stream(transport, client, server, *ip)?);
            }
        }
        Ok(streams)
    }

    /// All three protocols to every address of `to`; the failures.
    pub fn failures(&mut self, from: &Party<'_>, to: &Party<'_>, tries: u32) -> Vec<String> {
        let probes = probe_with(from, to, tries);
        let failed = probes.iter().filter_map(|probe| {
            let Probe { from, to, protocol, family, .. } = probe;
            probe.error.as_ref().map(|error| format!("{from} to {to} {protocol} {family}: {error}"))
        });
        let failed = failed.collect();
        self.probes.extend(probes);
        failed
    }

    /// One datagram to a [`Party`]'s echo server, or to nobody, without a second try.
    ///
    /// # Errors
    /// What was seen instead of the echo.
    pub fn knock(&mut self, from: &Namespace, to: IpAddr, patience: Duration) -> Result<Duration> {
        let payload = self.remember(to, "udp");
        let canary = Canary::new(payload).tries(1).deadline(patience);
        Ok(netprobe::udp(from, SocketAddr::new(to, ECHO_PORT), &canary)?)
    }

    /// The capture itself.
    pub const fn capture(&self) -> &Capture {
        &self.capture
    }

    /// What crossed the switch until now, searched for every canary.
    ///
    /// # Errors
    /// The capture lost frames, so that nothing can be said.
    pub fn verdict(&self, lab: &Lab) -> Result<Verdict> {
        Ok(self.judge(lab, &self.capture.frames()?))
    }

    fn judge(&self, lab: &Lab, frames: &[Frame]) -> Verdict {
        let ports = self.node_ports.iter();
        let policy = ports.fold(lab.policy(), |policy, (world, port)| policy.node_port(*world, *port));
        verdict_beside(&policy, lab, frames, (&self.probes, &self.outside))
    }

    /// What crossed the switch since the last time, which has to be clean and is forgotten: for runs of which a capture's memory
    /// does not hold all. The number of frames.
    ///
    /// # Errors
    /// The first things that were seen in clear, or the capture lost frames.
    pub fn clean_so_far(&self, lab: &Lab) -> Result<u64> {
        let seen = self.judge(lab, &self.capture.take()?);
        self.refuse_what_is_clear(&seen)?;
        Ok(seen.frames)
    }

    fn refuse_what_is_clear(&self, seen: &Verdict) -> Result<()> {
        let sent = self.probes.len() + self.outside.len();
        if !seen.is_clean() || sent == 0 {
            let lines = seen.canaries.iter().chain(&seen.strangers).chain(&seen.pod_addresses);
            let lines: Vec<&str> = lines.take(10).map(String::as_str).collect();
            bail!(
                "{sent} canaries sent, {} frames seen ({:?}), in clear: {}",
                seen.frames,
                seen.classes,
                lines.join("; ")
            );
        }
        Ok(())
    }

    /// [`Witness::verdict`], which has to be clean. The number of frames.
    ///
    /// A switch may well have been silent meanwhile. Then something is said on it, for a capture that sees nothing proves nothing.
    ///
    /// # Errors
    /// The first things that were seen in clear, or a capture that does not see.
    pub fn clean(&self, lab: &Lab) -> Result<u64> {
        let mut seen = self.verdict(lab)?;
        if seen.frames == 0 {
            lab.break_silence()?;
            seen = eventually(Duration::from_secs(5), "the capture sees a question for a neighbour", || {
                let seen = self.verdict(lab).map_err(|error| format!("{error:#}"))?;
                if seen.frames > 0 { Ok(seen) } else { Err(format!("{seen:?}")) }
            })?;
        }
        self.refuse_what_is_clear(&seen)?;
        Ok(seen.frames)
    }
}

/// Waits until every stream has delivered this many records more.
///
/// # Errors
/// Not within twenty seconds and twice the time that they take: the reports.
pub fn flowing(streams: &[Stream], records: u64) -> Result<()> {
    let wanted: Vec<u64> = streams.iter().map(|stream| stream.report().received + records).collect();
    let pace = streams.iter().map(Stream::interval).max().unwrap_or_default();
    let deadline = Duration::from_secs(20) + pace.mul_f64(2.0 * records as f64);
    eventually(deadline, "every stream goes on", || {
        let late = |(stream, wanted): (&Stream, &u64)| {
            let report = stream.report();
            (report.received < *wanted).then(|| format!("to {}: {report}", stream.address()))
        };
        let late: Vec<String> = streams.iter().zip(&wanted).filter_map(late).collect();
        if late.is_empty() { Ok(()) } else { Err(late.join("; ")) }
    })?;
    Ok(())
}

/// Ends streams that must not have lost a record; the longest gap.
///
/// # Errors
/// The reports of those that have.
pub fn lossless(streams: Vec<Stream>) -> Result<Duration> {
    let stop = |stream: Stream| {
        let name = format!("to {} every {:?}", stream.address(), stream.interval());
        (name, std::thread::spawn(move || stream.stop(Duration::from_secs(5))))
    };
    let stopped: Vec<_> = streams.into_iter().map(stop).collect();
    let reports: Vec<(String, Report)> = stopped
        .into_iter()
        .map(|(name, report)| (name, report.join().expect("stopping a stream does not panic")))
        .collect();
    let bad = |r: &Report| r.lost != 0 || r.duplicated != 0 || r.error.is_some() || r.received == 0;
    let lossy: Vec<String> = reports
        .iter()
        .filter(|(_, report)| bad(report))
        .map(|(name, report)| format!("{name}: {report}"))
        .collect();
    if !lossy.is_empty() {
        bail!("{}", lossy.join("; "));
    }
    Ok(reports.iter().map(|(_, report)| report.longest_gap).max().unwrap_or_default())
}

/// What devices and sockets of these places have dropped since they are there, and the machine's backlog: a queue that was full
/// tells that the machine was too slow.
pub fn drops<'a>(places: impl Iterator<Item = &'a Namespace>) -> String {
    let of = |place: &Namespace| -> Result<String> {
        let exec = |words: &[&str]| -> Result<String> {
            let mut command = Command::new(words[0]);
            command.args(&words[1..]);
            Ok(place.exec(command, Duration::from_secs(10))?.stdout_text())
        };
        let links: Vec<Value> = serde_json::from_str(&exec(&["ip", "-j", "-s", "link"])?)?;
        let mut told = Vec::new();
        for link in &links {
            let [out, arrived] =
                ["tx", "rx"].map(|way| link["stats64"][way]["dropped"].as_u64().unwrap_or_default());
            if out + arrived > 0 {
                told.push(format!("{}: {out} on the way out, {arrived} in", link["ifname"]));
            }
        }
        let errors = exec(&["nstat", "-asz"])?;
        let full = errors.lines().filter(|line| line.contains("bufErrors") && !line.contains(" 0 "));
        told.extend(full.map(|line| line.split_whitespace().take(2).collect::<Vec<_>>().join(" ")));
        Ok(told.join(", "))
    };
    let text = |place: &Namespace| {
        let told = of(place).unwrap_or_else(|error| format!("{error:#}"));
        format!("{}: {told}", place.name())
    };
    let backlog = std::fs::read_to_string("/proc/net/softnet_stat").unwrap_or_default();
    format!("{}; backlog {backlog}", places.map(text).collect::<Vec<_>>().join("; "))
}

/// Routes, rules, addresses, firewall, keys and peers of a node, without what counts or ages: one sorted line each.
///
/// # Errors
/// A command failed.
pub fn data_path(node: &Node) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    for words in [
        "ip -4 -d route show table all",
        "ip -6 -d route show table all",
        "ip -4 -d rule",
        "ip -6 -d rule",
        "ip -o addr",
        "ip -o link",
        "nft -s list ruleset",
        "wg show all public-key",
        "wg show all listen-port",
    ] {
        let text = node.sh(words)?;
        // The device that holds first packets is made anew with each agent.
        let lasting = text.lines().filter(|line| !line.contains("hawserh"));
        lines.extend(lasting.map(|line| format!("{words}: {line}")));
    }
    for peer in node.peers()? {
        let peer = crate::node::WgPeer { latest_handshake: 0, received: 0, sent: 0, ..peer };
        lines.push(format!("{peer:?}"));
    }
    lines.sort();
    Ok(lines)
}

/// What is in one of two sorted lists more often than in the other.
pub fn difference(before: &[String], after: &[String]) -> Vec<String> {
    let more = |sign: &str, a: &[String], b: &[String]| -> Vec<String> {
        let count = |list: &[String], line: &String| list.iter().filter(|l| *l == line).count();
        a.iter().filter(|line| count(a, line) > count(b, line)).map(|line| format!("{sign} {line}")).collect()
    };
    [more("-", before, after), more("+", after, before)].concat()
}

/// Events of the API with this reason.
///
/// # Errors
/// The API refused the list.
pub fn events(lab: &Lab, reason: &str) -> Result<Vec<Value>> {
    let all: Vec<Value> = lab.api().store().list("events", None)?;
    Ok(all.into_iter().filter(|event| event["reason"] == reason).collect())
}
