use super::Tracker;
use proptest::prelude::*;
use std::time::{Duration, Instant};

fn track(numbers: &[u64], sent: u64) -> super::Report {
    let start = Instant::now();
    let mut tracker = Tracker::default();
    for (n, number) in (0_u32..).zip(numbers) {
        tracker.arrive(*number, sent, start + Duration::from_millis(10) * n);
    }
    tracker.report(sent, Some(start + Duration::from_secs(1)))
}

#[test]
fn a_stream_with_a_hole_a_late_record_and_a_double_one_is_reported_as_such() {
    let report = track(&[0, 1, 3, 2, 5, 5], 6);
    assert_eq!((report.received, report.lost, report.reordered, report.duplicated), (5, 1, 1, 1));
    assert_eq!(report.missing, [4]);
    assert_eq!(
        report.longest_gap,
        Duration::from_millis(950),
        "the silence at the end counts while one is missing"
    );
    assert_eq!(track(&[0, 1, 2], 3).longest_gap, Duration::from_millis(10));
}

#[test]
fn a_number_that_was_never_sent_is_ignored() {
    assert_eq!(track(&[0, u64::MAX, 1, 1 << 40], 2).received, 2);
}

proptest! {
    #[test]
    fn received_and_lost_add_up_to_sent(numbers in proptest::collection::vec(0_u64..200, 0..300)) {
        let report = track(&numbers, 200);
        let different: std::collections::BTreeSet<_> = numbers.iter().collect();
        prop_assert_eq!(report.received, different.len() as u64);
        prop_assert_eq!(report.received + report.lost, 200);
        prop_assert!(report.missing.iter().all(|number| *number < 200 && !different.contains(number)));
        prop_assert_eq!(report.received + report.duplicated, numbers.len() as u64);
    }
}
