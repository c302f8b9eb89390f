use proptest::prelude::*;
use proptest::sample::select;

use super::*;

#[derive(Clone, Copy, Debug)]
enum Said {
    Heard,
    Complete,
    Forget,
}

fn name(text: &str) -> ClusterName {
    text.parse().unwrap()
}

/// Reads the whole story anew: a lease runs from the last word that counted.
fn is_silent(story: &[(u64, &str, Said)], cluster: &str, now: u64, length: u64) -> bool {
    let mut last: Option<u64> = None;
    for (at, _, said) in story.iter().filter(|(at, who, _)| *who == cluster && *at <= now) {
        last = match (said, last) {
            (Said::Complete, _) => Some(*at),
            (Said::Heard, Some(before)) if *at < before + length => Some(*at),
            (Said::Heard, before) => before,
            (Said::Forget, _) => None,
        };
    }
    last.is_none_or(|last| last + length <= now)
}

proptest! {
    #[test]
    fn who_is_silent_is_as_the_whole_story_says(
        steps in proptest::collection::vec(
            (0..40_u64, select(vec!["a", "b"]), select(vec![Said::Heard, Said::Heard, Said::Complete, Said::Forget])),
            0..40,
        ),
    ) {
        let mut leases = Leases::new(50);
        let mut story = Vec::new();
        let mut now = 0;
        let peers = [name("a"), name("b"), name("c")];
        for (later, who, said) in steps {
            now += later;
            story.push((now, who, said));
            match said {
                Said::Heard => leases.heard(&name(who), Millis(now)),
                Said::Complete => leases.complete(&name(who), Millis(now)),
                Said::Forget => leases.forget(&name(who)),
            }
            let silent_at = |at: u64| {
                let all = ["a", "b", "c"].into_iter().filter(|who| is_silent(&story, who, at, 50));
                all.map(name).collect::<BTreeSet<_>>()
            };
            prop_assert_eq!(leases.silent(&peers, Millis(now)), silent_at(now));
            // Until the deadline nothing changes, and then somebody falls silent.
            if let Some(Millis(at)) = leases.next_deadline(Millis(now)) {
                prop_assert_eq!(silent_at(at - 1), silent_at(now));
                prop_assert_ne!(silent_at(at), silent_at(now));
            } else {
                prop_assert_eq!(silent_at(now).len(), 3);
            }
        }
    }
}

#[test]
fn a_word_does_not_end_a_silence_but_a_snapshot_does() {
    let (peer, mut leases) = (name("a"), Leases::new(10));
    leases.heard(&peer, Millis(0));
    assert_eq!(leases.silent([&peer], Millis(0)).len(), 1, "never complete");
    leases.complete(&peer, Millis(1));
    assert!(leases.silent([&peer], Millis(10)).is_empty());
    leases.heard(&peer, Millis(11));
    assert_eq!(leases.silent([&peer], Millis(11)).len(), 1, "over");
    leases.complete(&peer, Millis(12));
    assert!(leases.silent([&peer], Millis(21)).is_empty());
}
