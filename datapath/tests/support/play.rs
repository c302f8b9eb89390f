//! Cases as tables: who sees which packet, and what becomes of it.
//!
//! ```text
//! policy b: in deny, in a allow
//! a        | tcp a:40000 > b:80 syn      | to b
//! b        | tcp b:80 > a:40000 syn,ack  | to a
//! asked egress 1, ingress-fast 1
//! ```
//!
//! A row is a place, a packet, an outcome and, where the packet comes out changed, what it has become. Places: `a` (sent by that
//! pod), `slot` (out of the tunnel), `hold` (back from the device that holds), `uplink > b` (delivered by the stack, which had
//! it from there; `host > b`: the node's own), `in` and `out` (over the uplink). A `#` begins a comment.

use std::net::IpAddr;

use datapath::abi;

use super::bench::{Bench, Done, host_mac, pod_mac, prefix};
use super::kernel::Context;
use super::names::{Family, LOCAL_PODS, address};
use super::packet::{Body, Packet};
use super::read;
use super::text::{packet, summary};

impl Bench {
    /// Plays a case. Panics at the first row that turns out otherwise, naming it.
    pub(crate) fn play(&mut self, case: &str) {
        for (number, line) in case.lines().enumerate() {
            let line = line.split('#').next().unwrap_or_default().trim();
            if line.is_empty() {
                continue;
            }
            let what = format!("line {} of the case, {:?}: {line:?}", number + 1, self.family);
            if line.contains('|') { self.row(line, &what) } else { self.command(line, &what) }
        }
    }

    fn row(&mut self, line: &str, what: &str) {
        let columns: Vec<&str> = line.split('|').map(str::trim).collect();
        let (place, text, expected) = (columns[0], columns[1], columns[2]);
        let sent = packet(text, self.family);
        let done = self.send(place, &sent);
        assert_eq!(done.outcome, expected, "{what}");
        if expected.starts_with("drop") || !sent.tags.is_empty() {
            assert_eq!(columns.len(), 3, "{what}: nothing comes out that could be looked at");
            return;
        }
        let wanted = columns.get(3).map_or_else(|| sent.clone(), |text| packet(text, self.family));
        let seen = read::frame(&done.frame).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(seen.text, summary(&wanted), "{what}");
        assert_eq!(seen.ttl, sent.ttl, "{what}: from pod to pod is one hop");
        assert!(expected == "reject" || done.mark == 0, "{what}: mark {:#x}", done.mark);
    }

    /// Lets the program of a place see a packet.
    pub(crate) fn send(&mut self, place: &str, sent: &Packet) -> Done {
        let (program, context, frame) = self.place(place, sent);
        self.run(program, &frame, context)
    }

    /// Which program sees a packet at a place, in which context and as which bytes.
    pub(crate) fn place(&self, place: &str, sent: &Packet) -> (&'static str, Context, Vec<u8>) {
        let from = |name: &str, program| {
            let frame = sent.frame([2, 0, 0, 0, 9, 1], [2, 0, 0, 0, 9, 2]);
            (program, Context { ifindex: self.device(name), ..Context::default() }, frame)
        };
        if let Some((source, pod)) = place.split_once(" > ") {
            let ingress_ifindex = if source == "host" { 0 } else { self.device(source) };
            let context = Context { ifindex: self.device(pod), ingress_ifindex, mark: 0 };
            return ("to_pod", context, sent.frame(host_mac(pod), pod_mac(pod)));
        }
        match place {
            "slot" => from("slot", "from_tunnel"),
            "hold" => from("hold", "from_hold"),
            "in" => from("uplink", "guard_in"),
            "out" => from("uplink", "guard_out"),
            pod if LOCAL_PODS.contains(&pod) => {
                let context = Context { ifindex: self.device(pod), ..Context::default() };
                ("from_pod", context, sent.frame(pod_mac(pod), host_mac(pod)))
            }
            other => panic!("there is no place {other:?}"),
        }
    }

    fn command(&mut self, line: &str, what: &str) {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        match word {
            "policy" | "stage" => {
                let (pod, text) = rest.split_once(':').unwrap_or_else(|| panic!("{what}: no colon"));
                if word == "policy" { self.policy(pod, text) } else { self.stage(pod, text) }
            }
            "epoch" => self.next_epoch(),
            "settle" => self.settle(rest),
            "gone" => self.gone(rest),
            "forget" => self.forget(rest),
            "know" => {
                for family in [Family::V4, Family::V6] {
                    self.know(rest, super::bench::class(rest), family);
                }
            }
            "slow" => self.put_endpoint(rest, abi::HW_ENDPOINT_SLOW),
            "unplug" => {
                self.kernel.remove::<u32, abi::Endpoint>("endpoints", self.device(rest));
            }
            "holding" => self.set_state(self.device("hold")),
            "asked" => self.asked(rest, what),
            "counted" => self.counted_are(rest, what),
            "service" => self.service(rest),
            "whole" => self.whole(rest),
            "exempt" => {
                let net = prefix(rest);
                self.kernel.put_prefix("exempt", net.bits, net.addr.w, 1_u32);
            }
            "age" => {
                let (seconds, text) =
                    rest.split_once(' ').unwrap_or_else(|| panic!("{what}: age SECONDS PACKET"));
                self.age(seconds.parse().expect("seconds"), text, what);
            }
            _ => panic!("{what}: no such command"),
        }
    }

    /// How often policy was asked since the last time, by which way: those named, and no others.
    fn asked(&mut self, rest: &str, what: &str) {
        let moved = self.counted();
        let ways = ["egress", "ingress-fast", "ingress-tunnel", "ingress-stack", "ingress-host"];
        let seen: Vec<_> =
            ways.iter().filter_map(|way| moved.get(way).map(|n| format!("{way} {n}"))).collect();
        let wanted: Vec<_> =
            rest.split(',').map(str::trim).filter(|item| !item.is_empty() && *item != "nothing").collect();
        assert_eq!(seen, wanted, "{what}: {moved:?}");
    }

