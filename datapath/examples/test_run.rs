//! Nanoseconds per packet of each program by `BPF_PROG_TEST_RUN`, as rows of a bench on standard output, in JSON. Needs root.
//!
//! A redirect is not done in a test run, and no device is met: this is what the programs themselves cost. A hit is the same
//! packet again and again within one call; a miss is a packet of a flow that is not known yet, a call for each, and so are
//! packets that a program translates (it would find its own work the second time). Each kind has its floor, a program that
//! does nothing, measured alike.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program for people")]

use std::net::{IpAddr, Ipv4Addr};

use aya::Ebpf;
use aya::programs::SchedClassifier;
use datapath::abi;
use xtask::bench::Row;

#[path = "../tests/support/mod.rs"]
mod support;

use support::bench::{Bench, prefix};
use support::kernel::{self, Kernel};
use support::names::Family;
use support::policy::port_key;
use support::{object, text};

/// How many rules, and how many services beside the one that is asked, are loaded.
#[derive(Clone, Copy, Debug)]
struct Load {
    rules: u32,
    services: u32,
}

const LOADS: [Load; 4] = [
    Load { rules: 0, services: 0 },
    Load { rules: 10_000, services: 0 },
    Load { rules: 0, services: 10_000 },
    Load { rules: 10_000, services: 10_000 },
];

impl Load {
    fn name(self) -> String {
        format!("{} rules, {} services", self.rules, self.services)
    }
}

/// How a packet is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// The same within one call.
    Again,
    /// The same, a call for each.
    Each,
    /// Each time from another port.
    Fresh,
}

/// What is measured: name, program's place, packet, outcome. `PORT` is the client's.
struct Case {
    name: &'static str,
    /// Plays before it, once.
    before: &'static str,
    place: &'static str,
    packet: &'static str,
    outcome: &'static str,
    way: Way,
}

