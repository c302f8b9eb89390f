//! The ring: what a program tells, the reader understands.

use std::collections::BTreeSet;

use aya::programs::{TestRun as _, TestRunOptions};
use datapath::abi::DropReason;
use datapath::{Datapath, EventKind, Program};

use super::lab::{PinDir, open, options};

/// An Ethernet frame with a UDP datagram from 10.9.0.2:1234 to 192.0.2.1:53.
fn frame() -> Vec<u8> {
    let mut frame = vec![0; 14];
    frame[12] = 8;
    frame.extend([0x45, 0, 0, 32, 0, 0, 0, 0, 64, 17, 0, 0, 10, 9, 0, 2, 192, 0, 2, 1]);
    frame.extend([0x04, 0xd2, 0, 53, 0, 12, 0, 0, 1, 2, 3, 4]);
    frame
}

/// Lets the guard see the frame so many times.
fn guard(datapath: &Datapath, times: u32) -> u32 {
    let program = datapath.program(Program::GuardOut).unwrap();
    let frame = frame();
    let options = TestRunOptions { data_in: Some(&frame), repeat: times, ..TestRunOptions::default() };
    program.test_run(options).unwrap().return_value
}

#[test]
fn a_drop_is_counted_and_told_and_what_the_ring_cannot_hold_is_counted_as_lost() {
    let pins = PinDir::new();
    let datapath = open(&options(&pins));
    let mut reader = datapath.flow_reader().unwrap();
    let mut events = Vec::new();
    guard(&datapath, 1);
    assert_eq!(reader.read(10, &mut events), 0, "nothing is guarded");

    datapath.set_guarded(&BTreeSet::from(["10.9.0.0/16".parse().unwrap()])).unwrap();
    assert_eq!(guard(&datapath, 1), 2);
    assert_eq!(reader.read(10, &mut events), 1);
    let event = events[0];
    assert_eq!((event.kind, event.reason), (EventKind::Drop, DropReason::GuardOut));
    assert_eq!(
        (event.source.to_string(), event.destination.to_string()),
        ("10.9.0.2".into(), "192.0.2.1".into())
    );
    assert_eq!((event.protocol, event.service), (17, None));
    assert!(event.at_ns <= datapath::now_ns());
    assert_eq!(reader.lost().unwrap(), 0);

    // A ring of 4096 bytes has room for a few dozen.
    guard(&datapath, 1000);
    events.clear();
    let read = u64::try_from(reader.read(usize::MAX, &mut events)).unwrap();
    let lost = reader.lost().unwrap();
    assert_eq!(read + lost, 1000);
    assert!(read > 10 && lost > 10, "{read} {lost}");
    assert_eq!(reader.lost().unwrap(), 0);
    assert_eq!(datapath.counters().unwrap().drops[&DropReason::GuardOut], 1001);
    assert_eq!(reader.read(0, &mut events), 0);

    // Where one reader stopped, the next begins.
    guard(&datapath, 3);
    drop(reader);
    drop(datapath);
    let datapath = open(&options(&pins));
    events.clear();
    assert_eq!(datapath.flow_reader().unwrap().read(10, &mut events), 3);
}
