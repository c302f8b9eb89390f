use jiff::Timestamp;
use proptest::prelude::*;
use proto::flows::{Body, Lost, LostSource};

use super::*;

fn record(second: i64, node: usize) -> Record {
    let time = Timestamp::from_second(second).expect("time");
    let lost = Lost { time, node_name: node.to_string(), source: LostSource::Ring, num_events_lost: 1 };
    Record { text: String::new(), time, body: Body::Lost(lost) }
}

fn pop_all(merge: &mut Merge, now: Instant) -> Vec<Record> {
    std::iter::from_fn(|| merge.pop(now)).collect()
}

#[test]
fn a_line_waits_for_silent_sources_until_patience_ends_or_they_close() {
    let begin = Instant::now();
    let patience = Duration::from_millis(250);
    let mut merge = Merge::new(2, Some(patience));
    merge.push(0, record(5, 0), begin);
    assert_eq!(merge.pop(begin), None);
    assert_eq!(merge.deadline(), Some(begin + patience));
    assert_eq!(merge.pop(begin + patience), Some(record(5, 0)));

    merge.push(0, record(7, 0), begin);
    merge.push(1, record(6, 1), begin);
    // The other one may still say something older than 7.
    assert_eq!(pop_all(&mut merge, begin), [record(6, 1)]);
    merge.close(1);
    assert_eq!(pop_all(&mut merge, begin), [record(7, 0)]);
    assert_eq!(merge.deadline(), None);
    assert!(merge.is_open());
    merge.close(0);
    assert!(!merge.is_open());
}

#[test]
fn a_source_that_is_far_ahead_is_not_read() {
    let now = Instant::now();
    let mut merge = Merge::new(2, None);
    for second in 0..AHEAD {
        assert!(merge.wants(0));
        merge.push(0, record(i64::try_from(second).expect("small"), 0), now);
    }
    assert!(!merge.wants(0) && merge.wants(1));
    assert_eq!(merge.deadline(), None);
    merge.close(1);
    assert_eq!(pop_all(&mut merge, now).len(), AHEAD);
    assert!(merge.wants(0) && !merge.wants(1));
}

proptest! {
    #[test]
    fn ordered_sources_give_one_order_and_nothing_is_lost(
        mut times in proptest::collection::vec(proptest::collection::vec(0..50_i64, 0..20), 1..5),
        turns in proptest::collection::vec(0..5_usize, 0..100),
    ) {
        times.iter_mut().for_each(|times| times.sort_unstable());
        let now = Instant::now();
        let mut merge = Merge::new(times.len(), None);
        let mut coming: Vec<VecDeque<i64>> = times.iter().cloned().map(VecDeque::from).collect();
        let mut out = Vec::new();
        for source in turns {
            if let Some(second) = coming.get_mut(source).and_then(VecDeque::pop_front) {
                merge.push(source, record(second, source), now);
                out.extend(pop_all(&mut merge, now));
            }
        }
        for (source, rest) in coming.into_iter().enumerate() {
            for second in rest {
                merge.push(source, record(second, source), now);
            }
            merge.close(source);
            out.extend(pop_all(&mut merge, now));
        }
        prop_assert!(out.is_sorted_by_key(|record| record.time));
        for (source, times) in times.iter().enumerate() {
            let of_source: Vec<Record> = times.iter().map(|second| record(*second, source)).collect();
            let got: Vec<Record> = out.iter().filter(|found| found.body == record(found.time.as_second(), source).body).cloned().collect();
            prop_assert_eq!(got, of_source);
        }
    }
}
