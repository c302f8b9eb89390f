//! The tests' small cluster in a network namespace: five pods of this node, slots, uplinks, and the real programs beside.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Mutex;

use datapath::abi;
use ipnet::IpNet;

use super::kernel::{Context, Kernel, OK, REDIRECT, SHOT};
use super::names::{Family, GUARDED, LOCAL_PODS, NODES, OWN, REMOTE_PODS, address};
use super::packet::{ETH_IP4, ETH_IP6, ETHERNET};
use super::stage::Stage;
pub(crate) use super::stage::{host_mac, pod_mac};

/// At this epoch every test begins.
pub(crate) const EPOCH: u32 = 10;

/// A namespace with devices, and programs with maps.
pub(crate) struct Bench {
    stage: Stage,
    pub(crate) kernel: Kernel,
    pub(crate) epoch: u32,
    /// Sides of the pods' policy as they are in the bank in use.
    pub(crate) sides: BTreeMap<String, abi::Side>,
    /// Numbers not used yet for tables, port functions, backends and services.
    pub(crate) fresh: u32,
    /// First place not used yet.
    pub(crate) place: u32,
    before: Vec<u64>,
    pub(crate) family: Family,
}

/// Benches that wait for their next test: programs are verified once, not once for each.
static IDLE: Mutex<Vec<Bench>> = Mutex::new(Vec::new());

/// Runs a test in its namespace, once for each family.
pub(crate) fn both(test: impl Fn(&mut Bench)) {
    for family in [Family::V4, Family::V6] {
        one(family, &test);
    }
}

/// Runs a test in its namespace, in one family.
pub(crate) fn one(family: Family, test: impl FnOnce(&mut Bench)) {
    let idle = IDLE.lock().unwrap_or_else(std::sync::PoisonError::into_inner).pop();
    let mut bench = idle.unwrap_or_else(Bench::build);
    bench.enter();
    bench.reset(family);
    test(&mut bench);
    // One that failed is not used again.
    IDLE.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(bench);
}

impl Bench {
    fn build() -> Self {
        Self::with(Kernel::load())
    }

    /// A namespace of its own for these programs; [`Bench::enter`] it before they run.
    pub(crate) fn with(kernel: Kernel) -> Self {
        let stage = Stage::new();
        let (sides, before, family) = (BTreeMap::new(), kernel.counters(), Family::V4);
        Self { stage, kernel, epoch: EPOCH, sides, fresh: 100, place: 0, before, family }
    }

    /// Moves the calling thread to the node.
    pub(crate) fn enter(&self) {
        self.stage.enter();
    }

    /// A cluster without policies and services, at [`EPOCH`].
    pub(crate) fn reset(&mut self, family: Family) {
        self.kernel.reset();
        self.family = family;
        self.epoch = EPOCH;
        self.fresh = 100;
        self.place = 0;
        self.sides.clear();
        let state = abi::State { epoch: EPOCH, flags: abi::HW_STATE_FLOWS, hold: 0, pad: 0 };
        self.kernel.set("state", 0, state);
        for net in GUARDED.map(prefix) {
            self.kernel.put_prefix("guarded", net.bits, net.addr.w, 1_u32);
            let unknown = abi::Block { class: [abi::HW_CLASS_UNKNOWN; 2] };
            self.kernel.put_prefix("blocks", net.bits, net.addr.w, unknown);
        }
        for family in [Family::V4, Family::V6] {
            for name in LOCAL_PODS.iter().chain(&REMOTE_PODS).chain(&NODES) {
                self.know(name, class(name), family);
            }
            for name in OWN {
                self.kernel.put("locals", key(name, family), abi::Local::default());
            }
            for pod in LOCAL_PODS {
                let local = abi::Local { ifindex: self.device(pod), flags: 0 };
                self.kernel.put("locals", key(pod, family), local);
            }
        }
        for pod in LOCAL_PODS {
            self.put_endpoint(pod, 0);
            self.kernel.put("devices", self.device(pod), abi::HW_DEVICE_POD);
        }
        for slot in ["slot", "slot1"] {
            self.kernel.put("devices", self.device(slot), abi::HW_DEVICE_SLOT);
        }
        self.kernel.put("devices", self.device("hold"), abi::HW_DEVICE_HOLD);
        self.kernel.put("devices", self.device("uplink"), abi::HW_DEVICE_UPLINK);
        self.before = self.kernel.counters();
    }

    /// Index of a device; pods give the host's end of their link.
    pub(crate) fn device(&self, name: &str) -> u32 {
        self.stage.device(name)
    }

    /// Writes an endpoint whose policy allows everything, or what [`Bench::sides`] says of it.
    pub(crate) fn put_endpoint(&mut self, pod: &str, flags: u32) {
        let open = abi::Side { table: 1, fallback: [abi::HW_FN_ALLOW; 2], flags: 0 };
        let side = self.sides.get(pod).copied().unwrap_or(open);
        let (ip4, ip6) = (key(pod, Family::V4), key(pod, Family::V6));
        let (pod_mac, host_mac) = (pod_mac(pod), host_mac(pod));
        let endpoint = abi::Endpoint { ip4, ip6, pod_mac, host_mac, flags, side: [side; 2] };
        self.kernel.put("endpoints", self.device(pod), endpoint);
    }

    /// Gives an address a class, in both banks.
    pub(crate) fn know(&mut self, name: &str, class: u32, family: Family) {
        let flags = if NODES.contains(&name) { abi::HW_ADDRESS_NODE } else { 0 };
        self.kernel.put("addresses", key(name, family), abi::Address { class: [class; 2], flags, pad: 0 });
    }

