//! What comes late, twice, in another order or not at all, and what is decided at a boundary.

use std::collections::{BTreeMap, BTreeSet};

use boringtun::noise::rate_limiter::RateLimiter;

use super::messages::Message;
use super::*;
use crate::noise::hash::Symmetric;

/// When in 65536ths of the chaos, which side, and whether it begins a handshake or says something.
type Act = (u16, usize, bool);
/// For each message how late it comes in milliseconds, as often as it does.
type Fates = Vec<Vec<u64>>;

/// How long it lasts in milliseconds, what is done, and what the path does.
fn chaos() -> impl Strategy<Value = (u64, Vec<Act>, Fates)> {
    let fate = prop::collection::vec(prop_oneof![0u64..50, 0u64..=12_000], 0..4);
    let length = prop_oneof![Just(15_000u64), Just(60_000), Just(400_000)];
    let act = (any::<u16>(), 0..2usize, any::<bool>());
    (length, prop::collection::vec(act, 0..80), prop::collection::vec(fate, 1..60))
}

/// One side. boringtun's timers do not run, since its time is the real one.
enum End {
    Ours(Box<Noise>),
    Theirs(Box<Tunn>),
}

enum Event {
    Turn,
    Begin,
    Say(Vec<u8>),
    Arrive(Vec<u8>),
}

fn written(result: &TunnResult<'_>) -> Option<usize> {
    if let TunnResult::WriteToNetwork(datagram) = result { Some(datagram.len()) } else { None }
}

impl End {
    /// What it says when this happens, as the engine would, and the content of what arrives.
    fn meet(&mut self, event: &Event, now: Moment) -> (Vec<Vec<u8>>, Option<Vec<u8>>) {
        let (mut said, mut content, mut out) = (Vec::new(), None, [0; ROOM]);
        let n = match (self, event) {
            (Self::Ours(noise), Event::Turn) => noise.tick(&mut out, now).send,
            (Self::Ours(noise), Event::Begin) => Some(noise.begin(&mut out, now)),
            (Self::Ours(noise), Event::Say(p)) => match noise.send(p, p.len(), &mut out, now) {
                Sent::Data(message) => Some(message.seal(&mut out)),
                Sent::Queued { initiation, .. } => initiation,
            },
            (Self::Ours(noise), Event::Arrive(datagram)) => {
                let (mut renewed, mut owes) = (false, false);
                match messages::parse(datagram).unwrap() {
                    Message::Initiation(m) => said.extend(answer(noise, m, now).map(Vec::from)),
                    Message::Response(m) => {
                        owes = noise.answered(m, now) == Answer::Taken;
                        renewed = owes;
                    }
                    Message::Data(m) => {
                        let received = noise.receive(m, &mut out, now);
                        if let Received::Content(len) = received {
                            content = Some(out[..len].to_vec());
                        }
                        renewed = received != Received::Refused && noise.confirm(messages::data_receiver(m));
                    }
                    Message::Cookie(_) => panic!("nobody makes one"),
                }
                while renewed && let Some(n) = noise.next_queued(&mut out, now) {
                    said.push(out[..n].to_vec());
                    owes = false;
                }
                if owes { noise.keepalive(&mut out, now) } else { None }
            }
            (Self::Theirs(_), Event::Turn) => None,
            (Self::Theirs(tunn), Event::Begin) => written(&tunn.format_handshake_initiation(&mut out, true)),
            (Self::Theirs(tunn), Event::Say(p)) => written(&tunn.encapsulate(p, &mut out)),
            (Self::Theirs(tunn), Event::Arrive(datagram)) => {
                let result = tunn.decapsulate(None, datagram, &mut out);
                if let TunnResult::WriteToTunnelV4(packet, _) = &result {
                    content = Some(packet.to_vec());
                }
                let mut next = written(&result);
                while let Some(n) = next {
                    said.push(out[..n].to_vec());
                    next = written(&tunn.decapsulate(None, &[], &mut out));
                }
                None
            }
        };
        said.extend(n.map(|n| out[..n].to_vec()));
        (said, content)
    }
}

