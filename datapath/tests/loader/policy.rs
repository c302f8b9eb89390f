//! Policy as a transaction in the real maps.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use datapath::abi::{self, HW_ADDRESS_GONE, HW_ADDRESS_NODE, HW_SIDE_AUDIT, HW_SIDE_CLOSED};
use datapath::{Applied, Change, Datapath, Endpoint, Error, Links, PolicyBanks};
use mesh_core::policy::model::{Direction, ObjectName};
use mesh_core::policy::tables::{
    AddressRow, ClassId, Delta, FnId, PortPrefix, PortVerdict, State, Subject, Table, TableId,
};

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Instant;

use aya::programs::{TestRun as _, TestRunOptions};
use datapath::{EventKind, LinkKind, LoadOptions, Program};

use super::lab::{Node, PinDir, open, options};

const LINK: u32 = 7;

fn pod() -> ObjectName {
    ObjectName { namespace: "x".into(), name: "a".into() }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A policy whose numbers begin at `first`: one pod, two peers, a block, a port function, and so many rows.
fn state(first: u32, rows: u32) -> State {
    let (class, table, function) = (ClassId(first), TableId(first), FnId(first));
    let row = |class| AddressRow { class, node: false };
    let verdict = |allow, rule| PortVerdict { allow, rule };
    State {
        addresses: BTreeMap::from([
            (ip("10.1.0.1"), row(class)),
            (ip("fd00::1"), row(ClassId(first + 1))),
            (ip("192.0.2.1"), AddressRow { class: ClassId(first + 2), node: true }),
        ]),
        blocks: BTreeMap::from([
            ("0.0.0.0/0".parse().unwrap(), ClassId::WORLD),
            ("10.0.0.0/8".parse().unwrap(), ClassId::UNKNOWN),
            ("fd00::/8".parse().unwrap(), ClassId::UNKNOWN),
        ]),
        tables: BTreeMap::from([(
            table,
            Table {
                fallback: [FnId::DENY, FnId::ALLOW],
                rows: (0..rows).map(|n| ((Direction::Ingress, ClassId(first + n)), function)).collect(),
            },
        )]),
        functions: BTreeMap::from([(
            function,
            BTreeMap::from([
                (PortPrefix::of(6, 80, 16), verdict(true, 3)),
                (PortPrefix::of(17, 0, 0), verdict(true, 4)),
                (PortPrefix::ANY, verdict(false, 5)),
            ]),
        )]),
        subjects: BTreeMap::from([(pod(), Subject { table, audit: true, ips: BTreeSet::new() })]),
    }
}

fn node(pins: &PinDir) -> Datapath {
    let datapath = open(&options(pins));
    let endpoint = Endpoint { ip4: Some("10.1.0.9".parse().unwrap()), ..Endpoint::default() };
    datapath.put_endpoint(LINK, &endpoint).unwrap();
    datapath
}

fn apply(
    banks: &mut PolicyBanks,
    datapath: &Datapath,
    state: &State,
    delta: &Delta,
) -> Result<Applied, Error> {
    let links = Links::from([(pod(), LINK)]);
    banks.apply(datapath, &Change { state, delta, links: &links, forgotten: &BTreeSet::new(), now: 0 })
}

fn sides(datapath: &Datapath, link: u32) -> [abi::Side; 2] {
    datapath.maps().endpoints.get(&link).unwrap().unwrap().side
}

fn rows(datapath: &Datapath) -> BTreeMap<abi::RowKey, u32> {
    datapath.maps().rows.entries().unwrap().into_iter().collect()
}

#[test]
fn what_was_applied_is_in_the_maps_and_the_next_agent_takes_over_without_a_gap() {
    let pins = PinDir::new();
    let datapath = node(&pins);
    assert_eq!(sides(&datapath, LINK), [abi::Side::CLOSED; 2]);
    let mut banks = PolicyBanks::read(&datapath).unwrap();
    let applied = apply(&mut banks, &datapath, &state(100, 3), &Delta::default()).unwrap();
    assert_eq!(applied.epoch, Some(2));
    assert_eq!(datapath.epoch().unwrap(), 2);
    assert_eq!(banks.reread(&datapath).unwrap(), 0);
    let open_side = abi::Side { table: 100, fallback: [0, 1], flags: HW_SIDE_AUDIT };
    assert_eq!(sides(&datapath, LINK), [open_side; 2]);
    let address = |text| datapath.maps().addresses.get(&ip(text).into()).unwrap().unwrap();
    assert_eq!(address("fd00::1"), abi::Address { class: [101; 2], flags: 0, pad: 0 });
    assert_eq!(address("192.0.2.1").flags, HW_ADDRESS_NODE);
    let block =
        |text: &str| datapath.maps().blocks.get(&text.parse::<ipnet::IpNet>().unwrap().into()).unwrap();
    assert_eq!(block("10.7.0.0/16"), Some(abi::Block { class: [1; 2] }));
    assert_eq!(block("2001:db8::/32"), None);
    // As a packet asks: the whole key.
    let says = |protocol, port: u16| {
        let key = abi::PortKey { bits: 64, r#fn: 100, protocol, pad: 0, port: port.into() };
        datapath.maps().ports.get(&key).unwrap()
    };
    assert_eq!(
        [says(6, 80), says(6, 81), says(17, 53), says(1, 0)],
        [3 << 1 | 1, 5 << 1, 4 << 1 | 1, 5 << 1].map(Some)
    );

    drop(datapath);
    let datapath = node(&pins);
    assert_eq!(sides(&datapath, LINK), [open_side; 2], "a pod that is there keeps its policy");
    let mut banks = PolicyBanks::read(&datapath).unwrap();
    let first = banks.first_numbers();
    assert_eq!((first.class, first.table, first.function, first.rule), (103, 101, 101, 6));
    let applied = apply(&mut banks, &datapath, &state(200, 3), &Delta::default()).unwrap();
    assert_eq!(applied.epoch, Some(3));
    assert_eq!(rows(&datapath).keys().map(|key| key.table).collect::<BTreeSet<_>>(), BTreeSet::from([200]));
    assert_eq!(datapath.maps().ports.entries().unwrap().len(), 3);
    assert_eq!(banks.reread(&datapath).unwrap(), 0);
}

#[test]
fn a_policy_that_does_not_fit_leaves_the_one_before_in_force() {
    let pins = PinDir::new();
    let datapath = node(&pins);
    let mut banks = PolicyBanks::read(&datapath).unwrap();
    apply(&mut banks, &datapath, &state(100, 3), &Delta::default()).unwrap();
    let before = (sides(&datapath, LINK), datapath.epoch().unwrap());
    banks.reread(&datapath).unwrap();
    let mut wide = state(200, 3);
    let net = |number: usize| format!("172.16.{}.{}/32", number / 256, number % 256).parse().unwrap();
    wide.blocks.extend((0..300).map(|number| (net(number), ClassId(100))));
    let refused = apply(&mut banks, &datapath, &wide, &Delta::default()).unwrap_err();
    assert!(matches!(refused, Error::Full { map: "blocks", capacity: 256 }), "{refused}");
    assert_eq!((sides(&datapath, LINK), datapath.epoch().unwrap()), before);
    assert_eq!(rows(&datapath).keys().filter(|key| key.table == 100).count(), 3);
    // What was left half done is taken away by the next that fits.
    apply(&mut banks, &datapath, &state(300, 4), &Delta::default()).unwrap();
    assert_eq!(rows(&datapath).keys().map(|key| key.table).collect::<Vec<_>>(), [300; 4]);
    assert_eq!(banks.reread(&datapath).unwrap(), 0);
}

#[test]
fn a_pod_of_which_policy_says_too_much_is_closed_and_open_again_when_there_is_room() {
    let pins = PinDir::new();
    let datapath = node(&pins);
    let mut banks = PolicyBanks::read(&datapath).unwrap();
    let small = apply(&mut banks, &datapath, &state(100, 3), &Delta::default()).unwrap();
    assert_eq!(small.closed, BTreeSet::new());
    let open_side = sides(&datapath, LINK)[0];
    let large = apply(&mut banks, &datapath, &state(200, 2000), &Delta::default()).unwrap();
    assert_eq!(large.closed.len(), 1, "{:?}", large.closed);
    assert_eq!(sides(&datapath, LINK), [abi::Side::CLOSED; 2]);
    assert_eq!(rows(&datapath).len(), 0);
    // The same once more is no new transaction.
    let again = apply(&mut banks, &datapath, &state(200, 2000), &Delta::default()).unwrap();
    assert_eq!((again.writes, again.epoch, again.closed), (0, None, large.closed));
    apply(&mut banks, &datapath, &state(300, 4), &Delta::default()).unwrap();
    assert_eq!(rows(&datapath).len(), 4);
    assert_eq!(sides(&datapath, LINK)[0].flags, open_side.flags);
    assert_eq!(banks.reread(&datapath).unwrap(), 0);
}

#[test]
fn what_somebody_else_changed_is_found_and_repaired() {
    let pins = PinDir::new();
    let datapath = node(&pins);
    let mut banks = PolicyBanks::read(&datapath).unwrap();
    apply(&mut banks, &datapath, &state(100, 3), &Delta::default()).unwrap();
    let maps = datapath.maps();
    let key = *rows(&datapath).keys().next().unwrap();
    maps.rows.delete(&key).unwrap();
    maps.addresses.put(&ip("10.1.0.77").into(), &abi::Address { class: [100; 2], flags: 0, pad: 0 }).unwrap();
    // What no agent writes is deleted as it is found.
    maps.rows.put(&abi::RowKey { direction: 9, ..key }, &1).unwrap();
    assert_eq!(banks.reread(&datapath).unwrap(), 2);
    apply(&mut banks, &datapath, &state(100, 3), &Delta::default()).unwrap();
    assert!(rows(&datapath).contains_key(&key));
    assert_eq!(rows(&datapath).len(), 3);
    assert_eq!(maps.addresses.get(&ip("10.1.0.77").into()).unwrap(), None);
    assert_eq!(banks.reread(&datapath).unwrap(), 0);
}

#[test]
fn endpoints_that_nobody_names_are_closed_and_one_that_comes_later_gets_its_policy() {
    let pins = PinDir::new();
    let datapath = node(&pins);
    let mut banks = PolicyBanks::read(&datapath).unwrap();
    apply(&mut banks, &datapath, &state(100, 3), &Delta::default()).unwrap();
    let open_side = sides(&datapath, LINK);
    // Its link is made anew with the same index.
    datapath.remove_endpoint(LINK).unwrap();
    datapath.put_endpoint(LINK, &Endpoint::default()).unwrap();
    assert_eq!(sides(&datapath, LINK), [abi::Side::CLOSED; 2]);
    let applied = apply(&mut banks, &datapath, &state(100, 3), &Delta::default()).unwrap();
    assert_eq!(sides(&datapath, LINK), open_side);
    assert_eq!(applied.epoch, None, "who was closed had no flows");
    let nobody = Links::new();
    let change = Change {
        state: &state(100, 3),
        delta: &Delta::default(),
        links: &nobody,
        forgotten: &BTreeSet::new(),
        now: 0,
    };
    banks.apply(&datapath, &change).unwrap();
    assert!(sides(&datapath, LINK).iter().all(|side| side.flags & HW_SIDE_CLOSED != 0));
}

#[test]
fn the_address_of_a_vanished_pod_opens_nothing_until_it_is_forgotten() {
    let pins = PinDir::new();
    let datapath = node(&pins);
    let mut banks = PolicyBanks::read(&datapath).unwrap();
    let mut state = state(100, 3);
    apply(&mut banks, &datapath, &state, &Delta::default()).unwrap();
    for gone in ["10.1.0.1", "192.0.2.1"] {
        state.addresses.remove(&ip(gone));
    }
    let addresses_removed = BTreeSet::from([ip("10.1.0.1"), ip("192.0.2.1")]);
    let delta = Delta { addresses_removed, verdicts_may_change: true, ..Delta::default() };
    apply(&mut banks, &datapath, &state, &delta).unwrap();
    let found = |text| datapath.maps().addresses.get(&ip(text).into()).unwrap();
    assert_eq!(found("10.1.0.1"), Some(abi::Address { class: [100; 2], flags: HW_ADDRESS_GONE, pad: 0 }));
    // A node's address outside of the guarded prefixes is the world's at once.
    assert_eq!(found("192.0.2.1"), None);

    assert!(banks.expired(14).is_empty());
    let forgotten = banks.expired(15);
    assert_eq!(forgotten, BTreeSet::from([ip("10.1.0.1")]));
    let links = Links::from([(pod(), LINK)]);
    let delta = Delta::default();
    let change = Change { state: &state, delta: &delta, links: &links, forgotten: &forgotten, now: 15 };
    let applied = banks.apply(&datapath, &change).unwrap();
    assert!(applied.epoch.is_some(), "flows that were judged by its class are judged again");
    assert_eq!(found("10.1.0.1"), None);
    assert_eq!(banks.reread(&datapath).unwrap(), 0);
}

#[test]
fn in_a_cluster_of_50_000_pods_a_new_one_costs_one_write() {
    const PODS: u32 = 50_000;
    let pins = PinDir::new();
    let datapath = open(&LoadOptions { pin_dir: pins.path().to_owned(), ..LoadOptions::default() });
    datapath.put_endpoint(LINK, &Endpoint::default()).unwrap();
    let mut state = state(100, 50);
    let classes = 1000;
    let row = |n: u32| AddressRow { class: ClassId(100 + n % classes), node: false };
    for n in 0..PODS {
        let [_, a, b, c] = n.to_be_bytes();
        state.addresses.insert(IpAddr::from([10, 64 | a, b, c]), row(n));
        state.addresses.insert(ip(&format!("fd00::{a:x}:{b:x}:{c:x}")), row(n));
    }
    // 100 tables, each of which says something of every class.
    let rows = (0..classes).map(|n| ((Direction::Egress, ClassId(100 + n)), FnId(100)));
    let table = Table { fallback: [FnId::DENY; 2], rows: rows.collect() };
    state.tables.extend((200..300).map(|id| (TableId(id), table.clone())));

    let mut banks = PolicyBanks::read(&datapath).unwrap();
    let timed = |what: &str, begin: Instant, applied: Applied| {
        println!("{what}: {} writes, {:?}, epoch {:?}", applied.writes, begin.elapsed(), applied.epoch);
        applied
    };
    let begin = Instant::now();
    timed("everything", begin, apply(&mut banks, &datapath, &state, &Delta::default()).unwrap());

    let fresh = BTreeMap::from([(ip("10.99.0.1"), row(7))]);
    state.addresses.extend(&fresh);
    let delta = Delta { addresses_put: fresh, ..Delta::default() };
    let begin = Instant::now();
    let applied = timed("a new pod", begin, apply(&mut banks, &datapath, &state, &delta).unwrap());
    assert_eq!(applied, Applied { writes: 1, epoch: None, closed: BTreeSet::new() });

    let moved = BTreeMap::from([(ip("10.99.0.1"), row(8))]);
    state.addresses.extend(&moved);
    let delta = Delta { addresses_put: moved, verdicts_may_change: true, ..Delta::default() };
    let begin = Instant::now();
    let applied =
        timed("a pod with other labels", begin, apply(&mut banks, &datapath, &state, &delta).unwrap());
    // One bank, the epoch, the grace period, the other bank.
    assert_eq!(applied, Applied { writes: 4, epoch: Some(3), closed: BTreeSet::new() });

    let begin = Instant::now();
    assert_eq!(banks.reread(&datapath).unwrap(), 0);
    println!("everything read and compared: {:?}", begin.elapsed());
}

/// Addresses that no other test of this file has: one that is always allowed, and one that never is.
const ALWAYS: [u8; 4] = [10, 1, 0, 1];
const NEVER: [u8; 4] = [10, 1, 0, 2];

/// The same by two policies: the classes change places, and so does what the pod's table says of them.
fn turned(odd: bool) -> (State, Delta) {
    let (mine, other) = if odd { (16, 17) } else { (17, 16) };
    let row = |class| AddressRow { class: ClassId(class), node: false };
    let table = |allowed| Table {
        fallback: [FnId::DENY; 2],
        rows: BTreeMap::from([((Direction::Ingress, ClassId(allowed)), FnId::ALLOW)]),
    };
    let addresses = BTreeMap::from([(ALWAYS.into(), row(mine)), (NEVER.into(), row(other))]);
    let subject = Subject { table: TableId(mine), audit: false, ips: BTreeSet::new() };
    let subjects = BTreeMap::from([(pod(), subject)]);
    let delta = Delta {
        addresses_put: addresses.clone(),
        subjects_put: subjects.clone(),
        verdicts_may_change: true,
        ..Delta::default()
    };
    let tables = BTreeMap::from([(TableId(16), table(16)), (TableId(17), table(17))]);
    (State { addresses, tables, subjects, ..State::default() }, delta)
}

/// A datagram from `source` and a port of its own to the pod, in an Ethernet frame.
fn datagram(source: [u8; 4], port: u16) -> Vec<u8> {
    let mut frame = vec![0; 14];
    frame[12] = 8;
    frame.extend([0x45, 0, 0, 32, 0, 0, 0, 0, 64, 17, 0, 0]);
    frame.extend(source);
    frame.extend([10, 1, 0, 9]);
    frame.extend(port.to_be_bytes());
    frame.extend([0, 53, 0, 12, 0, 0, 1, 2, 3, 4]);
    frame
}

#[test]
fn policy_that_turns_over_a_hundred_times_is_never_seen_in_parts() {
    const TURNS: u32 = 100;
    let (lab, pins) = (Node::new(), PinDir::new());
    let datapath = open(&LoadOptions { pin_dir: pins.path().to_owned(), ..options(&pins) });
    let (link, uplink) = (lab.dummy("pod"), lab.dummy("uplink"));
    datapath.attach(LinkKind::Uplink, uplink).unwrap();
    datapath
        .put_endpoint(link, &Endpoint { ip4: Some([10, 1, 0, 9].into()), ..Endpoint::default() })
        .unwrap();
    let links = Links::from([(pod(), link)]);
    let mut banks = PolicyBanks::read(&datapath).unwrap();
    let mut turn = |number: u32| {
        let (state, delta) = turned(number % 2 == 1);
        let change =
            Change { state: &state, delta: &delta, links: &links, forgotten: &BTreeSet::new(), now: 0 };
        banks.apply(&datapath, &change).unwrap();
    };
    turn(0);
    // struct __sk_buff: where it came from, and where it is.
    let mut context = [0_u8; 192];
    context[36..40].copy_from_slice(&uplink.to_ne_bytes());
    context[40..44].copy_from_slice(&link.to_ne_bytes());
    let program = datapath.program(Program::ToPod).unwrap();
    let send = |source, port| {
        let frame = datagram(source, port);
        let options =
            TestRunOptions { data_in: Some(&frame), ctx_in: Some(&context), ..TestRunOptions::default() };
        program.test_run(options).unwrap().return_value
    };
    let mut reader = datapath.flow_reader().unwrap();
    let done = AtomicBool::new(false);
    let asked = AtomicU32::new(0);
    let epochs = std::thread::scope(|scope| {
        let packets = scope.spawn(|| {
            let (mut port, mut epochs) = (1_u16, BTreeSet::new());
            let mut events = Vec::new();
            while !done.load(Ordering::Relaxed) {
                let (always, never) = (send(ALWAYS, port), send(NEVER, port));
                reader.read(usize::MAX, &mut events);
                // What was judged by parts of both would be the other way round.
                assert!(always != 2 && never == 2, "{always} {never}: {events:?}");
                epochs.extend(
                    events.iter().filter(|event| event.kind != EventKind::Unknown).map(|event| event.epoch),
                );
                events.clear();
                asked.fetch_add(2, Ordering::Relaxed);
                port = port.wrapping_add(1).max(1);
            }
            epochs
        });
        for number in 1..=TURNS {
            let before = asked.load(Ordering::Relaxed);
            turn(number);
            // With one processor all turns could come between two packets.
            while asked.load(Ordering::Relaxed) == before && !packets.is_finished() {
                std::thread::yield_now();
            }
        }
        done.store(true, Ordering::Relaxed);
        packets.join().unwrap()
    });
    println!("{} packets were judged at {} epochs", asked.into_inner(), epochs.len());
    assert_eq!(datapath.epoch().unwrap(), 2 + TURNS);
    assert!(epochs.len() > 10, "{epochs:?}");
}