    /// How often these counters moved since the last time.
    fn counted_are(&mut self, rest: &str, what: &str) {
        let moved = self.counted();
        for item in rest.split(',').map(str::trim) {
            let (name, wanted) = item.split_once(' ').unwrap_or_else(|| panic!("{what}: NAME NUMBER"));
            let known = abi::CountIndex::ALL.iter().any(|count| count.name() == name);
            assert!(known, "{what}: no counter is called {name:?}");
            assert_eq!(moved.get(name).copied().unwrap_or(0).to_string(), wanted, "{what}: {moved:?}");
        }
    }

    /// The flow of a packet, as it is on the wire, was not used for so long.
    fn age(&mut self, seconds: u64, text: &str, what: &str) {
        let (key, mut flow) = self.flow(text).unwrap_or_else(|| panic!("{what}: no such flow"));
        flow.until = flow.until.saturating_sub(seconds * 1_000_000_000);
        self.kernel.put("flows", key, flow);
    }

    /// What is remembered of the flow that a packet, as it is on the wire after translation, belongs to.
    pub(crate) fn flow(&self, text: &str) -> Option<(abi::Tuple, abi::Flow)> {
        let (one, other) = self.tuples(text, abi::HW_SCOPE_FLOW);
        let find = |key| Some((key, self.kernel.get::<_, abi::Flow>("flows", key)?));
        match (find(one), find(other)) {
            (Some(_), Some(_)) => panic!("two entries for {text:?}"),
            (found, None) | (None, found) => found,
        }
    }

    /// What is remembered of the words that a client said.
    pub(crate) fn said(&self, text: &str) -> Option<(abi::Tuple, abi::Flow)> {
        let (key, _) = self.tuples(text, abi::HW_SCOPE_SERVICE);
        Some((key, self.kernel.get("flows", key)?))
    }

    /// The key of a packet, and of one the other way.
    fn tuples(&self, text: &str, scope: u8) -> (abi::Tuple, abi::Tuple) {
        let packet = packet(text, self.family);
        let (sport, dport) = match packet.body {
            Body::Tcp { sport, dport, .. } | Body::Udp { sport, dport, .. } | Body::Sctp { sport, dport } => {
                (sport, dport)
            }
            Body::Echo { id, answer } => {
                if answer {
                    (0, id)
                } else {
                    (id, 0)
                }
            }
            Body::Error { .. } | Body::Icmp { .. } | Body::Other { .. } => (0, 0),
        };
        let tuple = |src: IpAddr, dst: IpAddr, sport: u16, dport: u16| abi::Tuple {
            src: src.into(),
            dst: dst.into(),
            sport: sport.into(),
            dport: dport.into(),
            protocol: packet.protocol(),
            scope,
            pad: 0,
        };
        (tuple(packet.src, packet.dst, sport, dport), tuple(packet.dst, packet.src, dport, sport))
    }

    /// `svc:80/tcp = b:8080 c:8080 affinity 60 drop`: a service. Without ends it has none.
    fn service(&mut self, text: &str) {
        let (front, ends) = text.split_once('=').expect("SERVICE = BACKENDS");
        let (front, protocol) = front.trim().split_once('/').expect("ADDRESS:PORT/PROTOCOL");
        let probe = packet(&format!("{protocol} a:1 > {front}"), self.family);
        let (addr, port) = ends_of(&probe);
        let mut words = ends.split_whitespace();
        let mut frontend = abi::Frontend { service: self.number(), ..abi::Frontend::default() };
        let mut backends = Vec::new();
        while let Some(word) = words.next() {
            match word {
                "affinity" => frontend.affinity = words.next().and_then(|n| n.parse().ok()).expect("seconds"),
                "drop" => frontend.flags |= abi::HW_FRONT_DROP,
                end => backends.push(self.backend(end, protocol)),
            }
        }
        frontend.base = self.place;
        frontend.count = u32::try_from(backends.len()).expect("few");
        for backend in backends {
            self.kernel.set("places", self.place, backend);
            self.place += 1;
        }
        let key = abi::FrontendKey { addr, port: port.into(), protocol: probe.protocol(), pad: 0 };
        self.kernel.put("frontends", key, frontend);
    }

    /// All ports of an address are its services', also those that none serves.
    fn whole(&mut self, name: &str) {
        let key = abi::FrontendKey { addr: self.addr(name), ..abi::FrontendKey::default() };
        let frontend = abi::Frontend { flags: abi::HW_FRONT_ADDRESS, ..abi::Frontend::default() };
        self.kernel.put("frontends", key, frontend);
    }

    /// A new backend, for instance `b:8080`. Its number.
    pub(crate) fn backend(&mut self, end: &str, protocol: &str) -> u32 {
        let (addr, port) = ends_of(&packet(&format!("{protocol} a:1 > {end}"), self.family));
        let number = self.number();
        self.kernel.put("backends", number, abi::Backend { addr, port: port.into(), flags: 0, pad: 0 });
        number
    }

    pub(crate) fn addr(&self, name: &str) -> abi::Addr {
        address(name, self.family).into()
    }
}

fn ends_of(packet: &Packet) -> (abi::Addr, u16) {
    match packet.body {
        Body::Tcp { dport, .. } | Body::Udp { dport, .. } | Body::Sctp { dport, .. } => {
            (packet.dst.into(), dport)
        }
        Body::Echo { .. } | Body::Error { .. } | Body::Icmp { .. } | Body::Other { .. } => {
            panic!("only TCP, UDP and SCTP have ports")
        }
    }
}