/// Two sides and the path between them.
struct World {
    ends: [End; 2],
    start: Moment,
    /// By milliseconds since then, and in the order in which they were planned.
    events: BTreeMap<(u64, usize), (usize, Event)>,
    planned: usize,
    fates: Fates,
    carried: usize,
    /// From then on a message takes 20 ms; all others have come.
    calm: u64,
    /// By its number: who says a packet, and when.
    said: Vec<(usize, u64, Vec<u8>)>,
    heard: BTreeSet<usize>,
}

impl World {
    /// Ours and another one of ours or theirs, with timers that run until 40 s after the chaos.
    fn new(theirs: Option<Tunn>, (calm, acts, fates): (u64, Vec<Act>, Fates)) -> Self {
        let [a, b] = pair(None).map(|noise| End::Ours(Box::new(noise)));
        let ends = [a, theirs.map_or(b, |tunn| End::Theirs(Box::new(tunn)))];
        let (start, events, said, heard) = (Moment::now(), BTreeMap::new(), Vec::new(), BTreeSet::new());
        let mut world = Self { ends, start, events, planned: 0, fates, carried: 0, calm, said, heard };
        for at in (0..calm + 40_000).step_by(250) {
            (0..2).for_each(|who| world.plan(at, who, Event::Turn));
        }
        for (at, who, begins) in acts {
            let at = (u64::from(at) * calm) >> 16;
            if begins { world.plan(at, who, Event::Begin) } else { world.say(at, who) }
        }
        world
    }

    fn plan(&mut self, at: u64, who: usize, event: Event) {
        self.events.insert((at, self.planned), (who, event));
        self.planned += 1;
    }

    fn say(&mut self, at: u64, who: usize) {
        let number = self.said.len();
        let mut packet = packet(28 + number * 37 % 1300);
        packet[20..28].copy_from_slice(&number.to_be_bytes());
        self.plan(at, who, Event::Say(packet.clone()));
        self.said.push((who, at, packet));
    }

    fn carry(&mut self, at: u64, to: usize, datagram: &[u8]) {
        let fate = &self.fates[self.carried % self.fates.len()];
        self.carried += 1;
        let late = fate.iter().map(|late| (at + late).min(self.calm)).collect();
        for at in if at < self.calm { late } else { vec![at + 20] } {
            self.plan(at, to, Event::Arrive(datagram.to_vec()));
        }
    }

