use super::*;

fn name(text: &str) -> ObjectName {
    ObjectName { namespace: "shop".to_owned(), name: text.to_owned() }
}

fn place(text: &str) -> Place {
    (Kind::Slice, name(text))
}

fn stamp(uid: &str, version: &str) -> Stamp {
    Stamp { uid: uid.to_owned(), version: version.to_owned() }
}

fn wrote(text: &str, content: u64, version: &str) -> Wrote {
    Wrote { place: place(text), content, expect: Expect::Version(stamp("u", version)) }
}

fn nothing<'a>(_: &Place) -> Option<&'a Stamp> {
    None
}

#[test]
fn a_name_is_not_written_again_before_all_that_was_written_is_seen() {
    let (mut pace, web) = (Pace::default(), name("web"));
    assert!(pace.may(&web, Millis(0)));
    pace.begin(&web);
    assert!(!pace.may(&web, Millis(100_000)), "busy, for however long");
    pace.end(&web, vec![wrote("a", 1, "7"), wrote("b", 1, "8")], Outcome::Done, Millis(0), nothing);
    assert!(!pace.may(&web, Millis(1)));
    assert_eq!(pace.saw(&place("a"), Some(&stamp("u", "6"))), None, "older than what was written");
    assert_eq!(pace.saw(&place("a"), Some(&stamp("u", "7"))), None, "the other one is missing");
    assert_eq!(pace.saw(&place("b"), Some(&stamp("u", "12"))), Some(web.clone()));
    assert!(pace.may(&web, Millis(1)));
}

#[test]
fn what_a_watch_said_before_the_writer_ended_is_not_waited_for() {
    let (mut pace, web, seen) = (Pace::default(), name("web"), stamp("u", "7"));
    pace.begin(&web);
    pace.end(&web, vec![wrote("a", 1, "7")], Outcome::Done, Millis(0), |_| Some(&seen));
    assert!(pace.may(&web, Millis(0)));
}

#[test]
fn a_deletion_is_seen_when_the_object_is_gone_or_another_one() {
    for (now, met) in [(None, true), (Some(stamp("v", "1")), true), (Some(stamp("u", "9")), false)] {
        assert_eq!(Expect::Gone("u".to_owned()).is_met(now.as_ref()), met, "{now:?}");
    }
    for (now, met) in [(None, false), (Some(stamp("v", "1")), true), (Some(stamp("u", "10")), true)] {
        assert_eq!(Expect::Version(stamp("u", "9")).is_met(now.as_ref()), met, "{now:?}");
    }
}

#[test]
fn a_watch_that_says_nothing_is_waited_for_so_long_and_no_longer() {
    let (mut pace, web) = (Pace::default(), name("web"));
    pace.begin(&web);
    pace.end(&web, vec![wrote("a", 1, "7")], Outcome::Done, Millis(50), nothing);
    assert_eq!(pace.next_deadline(Millis(50)), Some(Millis(50 + ECHO)));
    assert!(!pace.may(&web, Millis(49 + ECHO)));
    assert!(pace.may(&web, Millis(50 + ECHO)));
    assert_eq!(pace.next_deadline(Millis(50 + ECHO)), None);
}

#[test]
fn failures_wait_longer_each_time_and_are_over_with_the_first_success() {
    let (mut pace, web) = (Pace::default(), name("web"));
    let mut now = Millis(0);
    let mut rests = Vec::new();
    for _ in 0..9 {
        pace.begin(&web);
        pace.end(&web, Vec::new(), Outcome::Failed, now, nothing);
        let next = pace.next_deadline(now).unwrap();
        assert!(!pace.may(&web, Millis(next.0 - 1)) && pace.may(&web, next));
        rests.push(next.0 - now.0);
        now = next;
    }
    assert_eq!(rests, [200, 400, 800, 1_600, 3_200, 6_400, 12_800, 15_000, 15_000]);
    pace.begin(&web);
    pace.end(&web, Vec::new(), Outcome::Refused, now, nothing);
    assert_eq!(pace.next_deadline(now), Some(Millis(now.0 + REFUSED_REST)));
    pace.begin(&web);
    pace.end(&web, Vec::new(), Outcome::Done, now, nothing);
    assert!(pace.may(&web, now));
    assert_eq!(pace.next_deadline(now), None);
}

#[test]
fn the_same_written_again_and_again_is_a_quarrel_that_slows_down_and_is_forgotten() {
    let (mut pace, web, at) = (Pace::default(), name("web"), place("a"));
    let mut now = Millis(0);
    let mut gaps = Vec::new();
    for _ in 0..7 {
        pace.end(&web, vec![wrote("a", 1, "1")], Outcome::Done, now, nothing);
        let gap = (0..).find(|gap| pace.may_write(&at, 1, Millis(now.0 + gap))).unwrap();
        assert!(pace.may_write(&at, 2, now), "something else is no quarrel");
        gaps.push(gap);
        now = Millis(now.0 + gap);
    }
    assert_eq!(gaps, [0, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000]);
    pace.tidy(Millis(now.0 + QUARREL));
    assert!(pace.last.is_empty());
}