    /// Writes flags and the device that holds packets.
    pub(crate) fn set_state(&mut self, hold: u32) {
        let state = abi::State { epoch: self.epoch, flags: abi::HW_STATE_FLOWS, hold, pad: 0 };
        self.kernel.set("state", 0, state);
    }

    /// The next packet meets the other bank.
    pub(crate) fn next_epoch(&mut self) {
        self.epoch += 1;
        self.set_state(0);
    }

    /// Runs a program on a frame, and holds it against what is true of all of them: a drop is counted once and told once with
    /// the same reason, and nothing else is a drop.
    pub(crate) fn run(&mut self, program: &str, frame: &[u8], context: Context) -> Done {
        self.kernel.events();
        let before = self.kernel.counters();
        let ran = self.kernel.run(program, frame, context);
        let after = self.kernel.counters();
        let moved = |index: u32| {
            let index = usize::try_from(index).expect("invariant: 64 bits");
            after[index] - before[index]
        };
        let drops: Vec<abi::DropReason> = abi::DropReason::ALL
            .iter()
            .copied()
            .filter(|reason| moved(abi::counters::HW_COUNT_DROP + u32::from(*reason as u8)) > 0)
            .collect();
        let events = self.kernel.events();
        let told: Vec<_> = events.iter().filter(|event| event.kind == abi::HW_EVENT_DROP).collect();
        let what = format!("{program} with {context:?} of {frame:02x?} said {}: {events:?}", ran.verdict);
        let outcome = match ran.verdict {
            SHOT => {
                assert_eq!(drops.len(), 1, "a drop is counted once, {drops:?}: {what}");
                assert_eq!(told.len(), 1, "a drop is told once: {what}");
                assert_eq!(abi::DropReason::from_number(told[0].reason), Some(drops[0]), "{what}");
                format!("drop {}", drops[0])
            }
            OK if ran.mark & abi::HW_MARK_REJECT != 0 => "reject".to_owned(),
            OK if program == "from_pod" || program == "from_hold" => "stack".to_owned(),
            OK => "pass".to_owned(),
            REDIRECT => {
                let ways = [
                    (abi::CountIndex::ToPeer, "peer"),
                    (abi::CountIndex::ToTunnel, "tunnel"),
                    (abi::CountIndex::Held, "held"),
                ];
                let gone: Vec<_> = ways.iter().filter(|(count, _)| moved(*count as u32) > 0).collect();
                assert_eq!(gone.len(), 1, "a redirect is counted once: {what}");
                gone[0].1.to_owned()
            }
            other => panic!("verdict {other}: {what}"),
        };
        assert!(ran.verdict == SHOT || (drops.is_empty() && told.is_empty()), "{drops:?} and passed: {what}");
        let outcome = if outcome == "peer" { receiver(&ran.frame) } else { outcome };
        Done { outcome, frame: ran.frame, mark: ran.mark, events }
    }

    /// How often each counter moved since the last call, those that did not move left out.
    pub(crate) fn counted(&mut self) -> BTreeMap<&'static str, u64> {
        let now = self.kernel.counters();
        let moved = abi::CountIndex::ALL.iter().filter_map(|count| {
            let index = usize::try_from(*count as u32).expect("invariant: 64 bits");
            let by = now[index] - self.before[index];
            (by > 0).then_some((count.name(), by))
        });
        let moved = moved.collect();
        self.before = now;
        moved
    }

    /// Nanoseconds of the clock that the programs read.
    pub(crate) fn now() -> u64 {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        u64::try_from(now.tv_sec).expect("after boot") * 1_000_000_000
            + u64::try_from(now.tv_nsec).expect("after boot")
    }
}

/// "to b": whose link the addresses in the Ethernet header belong to.
fn receiver(frame: &[u8]) -> String {
    let pod = LOCAL_PODS.iter().find(|pod| frame[..6] == pod_mac(pod) && frame[6..12] == host_mac(pod));
    let pod = pod.unwrap_or_else(|| panic!("delivered to nobody: {:02x?}", &frame[..ETHERNET]));
    let right = if frame[ETHERNET] >> 4 == 4 { ETH_IP4 } else { ETH_IP6 };
    assert_eq!(frame[12..ETHERNET], right.to_be_bytes(), "EtherType of what is delivered");
    format!("to {pod}")
}

/// What a program did with a frame.
#[derive(Debug)]
pub(crate) struct Done {
    /// `to b`, `tunnel`, `stack`, `pass`, `held`, `reject`, `drop REASON`.
    pub(crate) outcome: String,
    pub(crate) frame: Vec<u8>,
    pub(crate) mark: u32,
    pub(crate) events: Vec<abi::Event>,
}

/// Key of an address in the maps.
pub(crate) fn key(name: &str, family: Family) -> abi::Addr {
    address(name, family).into()
}

pub(crate) fn prefix(text: &str) -> abi::Prefix {
    let net: IpNet =
        text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from)).expect("a prefix or an address");
    net.into()
}

/// The class that an address has in a new bench: each name its own.
pub(crate) fn class(name: &str) -> u32 {
    match name {
        "world" => abi::HW_CLASS_WORLD,
        "unknown" => abi::HW_CLASS_UNKNOWN,
        _ => {
            let all = LOCAL_PODS.iter().chain(&REMOTE_PODS).chain(&NODES);
            let at = all.into_iter().position(|known| *known == name);
            let at = at.unwrap_or_else(|| panic!("{name:?} has no class of its own"));
            abi::HW_CLASS_FIRST + u32::try_from(at).expect("few names")
        }
    }
}
