//! The real programs and maps in the kernel, run by `BPF_PROG_TEST_RUN`.
//!
//! What the kernel takes (`net/bpf/test_run.c`): frames always begin with an Ethernet header, and a
//! whole IP header if that says that there is one (since 6.18); of `__sk_buff` it
//! takes `mark`, `priority`, `ingress_ifindex`, `ifindex` (of a device of the caller's network namespace), `cb`, `tstamp`,
//! `wire_len`, `gso_*`, `hwtstamp`, and refuses anything else that is not zero. A redirect is not done: its verdict is 7.

use aya::maps::lpm_trie::Key;
use aya::maps::{Array, HashMap, LpmTrie, Map, MapData, PerCpuArray, RingBuf};
use aya::programs::{SchedClassifier, TestRun, TestRunOptions};
use aya::{Ebpf, EbpfLoader, Pod};
use datapath::abi;

use super::object;

/// Sizes that tests can fill.
const SIZES: [(&str, u32); 13] = [
    ("addresses", 4096),
    ("blocks", 4096),
    ("rows", 65536),
    ("ports", 65536),
    ("endpoints", 64),
    ("locals", 256),
    ("flows", 4096),
    ("fragments", 256),
    ("frontends", 1024),
    ("places", 65536),
    ("backends", 1024),
    ("affinities", 1024),
    ("events", 1 << 16),
];

const PROGRAMS: [&str; 6] = ["from_pod", "to_pod", "from_tunnel", "from_hold", "guard_in", "guard_out"];

/// `TC_ACT_UNSPEC` (left to the stack), `TC_ACT_SHOT`, `TC_ACT_REDIRECT`.
pub(crate) const OK: u32 = u32::MAX;
pub(crate) const SHOT: u32 = 2;
pub(crate) const REDIRECT: u32 = 7;

/// What is said of a frame beside its bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Context {
    pub(crate) ifindex: u32,
    /// Where it came from; 0: this node itself made it.
    pub(crate) ingress_ifindex: u32,
    pub(crate) mark: u32,
}

/// Size of `struct __sk_buff`, and places in it.
const SK_BUFF: usize = 192;
const MARK: usize = 8;
const INGRESS_IFINDEX: usize = 36;
const IFINDEX: usize = 40;

/// What a program did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ran {
    pub(crate) verdict: u32,
    pub(crate) frame: Vec<u8>,
    pub(crate) mark: u32,
}

/// Loaded programs with maps of their own.
pub(crate) struct Kernel {
    ebpf: Ebpf,
    events: RingBuf<MapData>,
}

fn is_map<T, E: std::fmt::Display>(made: Result<T, E>, name: &str) -> T {
    made.unwrap_or_else(|error| panic!("map {name}: {error}"))
}

/// Runs one program on one frame.
pub(crate) fn run(program: &SchedClassifier, frame: &[u8], context: Context) -> Ran {
    let before = sk_buff(context);
    let mut after = [0_u8; SK_BUFF];
    let mut out = vec![0_u8; frame.len() + 256];
    let ran = program.test_run(TestRunOptions {
        data_in: Some(frame),
        data_out: Some(&mut out),
        ctx_in: Some(&before),
        ctx_out: Some(&mut after),
        ..TestRunOptions::default()
    });
    let ran = ran.unwrap_or_else(|error| panic!("test run with {context:?} of {frame:02x?}: {error:#?}"));
    out.truncate(usize::try_from(ran.data_size_out).expect("invariant: 64 bits"));
    let mark = u32::from_ne_bytes(after[MARK..MARK + 4].try_into().expect("invariant: four bytes"));
    Ran { verdict: ran.return_value, frame: out, mark }
}

/// Runs one program many times on one frame, which keeps what a run has changed of it. Nanoseconds of a run on average.
pub(crate) fn time(program: &SchedClassifier, frame: &[u8], context: Context, repeat: u32) -> f64 {
    let before = sk_buff(context);
    let ran = program.test_run(TestRunOptions {
        data_in: Some(frame),
        ctx_in: Some(&before),
        repeat,
        ..TestRunOptions::default()
    });
    let ran = ran.unwrap_or_else(|error| panic!("test run with {context:?} of {frame:02x?}: {error:#?}"));
    ran.duration.as_secs_f64() * 1e9
}

