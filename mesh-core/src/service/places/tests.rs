use proptest::prelude::*;

use super::*;

#[test]
fn an_array_of_any_length_is_handed_out_to_the_last_place() {
    for capacity in [0, 1, 2, 3, 1000, 1 << 20, (1 << 20) + 1, 5_000_000] {
        let mut places = Places::new(capacity);
        assert_eq!(places.free(), capacity);
        for _ in 0..capacity.min(1000) {
            places.take(1).expect("free places are left");
        }
        assert_eq!(places.free(), capacity - capacity.min(1000));
    }
}

#[test]
fn what_was_given_back_rests_until_its_commit_is_quiet() {
    let mut places = Places::new(512);
    let base = places.take(509).unwrap();
    assert_eq!(places.take(1), None);
    places.give_back(base, 509, 7);
    assert!(!places.quiesced(6));
    assert_eq!(places.take(1), None);
    assert!(places.quiesced(7));
    assert_eq!(places.take(509), Some(base));
}

#[test]
fn a_region_is_taken_where_it_was_or_not_at_all() {
    let mut places = Places::new(1024);
    assert!(places.take_at(512, 251));
    for (base, count) in
        [(512, 251), (512, 1), (513, 1), (0, 1021), (100, 251), (1024, 1), (0, 0), (0, u32::MAX)]
    {
        assert!(!places.take_at(base, count), "{base} + {count}");
    }
    assert!(places.take_at(768, 251));
    assert_eq!(places.take(509), Some(0));
}

#[derive(Clone, Debug)]
enum Step {
    Take(u32),
    TakeAt(u32, u32),
    GiveBack(prop::sample::Index),
    Quiesce,
}

fn step() -> impl Strategy<Value = Step> {
    let count = prop_oneof![Just(1_u32), Just(251), Just(509), Just(1021), 1_u32..2000];
    prop_oneof![
        4 => count.clone().prop_map(Step::Take),
        1 => (0_u32..5000, count).prop_map(|(base, count)| Step::TakeAt(base, count)),
        3 => any::<prop::sample::Index>().prop_map(Step::GiveBack),
        1 => Just(Step::Quiesce),
    ]
}

proptest! {
    #[test]
    fn no_place_has_two_owners_and_all_come_back(
        capacity in 0_u32..6000, steps in prop::collection::vec(step(), 0..80),
    ) {
        let mut places = Places::new(capacity);
        let (mut taken, mut resting) = (Vec::new(), Vec::new());
        for (commit, step) in (0..).zip(steps) {
            let got = match step {
                Step::Take(count) => places.take(count).map(|base| (base, count)),
                Step::TakeAt(base, count) => places.take_at(base, count).then_some((base, count)),
                Step::GiveBack(index) if !taken.is_empty() => {
                    let (base, count) = taken.swap_remove(index.index(taken.len()));
                    places.give_back(base, count, commit);
                    resting.push((base, count));
                    None
                }
                Step::GiveBack(_) => None,
                Step::Quiesce => {
                    places.quiesced(commit);
                    resting.clear();
                    None
                }
            };
            if let Some((base, count)) = got {
                prop_assert!(base + count <= capacity);
                for (other, length) in taken.iter().chain(&resting) {
                    prop_assert!(base + count <= *other || other + length <= base);
                }
                taken.push((base, count));
            }
        }
        for (base, count) in taken {
            places.give_back(base, count, u64::MAX - 1);
        }
        places.quiesced(u64::MAX);
        prop_assert_eq!(places.free(), capacity);
        let whole = Places::new(capacity);
        prop_assert_eq!(places.free, whole.free);
    }
}
