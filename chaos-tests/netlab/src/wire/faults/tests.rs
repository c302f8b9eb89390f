use super::{Backlog, Cause, Draws, Fate, Faults, decide};
use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::StdRng;
use std::time::Duration;

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn run(faults: &Faults, seed: u64, frames: &[(Duration, usize)]) -> Vec<Fate> {
    let (mut backlog, mut rng) = (Backlog::default(), StdRng::seed_from_u64(seed));
    frames
        .iter()
        .map(|(now, length)| decide(faults, &mut backlog, Draws::next(&mut rng), *now, *length))
        .collect()
}

fn arrivals(fates: &[Fate]) -> Vec<Duration> {
    fates.iter().filter_map(|f| if let Fate::Arrive { at, .. } = f { Some(*at) } else { None }).collect()
}

fn any_faults() -> impl Strategy<Value = Faults> {
    let rate = proptest::option::of(1_000_u64..1_000_000_000);
    let hole = proptest::option::of(100_usize..2_000);
    let chance = || 0.0_f64..=1.0;
    (0_u64..100, 0_u64..50, chance(), chance(), chance(), rate, hole).prop_map(
        |(delay, jitter, loss, duplicate, reorder, rate, black_hole)| Faults {
            delay: ms(delay),
            jitter: ms(jitter),
            loss,
            duplicate,
            reorder,
            rate,
            black_hole,
            ..Faults::default()
        },
    )
}

fn any_frames() -> impl Strategy<Value = Vec<(Duration, usize)>> {
    proptest::collection::vec((0_u64..5, 60_usize..1514), 1..200).prop_map(|gaps| {
        let mut now = Duration::ZERO;
        gaps.into_iter()
            .map(|(gap, length)| {
                now += ms(gap);
                (now, length)
            })
            .collect()
    })
}

#[test]
fn a_perfect_link_delivers_at_once() {
    let frames: Vec<_> = (0..100).map(|n| (ms(n), 100)).collect();
    let fates = run(&Faults::default(), 1, &frames);
    assert_eq!(arrivals(&fates), frames.iter().map(|f| f.0).collect::<Vec<_>>());
}

#[test]
fn ten_percent_loss_over_ten_thousand_frames_is_between_nine_and_eleven_percent() {
    let frames = vec![(Duration::ZERO, 100); 10_000];
    for seed in 0..5 {
        let fates = run(&Faults { loss: 0.1, ..Faults::default() }, seed, &frames);
        let lost = fates.iter().filter(|f| **f == Fate::Drop(Cause::Loss)).count();
        assert!((900..1100).contains(&lost), "seed {seed}: {lost}");
    }
}

#[test]
fn a_frame_of_the_mtu_passes_a_black_hole_and_one_byte_more_does_not() {
    let faults = Faults { black_hole: Some(1280), ..Faults::default() };
    let fates = run(&faults, 1, &[(ms(0), 1294), (ms(0), 1295)]);
    assert!(matches!(fates[0], Fate::Arrive { .. }));
    assert_eq!(fates[1], Fate::Drop(Cause::BlackHole));
}

#[test]
fn a_megabit_link_takes_eight_milliseconds_for_a_thousand_bytes_and_then_its_queue_is_full() {
    let faults = Faults { rate: Some(1_000_000), queue: ms(20), ..Faults::default() };
    let fates = run(&faults, 1, &[(ms(0), 1000); 6]);
    assert_eq!(arrivals(&fates), [ms(8), ms(16), ms(24)]);
    assert_eq!(fates[3..], [Fate::Drop(Cause::QueueFull); 3]);
}

proptest! {
    #[test]
    fn the_same_seed_replays_the_same_fates(faults in any_faults(), frames in any_frames(), seed in any::<u64>()) {
        prop_assert_eq!(run(&faults, seed, &frames), run(&faults, seed, &frames));
    }

    #[test]
    fn no_frame_arrives_before_its_delay_or_after_all_that_can_hold_it(faults in any_faults(), frames in any_frames()) {
        let fates = run(&faults, 7, &frames);
        let mut latest = Duration::ZERO;
        for (fate, (now, length)) in fates.iter().zip(&frames) {
            let Fate::Arrive { at, reordered, .. } = fate else { continue };
            prop_assert!(*at >= *now + faults.delay);
            let sending = faults.rate.map_or(Duration::ZERO, |r| faults.queue + super::transmission(*length, r));
            let held = if *reordered { faults.reorder_by } else { Duration::ZERO };
            latest = latest.max(*now + sending + faults.delay + faults.jitter);
            prop_assert!(*at <= latest + held);
        }
    }

    #[test]
    fn frames_that_are_not_reordered_keep_their_order(faults in any_faults(), frames in any_frames(), seed in any::<u64>()) {
        let kept = run(&faults, seed, &frames);
        let kept: Vec<_> = kept.into_iter().filter(|f| matches!(f, Fate::Arrive { reordered: false, .. })).collect();
        prop_assert!(arrivals(&kept).is_sorted());
    }

    #[test]
    fn changing_delay_and_duplication_does_not_change_which_frames_are_lost(
        faults in any_faults(), frames in any_frames(), delay in 0_u64..100, duplicate in 0.0_f64..=1.0,
    ) {
        let other = Faults { delay: ms(delay), duplicate, ..faults.clone() };
        let lost = |f: &Faults| run(f, 3, &frames).iter().map(|f| *f == Fate::Drop(Cause::Loss)).collect::<Vec<_>>();
        prop_assert_eq!(lost(&faults), lost(&other));
    }

    #[test]
    fn a_bandwidth_limit_is_not_exceeded(frames in any_frames(), rate in 10_000_u64..10_000_000) {
        let fates = run(&Faults { rate: Some(rate), ..Faults::default() }, 1, &frames);
        let through = fates.iter().zip(&frames).filter(|(f, _)| matches!(f, Fate::Arrive { .. }));
        let bits: u64 = through.map(|(_, (_, length))| *length as u64 * 8).sum();
        if let Some(last) = arrivals(&fates).last() {
            // Each frame's time is cut to whole nanoseconds.
            let needed = Duration::from_nanos(bits * 1_000_000_000 / rate).saturating_sub(Duration::from_nanos(200));
            prop_assert!(*last >= needed, "{bits} bits in {last:?}");
        }
    }
}