fn sk_buff(context: Context) -> [u8; SK_BUFF] {
    let mut bytes = [0_u8; SK_BUFF];
    for (at, value) in
        [(MARK, context.mark), (INGRESS_IFINDEX, context.ingress_ifindex), (IFINDEX, context.ifindex)]
    {
        bytes[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    }
    bytes
}

impl Kernel {
    /// Loads the object, with maps as large as tests need.
    pub(crate) fn load() -> Self {
        Self::load_with(&SIZES)
    }

    /// Loads the object with these sizes of maps.
    pub(crate) fn load_with(sizes: &[(&str, u32)]) -> Self {
        let mut loader = EbpfLoader::new();
        for (name, size) in sizes {
            loader.map_max_entries(name, *size);
        }
        let mut ebpf = loader.load(object::bytes()).expect("the object can be read");
        for name in PROGRAMS {
            let program: &mut SchedClassifier = ebpf
                .program_mut(name)
                .unwrap_or_else(|| panic!("no program {name}"))
                .try_into()
                .expect("all programs are classifiers");
            program.load().unwrap_or_else(|error| panic!("the kernel takes {name}: {error:#?}"));
        }
        let events = ebpf.take_map("events").expect("there is a ring of events");
        Self { ebpf, events: is_map(RingBuf::try_from(events), "events") }
    }

    /// Runs one program on one frame.
    pub(crate) fn run(&self, program: &str, frame: &[u8], context: Context) -> Ran {
        run(self.program(program), frame, context)
    }

    /// A program as aya has it.
    pub(crate) fn program(&self, name: &str) -> &SchedClassifier {
        let program = self.ebpf.program(name).expect("a known program");
        program.try_into().expect("all programs are classifiers")
    }

    fn map(&self, name: &str) -> &Map {
        self.ebpf.map(name).unwrap_or_else(|| panic!("no map {name}"))
    }

    fn map_mut(&mut self, name: &str) -> &mut Map {
        self.ebpf.map_mut(name).unwrap_or_else(|| panic!("no map {name}"))
    }

    /// Writes into a hash.
    pub(crate) fn put<K: Pod, V: Pod>(&mut self, name: &str, key: K, value: V) {
        let mut map: HashMap<_, K, V> = is_map(HashMap::try_from(self.map_mut(name)), name);
        is_map(map.insert(key, value, 0), name);
    }

    /// Reads from a hash.
    pub(crate) fn get<K: Pod, V: Pod>(&self, name: &str, key: K) -> Option<V> {
        let map: HashMap<_, K, V> = is_map(HashMap::try_from(self.map(name)), name);
        map.get(&key, 0).ok()
    }

    /// Removes from a hash; whether it was there.
    pub(crate) fn remove<K: Pod, V: Pod>(&mut self, name: &str, key: K) -> bool {
        let mut map: HashMap<_, K, V> = is_map(HashMap::try_from(self.map_mut(name)), name);
        map.remove(&key).is_ok()
    }

    /// All of a hash.
    pub(crate) fn all<K: Pod, V: Pod>(&self, name: &str) -> Vec<(K, V)> {
        let map: HashMap<_, K, V> = is_map(HashMap::try_from(self.map(name)), name);
        map.iter().filter_map(Result::ok).collect()
    }

    /// Writes into a map of prefixes.
    pub(crate) fn put_prefix<K: Pod, V: Pod>(&mut self, name: &str, bits: u32, key: K, value: V) {
        let mut map: LpmTrie<_, K, V> = is_map(LpmTrie::try_from(self.map_mut(name)), name);
        is_map(map.insert(&Key::new(bits, key), value, 0), name);
    }

    /// Removes from a map of prefixes.
    pub(crate) fn remove_prefix<K: Pod, V: Pod>(&mut self, name: &str, bits: u32, key: K) {
        let mut map: LpmTrie<_, K, V> = is_map(LpmTrie::try_from(self.map_mut(name)), name);
        is_map(map.remove(&Key::new(bits, key)), name);
    }

    /// Writes into an array.
    pub(crate) fn set<V: Pod>(&mut self, name: &str, index: u32, value: V) {
        let mut map: Array<_, V> = is_map(Array::try_from(self.map_mut(name)), name);
        is_map(map.set(index, value, 0), name);
    }

    /// All counters, summed over the CPUs.
    pub(crate) fn counters(&self) -> Vec<u64> {
        let map: PerCpuArray<_, u64> = is_map(PerCpuArray::try_from(self.map("counters")), "counters");
        map.iter().map(|row| is_map(row, "counters").iter().sum()).collect()
    }

    /// Takes all events out of the ring.
    pub(crate) fn events(&mut self) -> Vec<abi::Event> {
        let mut taken = Vec::new();
        while let Some(item) = self.events.next() {
            taken.push(abi::Event::from_bytes(&item).expect("records of the ring are events"));
        }
        taken
    }

    fn empty<K: Pod, V: Pod>(&mut self, name: &str) {
        let keys: Vec<K> = self.all::<K, V>(name).into_iter().map(|(key, _)| key).collect();
        for key in keys {
            self.remove::<K, V>(name, key);
        }
    }

    fn empty_prefixes<K: Pod, V: Pod>(&mut self, name: &str) {
        let mut map: LpmTrie<_, K, V> = is_map(LpmTrie::try_from(self.map_mut(name)), name);
        let keys: Vec<Key<K>> = map.iter().filter_map(|row| row.ok().map(|(key, _)| key)).collect();
        for key in keys {
            is_map(map.remove(&key), name);
        }
    }

    /// As if just loaded.
    pub(crate) fn reset(&mut self) {
        self.empty::<abi::Addr, abi::Address>("addresses");
        self.empty_prefixes::<[u8; 16], abi::Block>("blocks");
        self.empty::<abi::RowKey, u32>("rows");
        self.empty_prefixes::<[u8; 8], u32>("ports");
        self.empty::<u32, abi::Endpoint>("endpoints");
        self.empty::<abi::Addr, abi::Local>("locals");
        self.empty::<u32, u32>("devices");
        self.empty_prefixes::<[u8; 16], u32>("guarded");
        self.empty_prefixes::<[u8; 16], u32>("exempt");
        self.empty::<abi::Tuple, abi::Flow>("flows");
        self.empty::<abi::FragmentKey, abi::Fragment>("fragments");
        self.empty::<abi::FrontendKey, abi::Frontend>("frontends");
        self.empty::<u32, abi::Backend>("backends");
        self.empty::<abi::AffinityKey, abi::Affinity>("affinities");
        self.set("state", 0, abi::State::default());
        self.events();
    }

    /// Instructions of each program that the verifier looked at.
    pub(crate) fn sizes(&self) -> Vec<(&'static str, u32)> {
        let size = |name| {
            let program: &SchedClassifier = self.ebpf.program(name)?.try_into().ok()?;
            program.info().ok()?.verified_instruction_count()
        };
        PROGRAMS.iter().map(|name| (*name, size(name).unwrap_or(0))).collect()
    }
}