const fn case(
    name: &'static str,
    before: &'static str,
    [place, packet, outcome]: [&'static str; 3],
    way: Way,
) -> Case {
    Case { name, before, place, packet, outcome, way }
}

const CASES: [Case; 14] = [
    case(
        "from_pod hit, to a pod here",
        "a | tcp a:1000 > b:80 syn | to b",
        ["a", "tcp a:1000 > b:80 ack", "to b"],
        Way::Again,
    ),
    case("from_pod miss, to a pod here", "", ["a", "tcp a:PORT > b:80 syn", "to b"], Way::Fresh),
    case(
        "from_pod hit, into the tunnel",
        "a | tcp a:1000 > x:80 syn | tunnel",
        ["a", "tcp a:1000 > x:80 ack", "tunnel"],
        Way::Again,
    ),
    case("from_pod miss, into the tunnel", "", ["a", "tcp a:PORT > x:80 syn", "tunnel"], Way::Fresh),
    case(
        "from_pod hit, to a service",
        "a | tcp a:1001 > svc:80 syn | to b | tcp a:1001 > b:80 syn",
        ["a", "tcp a:1001 > svc:80 ack", "to b"],
        Way::Each,
    ),
    case(
        "from_pod hit, a service's answer",
        "a | tcp a:1002 > svc:80 syn | to b | tcp a:1002 > b:80 syn",
        ["b", "tcp b:80 > a:1002 ack", "to a"],
        Way::Each,
    ),
    case("from_pod miss, to a service", "", ["a", "tcp a:PORT > svc:80 syn", "to b"], Way::Fresh),
    case(
        "to_pod hit",
        "uplink > a | tcp w:1000 > a:80 syn | pass",
        ["uplink > a", "tcp w:1000 > a:80 ack", "pass"],
        Way::Again,
    ),
    case("to_pod miss", "", ["uplink > a", "tcp w:PORT > a:80 syn", "pass"], Way::Fresh),
    case(
        "from_tunnel hit",
        "slot | tcp x:1000 > b:80 syn | to b",
        ["slot", "tcp x:1000 > b:80 ack", "to b"],
        Way::Again,
    ),
    case("from_tunnel miss", "", ["slot", "tcp x:PORT > b:80 syn", "to b"], Way::Fresh),
    case("from_hold miss", "", ["hold", "tcp x:PORT > b:80 syn", "to b"], Way::Fresh),
    case("guard_in", "", ["in", "udp n2:51880 > n1:51880 payload 1400", "pass"], Way::Again),
    case("guard_out", "", ["out", "udp n1:51880 > n2:51880 payload 1400", "pass"], Way::Again),
];

/// Ports of clients that no other case uses.
const PORTS: std::ops::Range<u16> = 1100..65_000;
/// Runs of one call where the packet is the same.
const REPEAT: u32 = 5_000;
/// Calls of a round where each has its own.
const CALLS: usize = 150;

/// Sizes as the agent has them.
fn sizes() -> Vec<(&'static str, u32)> {
    let c = datapath::Capacities::default();
    vec![
        ("addresses", c.addresses),
        ("blocks", c.blocks),
        ("rows", c.rows),
        ("ports", c.ports),
        ("endpoints", c.endpoints),
        ("locals", c.locals),
        ("flows", c.flows),
        ("fragments", c.fragments),
        ("frontends", c.frontends),
        ("places", c.places),
        ("backends", c.backends),
        ("affinities", c.affinities),
        ("events", c.events),
    ]
}

/// One set of maps, filled.
struct Subject {
    load: Load,
    bench: Bench,
    port: u16,
}

impl Subject {
    fn new(load: Load) -> Self {
        let mut bench = Bench::with(Kernel::load_with(&sizes()));
        bench.enter();
        bench.reset(Family::V4);
        if load.rules > 0 {
            for pod in ["a", "b"] {
                rules(&mut bench, pod, load.rules);
            }
        }
        for number in 0..load.services {
            service(&mut bench, number);
        }
        bench.play("service svc:80/tcp = b:80");
        Self { load, bench, port: PORTS.start }
    }

    fn prepare(&mut self) {
        self.bench.enter();
        for case in &CASES {
            self.bench.play(case.before);
        }
    }

    /// The packet of a case as bytes, from the next port where it has to be another one.
    fn frame(&mut self, case: &Case) -> (&'static str, kernel::Context, Vec<u8>) {
        let mut words = case.packet.to_owned();
        if case.way == Way::Fresh {
            self.port = if self.port + 1 < PORTS.end { self.port + 1 } else { PORTS.start };
            words = words.replace("PORT", &self.port.to_string());
        }
        self.bench.place(case.place, &text::packet(&words, Family::V4))
    }

    /// Nanoseconds per packet, and of the program that does nothing.
    fn measure(&mut self, case: &Case, empty: &SchedClassifier) -> [f64; 2] {
        self.bench.enter();
        let (program, context, frame) = self.frame(case);
        let ran = self.bench.run(program, &frame, context);
        assert_eq!(ran.outcome, case.outcome, "{} with {:?}", case.name, self.load);
        if case.way == Way::Again {
            let took = kernel::time(self.bench.kernel.program(program), &frame, context, REPEAT);
            return [took, kernel::time(empty, &frame, context, REPEAT)];
        }
        let mut took = Vec::with_capacity(CALLS);
        let mut floor = Vec::with_capacity(CALLS);
        for _ in 0..CALLS {
            let (program, context, frame) = self.frame(case);
            took.push(kernel::time(self.bench.kernel.program(program), &frame, context, 1));
            floor.push(kernel::time(empty, &frame, context, 1));
        }
        // The ring has a reader, and events that find it full would be cheap.
        self.bench.kernel.events();
        [middle(took), middle(floor)]
    }
}

fn middle(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// `count` rules for each direction of a pod, each about an address and a port of its own, beside those for whom it talks to.
fn rules(bench: &mut Bench, pod: &str, count: u32) {
    const PEERS: [&str; 4] = ["a", "b", "x", "world"];
    let each = |direction| PEERS.map(|peer| format!(", {direction} {peer} tcp/80")).concat();
    bench.policy(pod, &format!("in deny, out deny{}{}", each("in"), each("out")));
    let table = bench.sides[pod].table;
    for number in 0..count {
        let class = abi::HW_CLASS_FIRST + 1000 + number;
        let net = prefix(&Ipv4Addr::from(0xc612_0000 + number).to_string());
        bench.kernel.put_prefix("blocks", net.bits, net.addr.w, abi::Block { class: [class; 2] });
        let function = 1_000_000 + number;
        let port = 10_000 + u16::try_from(number % 50_000).expect("below 50,000");
        bench.kernel.put_prefix("ports", 64, port_key(function, 6, port), number << 1 | abi::HW_ALLOW);
        for direction in [abi::HW_INGRESS, abi::HW_EGRESS] {
            bench.kernel.put("rows", abi::RowKey { table, class, direction }, function);
        }
    }
}

/// A service that nobody asks, with one backend.
fn service(bench: &mut Bench, number: u32) {
    let ends = [0x0a60_8000_u32, 0x0a80_0000].map(|net| IpAddr::from(Ipv4Addr::from(net + number)));
    let [addr, backend] = ends.map(abi::Addr::from);
    let (id, place) = (2_000_000 + number, 1_000_000 + number);
    bench.kernel.put("backends", id, abi::Backend { addr: backend, port: 8080.into(), flags: 0, pad: 0 });
    bench.kernel.set("places", place, id);
    let key = abi::FrontendKey { addr, port: 80.into(), protocol: 6, pad: 0 };
    let frontend = abi::Frontend { base: place, count: 1, service: id, ..abi::Frontend::default() };
    bench.kernel.put("frontends", key, frontend);
}

fn main() {
    let rounds = std::env::args().nth(1).map_or(30, |rounds| rounds.parse().expect("test_run ROUNDS"));
    let source = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/empty.bpf.c");
    let mut floor = Ebpf::load(&object::compile_source(&source)).expect("the empty program can be read");
    let empty: &mut SchedClassifier =
        floor.program_mut("empty").expect("it is there").try_into().expect("it is a classifier");
    empty.load().expect("the kernel takes it");
    let empty = &*empty;

    let mut subjects = LOADS.map(Subject::new);
    for subject in &mut subjects {
        subject.prepare();
    }
    // By case and load; the floor comes last.
    let mut values = vec![[const { Vec::new() }; LOADS.len() + 1]; CASES.len()];
    // The first round fills caches.
    for round in 0..=rounds {
        for (case, values) in CASES.iter().zip(&mut values) {
            let mut floors = 0.0;
            for turn in 0..LOADS.len() {
                let at = (turn + round) % LOADS.len();
                let [took, floor] = subjects[at].measure(case, empty);
                floors += floor;
                if round > 0 {
                    values[at].push(took);
                }
            }
            if round > 0 {
                values[LOADS.len()].push(floors / f64::from(u8::try_from(LOADS.len()).expect("few")));
            }
        }
    }
    let mut rows: Vec<Row> = Vec::new();
    for (case, values) in CASES.iter().zip(&values) {
        for (load, took) in LOADS.iter().zip(values) {
            let row = Row::of("datapath", case.name, &load.name(), "ns", took);
            rows.extend(row.map(|row| row.against(&LOADS[0].name(), took, &values[0])));
        }
        rows.extend(Row::of(
            "datapath",
            case.name,
            "a program that does nothing",
            "ns",
            &values[LOADS.len()],
        ));
    }
    println!("{}", serde_json::to_string_pretty(&rows).expect("rows are JSON"));
    eprint!("{}", xtask::bench::table(&rows));
}