    /// What was said from then on and is not heard: by whom, and when.
    fn unheard(&mut self, from: u64) -> Vec<(usize, u64)> {
        while let Some(((at, _), (who, event))) = self.events.pop_first() {
            let (said, content) = self.ends[who].meet(&event, self.start + Duration::from_millis(at));
            if let Some(content) = content {
                let number = usize::from_be_bytes(messages::field(&content, 20));
                let (by, _, packet) = &self.said[number];
                assert_eq!((*by, packet), (1 - who, &content));
                assert!(self.heard.insert(number), "{number} is heard twice");
            }
            said.into_iter().for_each(|datagram| self.carry(at, 1 - who, &datagram));
        }
        let all = self.said.iter().enumerate().filter(|(n, _)| !self.heard.contains(n));
        all.map(|(_, (by, at, _))| (*by, *at)).filter(|(_, at)| *at >= from).collect()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn whatever_the_path_did_both_directions_work_when_it_has_been_calm_for_a_while(chaos in chaos()) {
        let (calm, mut world) = (chaos.0, World::new(None, chaos));
        (0..40).for_each(|second| (0..2).for_each(|who| world.say(calm + second * 1000, who)));
        prop_assert_eq!(world.unheard(calm + 35_000), []);
    }

    #[test]
    fn whatever_the_path_did_the_next_handshake_with_boringtun_is_a_session(chaos in chaos(), who in 0..2usize) {
        let [one, two] = [1, 2].map(|n| x25519::PublicKey::from(*own(n).public().as_bytes()));
        let limiter = Some(Arc::new(RateLimiter::new(&two, u64::MAX)));
        let theirs = Tunn::new([2; 32].into(), one, None, None, 2, limiter);
        let (calm, mut world) = (chaos.0, World::new(Some(theirs), chaos));
        world.plan(calm + 100, who, Event::Begin);
        (2..20).for_each(|n| (0..2).for_each(|who| world.say(calm + n * 100, who)));
        prop_assert_eq!(world.unheard(calm + 200), []);
    }
}

#[test]
fn a_peer_takes_what_one_key_begins_though_the_clock_is_set_back_and_the_state_made_anew() {
    let (now, key, [_, mut b]) = (Moment::now(), own(1), pair(None));
    // The last is an hour ahead of what is true from then on.
    let ahead = crate::clock::unix_time() + 3600 * SECOND;
    let walls = [2 * SECOND - Duration::from_nanos(1), SECOND, Duration::ZERO, 5 * SECOND, 5 * SECOND, ahead];
    let stamps = walls.map(|wall| handshake::timestamp(key.stamp(wall)));
    assert!(stamps.is_sorted_by(|a, b| a < b), "as a peer compares them");
    for _ in 0..3 {
        let mut a = Noise::new(Arc::clone(&key), &own(2).public(), None, 1).unwrap();
        (0..2).for_each(|_| assert!(answer(&mut b, &initiation(&mut a, now), now).is_some()));
    }
    assert_eq!(key.stamp(Duration::ZERO), ahead + Duration::from_nanos(7));
}

#[test]
fn an_answer_that_takes_five_to_ten_seconds_is_taken_and_a_later_one_is_not() {
    let now = Moment::now();
    for (repeated, expected) in [(0, Answer::Taken), (1, Answer::Taken), (2, Answer::Stray)] {
        let [mut a, mut b] = pair(None);
        let second = answer(&mut b, &initiation(&mut a, now), now).unwrap();
        let at = |n: u32| now + n * REKEY_TIMEOUT;
        (1..=repeated).for_each(|n| assert_eq!(a.tick(&mut [0; ROOM], at(n)).send, Some(INITIATION)));
        let at = at(repeated + 1);
        assert_eq!(a.answered(&second, at), expected, "{repeated}");
        if expected == Answer::Taken {
            assert_eq!(says(&mut a, &mut b, &[1], at), Received::Content(1));
            assert_eq!(says(&mut b, &mut a, &[2], at), Received::Content(1));
        }
    }
}

#[test]
fn a_session_is_made_where_each_answer_takes_seven_seconds() {
    // The second initiation is there before the first data by the session of the first.
    let mut world = World::new(None, (90_000, Vec::new(), vec![vec![3500]]));
    (0..60).for_each(|second| world.say(second * 1000, 0));
    assert_eq!(world.unheard(30_000), []);
}

#[test]
fn an_answer_that_comes_after_the_peer_has_proven_a_newer_session_does_not_replace_that() {
    for repeated in [false, true] {
        let (now, [mut a, mut b]) = (Moment::now(), pair(None));
        let late = answer(&mut b, &initiation(&mut a, now), now).unwrap();
        let _ = repeated.then(|| initiation(&mut a, now));
        handshake(&mut b, &mut a, now);
        assert_eq!(a.answered(&late, now), Answer::Stray);
        assert!(!a.keypairs.current().unwrap().initiator, "the peer's is the one to send with");
        assert_eq!(says(&mut a, &mut b, &[1], now), Received::Content(1));
        assert_eq!(says(&mut b, &mut a, &[2], now), Received::Content(1));
        assert_eq!(a.tick(&mut [0; ROOM], now + REKEY_TIMEOUT), Tick::default(), "it is not repeated either");
    }
}

#[test]
fn an_attempt_that_the_peer_has_made_needless_is_not_given_up() {
    let (start, mut out, [mut a, mut b]) = (Moment::now(), [0; ROOM], pair(None));
    let at = |seconds: u32| start + seconds * SECOND;
    // The second packet makes the attempt last until 93 s; the last initiation is sent at 90 s.
    for seconds in [0, 3] {
        assert!(matches!(a.send(&[1], 1, &mut out, at(seconds)), Sent::Queued { .. }));
    }
    (1..=18).for_each(|n| assert_eq!(a.tick(&mut out, at(5 * n)).send, Some(INITIATION)));
    handshake(&mut b, &mut a, at(92));
    while a.next_queued(&mut out, at(92)).is_some() {}
    assert_eq!(a.tick(&mut out, at(93)), Tick::default());
    assert_eq!(a.tick(&mut out, at(107)).send, Some(INITIATION), "nothing was heard since");
}

#[test]
fn an_index_is_not_given_again_while_its_session_or_handshake_lives() {
    let (now, mut out, [mut a, mut b]) = (Moment::now(), [0; ROOM], pair(None));
    // One to send with and three older ones.
    let under_way = [0; 4].map(|_| {
        handshake(&mut a, &mut b, now);
        [&mut a, &mut b].map(|noise| noise.keepalive(&mut out, now).map(|n| out[..n].to_vec()).unwrap())
    });
    let pending = messages::sender(&initiation(&mut a, now));
    let living = under_way.as_flattened().iter().map(|message| messages::data_receiver(message));
    let living: BTreeSet<u32> = living.chain([pending]).collect();
    for _ in 0..700 {
        // The answer is lost.
        let first = initiation(&mut b, now);
        let second = answer(&mut a, &first, now).unwrap();
        let given = [messages::sender(&first), messages::response_sender(&second)];
        assert!(given.iter().all(|index| !living.contains(index)), "{given:x?} {living:x?}");
    }
    for [by_a, by_b] in under_way {
        assert_eq!(b.receive(&by_a, &mut out, now), Received::Keepalive);
        assert_eq!(a.receive(&by_b, &mut out, now), Received::Keepalive);
    }
    assert_eq!(says(&mut a, &mut b, &[1], now), Received::Content(1));
}

/// The state after an initiation by key 1, whose point makes that secret; `seal`: the point is all it has.
fn begun(message: &mut [u8; INITIATION], secret: [u8; 32], seal: bool) -> Symmetric {
    let [one, two] = [1, 2].map(|n| *own(n).public().as_bytes());
    let (mut state, point) = (Symmetric::new(&two), messages::field::<32>(message, 8));
    state.mix_hash(&point);
    state.mix_key(&point);
    let (both, stamp) = (x25519_dalek::x25519([1; 32], two), handshake::timestamp(SECOND));
    for (secret, text, field) in [(secret, &one[..], 40..88), (both, &stamp[..], 88..116)] {
        let key = state.mix_key_for(&secret);
        if seal { state.seal(&key, text, &mut message[field]) } else { state.mix_hash(&message[field]) }
    }
    state
}

#[test]
fn a_point_of_low_order_is_refused_and_another_read_as_by_the_reference_however_it_is_spelled() {
    let (now, [one, two]) = (Moment::now(), [1, 2].map(|n| *own(n).public().as_bytes()));
    let of_order_8 = [
        "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
        "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
    ]
    .map(|text| crate::keys::parse_hex(text).unwrap());
    // 0, 1, p - 1, p and p + 1; 9 and p + 9: that is the base point, all of whose secrets are public keys.
    let ends = [(0, 0), (1, 0), (0xec, 0x7f), (0xed, 0x7f), (0xee, 0x7f), (9, 0), (0xf6, 0x7f)];
    let others = ends.map(|(first, last)| {
        std::array::from_fn(|n| [first, if last > 0 { 0xff } else { 0 }, last][n.div_ceil(30).min(2)])
    });
    // The highest bit is ignored (RFC 7748, section 5).
    let flipped = |mut p: [u8; 32]| [p, (p[31] ^= 0x80, p).1];
    for point in of_order_8.into_iter().chain(others).flat_map(flipped) {
        let low = !matches!(point[0], 9 | 0xf6);
        let secret = |of_full_order: [u8; 32]| if low { [0; 32] } else { of_full_order };
        let ([mut a, mut b], mut out, mut first) = (pair(None), [0; ROOM], [0; INITIATION]);
        first[0] = 1;
        first[8..40].copy_from_slice(&point);
        begun(&mut first, secret(two), true);
        cookie::forge_mac1(&cookie::Checker::new(&own(2).public()), &mut first);
        assert_eq!(answer(&mut b, &first, now).is_none(), low, "{point:x?}");
        assert!(low || said(reference(2, 1, None).decapsulate(None, &first, &mut out)).len() == RESPONSE);
        // The same in an answer.
        let mut first = initiation(&mut a, now);
        let theirs = messages::field(&first, 8);
        let mut state = begun(&mut first, x25519_dalek::x25519([2; 32], theirs), false);
        let mut second = [0; RESPONSE];
        second[8..12].copy_from_slice(&first[4..8]);
        second[12..44].copy_from_slice(&point);
        state.mix_hash(&point);
        [point, secret(theirs), secret(one)].iter().for_each(|input| state.mix_key(input));
        let key = state.mix_psk(&[0; 32]);
        state.seal(&key, &[], &mut second[44..60]);
        assert_eq!(a.answered(&second, now), if low { Answer::Forged } else { Answer::Taken }, "{point:x?}");
    }
}

#[test]
fn a_recorded_initiation_neither_stands_for_the_keepalive_that_is_owed_nor_begins_anything() {
    let (start, mut out, [mut a, mut b]) = (Moment::now(), [0; ROOM], pair(None));
    let recorded = [9, 119, 130, 166].map(|second| (start + second * SECOND, initiation(&mut b, start)));
    handshake(&mut a, &mut b, start);
    assert_eq!(says(&mut b, &mut a, &[1], start), Received::Content(1));
    for now in (0..4 * 178).map(|n| start + n * SECOND / 4) {
        let due = recorded.iter().find(|(at, _)| *at == now);
        assert!(due.is_none_or(|(_, initiation)| answer(&mut a, initiation, now).is_some()));
        let send = (now == start + KEEPALIVE_TIMEOUT).then_some(OVERHEAD);
        assert_eq!(a.tick(&mut out, now), Tick { send, ..Tick::default() }, "{:?}", now.since(start));
    }
}

#[test]
fn of_what_is_said_to_a_silent_peer_the_newest_is_kept_for_as_long_as_somebody_goes_on() {
    let (start, mut out, mut opened) = (Moment::now(), [0; ROOM], [0; ROOM]);
    let at = |n: u32| start + n * SECOND / 4;
    // One is answered at last, the other is not and has no more to say.
    let ([mut a, mut b], [mut alone, _], mut pushed_out) = (pair(None), pair(None), [0; 2]);
    for n in 0..800 {
        for (noise, count) in [&mut a, &mut alone].into_iter().zip(&mut pushed_out) {
            assert_eq!(noise.tick(&mut out, at(n)).discarded, 0, "{n}");
            let sent = noise.send(&n.to_be_bytes(), 4, &mut out, at(n));
            *count += usize::from(matches!(sent, Sent::Queued { pushed_out: true, .. }));
        }
    }
    assert_eq!(pushed_out, [800 - QUEUE_LIMIT; 2]);
    let sent = (800..).find(|n| a.tick(&mut out, at(*n)).send.is_some()).map(at).unwrap();
    let second = answer(&mut b, out.first_chunk().unwrap(), sent).unwrap();
    assert_eq!(a.answered(&second, sent), Answer::Taken);
    let mut kept = Vec::new();
    while let Some(n) = a.next_queued(&mut out, sent) {
        assert_eq!(b.receive(&out[..n], &mut opened, sent), Received::Content(4));
        kept.push(u32::from_be_bytes(messages::field(&opened, 0)));
    }
    assert!(kept.into_iter().eq(800 - 256..800));
    let end = 799 + 4 * 90;
    assert!((800..end).all(|n| alone.tick(&mut out, at(n)).discarded == 0));
    assert_eq!(alone.tick(&mut out, at(end)), Tick { send: None, given_up: true, discarded: QUEUE_LIMIT });
}

/// Whether who began a session, or answered, begins another as it sends or hears this message at that age.
fn begins(began: bool, sends: bool, age: Duration, number: u64) -> bool {
    let (now, mut out, [mut a, mut b]) = (Moment::now(), [0; ROOM], pair(None));
    handshake(&mut a, &mut b, now);
    // Neither owes a word or awaits one.
    let n = b.keepalive(&mut out, now).unwrap();
    assert_eq!(a.receive(&out[..n], &mut [0; ROOM], now), Received::Keepalive);
    assert_eq!([&mut a, &mut b].map(|noise| noise.tick(&mut out, now)), [Tick::default(); 2]);
    let (who, other) = if began { (&mut a, &mut b) } else { (&mut b, &mut a) };
    let (from, to) = if sends { (&mut *who, other) } else { (other, &mut *who) };
    from.keypairs.sending(now).unwrap().counter = number;
    assert_eq!(says(from, to, &[1], now + age), Received::Content(1));
    who.tick(&mut out, now + age).send.inspect(|n| assert_eq!(*n, INITIATION)).is_some()
}

#[test]
fn who_began_a_session_renews_it_when_it_sends_from_120_seconds_on_or_hears_from_165_on() {
    for age in [119_900, 120_000, 164_900, 165_000, 179_900].map(Duration::from_millis) {
        assert_eq!(begins(true, true, age, 1), age.as_secs() >= 120, "{age:?}");
        assert_eq!(begins(true, false, age, 1), age.as_secs() >= 165, "{age:?}");
        assert!(!begins(false, true, age, 1) && !begins(false, false, age, 1), "{age:?}");
    }
}

#[test]
fn either_side_renews_a_session_after_so_many_messages() {
    for began in [true, false] {
        assert!(!begins(began, true, SECOND, REKEY_AFTER_MESSAGES - 2), "{began}");
        assert!(begins(began, true, SECOND, REKEY_AFTER_MESSAGES - 1), "{began}");
    }
}

#[test]
fn a_cookie_for_an_answer_is_shown_in_the_next_one_and_one_for_an_earlier_message_is_refused() {
    let (now, from, [mut a, mut b]) = (Moment::now(), "192.0.2.1:7".parse().unwrap(), pair(None));
    let checker = cookie::Checker::new(&own(1).public());
    let shows = |message: &[u8]| checker.knows_us(message) && checker.has_cookie(message, from, now);
    let reply = |to: &[u8; RESPONSE]| checker.reply(to, messages::response_sender(to), from, now).unwrap();
    let [first, second] = [0; 2].map(|_| answer(&mut b, &initiation(&mut a, now), now).unwrap());
    assert!(!shows(&second) && !b.take_cookie(&reply(&first), now) && b.take_cookie(&reply(&second), now));
    let third = answer(&mut b, &initiation(&mut a, now), now).unwrap();
    assert!(shows(&third));
    // An initiation is a later message, too.
    assert!(shows(&initiation(&mut b, now)) && !b.take_cookie(&reply(&third), now));
}

#[test]
fn a_peer_that_gives_up_its_session_for_a_repeated_initiations_is_found_again_by_its_second_answer() {
    let (now, [mut a, mut b]) = (Moment::now(), pair(None));
    let [_, mut forgetful] = pair(None);
    let first = answer(&mut b, &initiation(&mut a, now), now).unwrap();
    let later = now + REKEY_TIMEOUT;
    let mut out = [0; ROOM];
    assert_eq!(a.tick(&mut out, later).send, Some(INITIATION));
    // As the kernel and wireguard-go: of what was answered before nothing is left.
    let second = answer(&mut forgetful, out.first_chunk().unwrap(), later).unwrap();
    assert_eq!(a.answered(&first, later), Answer::Taken);
    assert_eq!(says(&mut a, &mut forgetful, &[1], later), Received::Refused);
    assert_eq!(a.tick(&mut out, later + REKEY_TIMEOUT), Tick::default(), "it is not repeated");
    assert_eq!(a.answered(&second, later + REKEY_TIMEOUT), Answer::Taken);
    assert_eq!(says(&mut a, &mut forgetful, &[2], later + REKEY_TIMEOUT), Received::Content(1));
    assert_eq!(says(&mut forgetful, &mut a, &[3], later + REKEY_TIMEOUT), Received::Content(1));
    // What is not answered any more is forgotten without having failed.
    let [mut a, mut b] = pair(None);
    let first = answer(&mut b, &initiation(&mut a, now), now).unwrap();
    assert_eq!(a.tick(&mut out, later).send, Some(INITIATION));
    assert_eq!(a.answered(&first, later), Answer::Taken);
    assert_eq!(a.tick(&mut out, later + 2 * REKEY_TIMEOUT), Tick::default());
    assert!(a.pending.is_none() && a.has_session(later + 2 * REKEY_TIMEOUT));
}
