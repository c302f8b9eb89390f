//! boringtun's `Tunn` is the reference: whatever one of the two says, the other understands.

use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519;
use proptest::prelude::*;

use super::messages::{INITIATION, OVERHEAD};
use super::*;
use crate::keys::PrivateKey;

mod order;

const ROOM: usize = 4096;
const SECOND: Duration = Duration::from_secs(1);

fn own(n: u8) -> Arc<Own> {
    Arc::new(Own::new(&PrivateKey::new([n; 32]).unwrap()))
}

/// Both sides of a pair, each ours.
fn pair(psk: Option<&PresharedKey>) -> [Noise; 2] {
    [(1, 2), (2, 1)].map(|(n, other)| Noise::new(own(n), &own(other).public(), psk, u32::from(n)).unwrap())
}

/// The side of key `n` of such a pair, boringtun's.
fn reference(n: u8, other: u8, psk: Option<&PresharedKey>) -> Tunn {
    let public = x25519::PublicKey::from(*own(other).public().as_bytes());
    let psk = psk.map(|psk| *psk.expose());
    Tunn::new(x25519::StaticSecret::from([n; 32]), public, psk, None, u32::from(n), None)
}

fn said<'a>(result: TunnResult<'a>) -> &'a [u8] {
    let TunnResult::WriteToNetwork(datagram) = result else { panic!("{result:?}") };
    datagram
}

fn initiation(of: &mut Noise, now: Moment) -> [u8; INITIATION] {
    let mut out = [0; ROOM];
    assert_eq!(of.begin(&mut out, now), INITIATION);
    *out.first_chunk().unwrap()
}

fn answer(by: &mut Noise, initiation: &[u8; INITIATION], now: Moment) -> Option<[u8; RESPONSE]> {
    let mut out = [0; ROOM];
    let half = by.parties.own().recognise(initiation)?;
    by.answer(half, &mut out, now).map(|n| {
        assert_eq!(n, RESPONSE);
        *out.first_chunk().unwrap()
    })
}

/// What one side says by its session, and whether that is how the other has it.
fn says(from: &mut Noise, to: &mut Noise, content: &[u8], now: Moment) -> Received {
    let (mut out, mut opened) = ([0; ROOM], [0; ROOM]);
    let Sent::Data(message) = from.send(content, content.len(), &mut out, now) else {
        return Received::Refused;
    };
    let n = message.seal(&mut out);
    let received = to.receive(&out[..n], &mut opened, now);
    if let Received::Content(len) = received {
        assert_eq!(&opened[..len], content);
        to.confirm(messages::data_receiver(&out));
    }
    received
}

fn handshake(from: &mut Noise, to: &mut Noise, now: Moment) {
    let first = initiation(from, now);
    let second = answer(to, &first, now).unwrap();
    assert_eq!(from.answered(&second, now), Answer::Taken);
    assert_eq!(says(from, to, &[1], now), Received::Content(1));
}

/// An inner packet that boringtun lets through: IPv4, of `len` bytes from 20 on.
fn packet(len: usize) -> Vec<u8> {
    let mut packet = vec![7; len];
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&u16::try_from(len).unwrap().to_be_bytes());
    packet
}

fn exchange(ours: &mut Noise, theirs: &mut Tunn, lens: &[usize], now: Moment) {
    let (mut out, mut opened) = ([0; ROOM], [0; ROOM]);
    for &len in lens {
        let packet = packet(len);
        let Sent::Data(message) = ours.send(&packet, len.next_multiple_of(16), &mut out, now) else {
            panic!("there is a session")
        };
        let n = message.seal(&mut out);
        let TunnResult::WriteToTunnelV4(got, _) = theirs.decapsulate(None, &out[..n], &mut opened) else {
            panic!("{len} bytes are refused")
        };
        assert_eq!(got, packet);
        let datagram = said(theirs.encapsulate(&packet, &mut out));
        assert_eq!(ours.receive(datagram, &mut opened, now), Received::Content(len));
        assert_eq!(opened[..len], packet);
    }
}

fn psk(n: u8) -> Option<PresharedKey> {
    PresharedKey::new([n; 32])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn who_begins_with_boringtun_or_is_asked_by_it_has_a_session_with_it(
        a in 1u8..100, b in 100u8..200, key in 0u8..3, lens in prop::collection::vec(20usize..2000, 1..20),
    ) {
        let now = Moment::now();
        let psk = psk(key);
        let mut out = [0; ROOM];

        let mut ours = Noise::new(own(a), &own(b).public(), psk.as_ref(), 77).unwrap();
        let mut theirs = reference(b, a, psk.as_ref());
        let first = initiation(&mut ours, now);
        let second = said(theirs.decapsulate(None, &first, &mut out)).try_into().unwrap();
        prop_assert_eq!(ours.answered(&second, now), Answer::Taken);
        let n = ours.keepalive(&mut out, now).unwrap();
        prop_assert!(matches!(theirs.decapsulate(None, &out[..n], &mut [0; ROOM]), TunnResult::Done));
        exchange(&mut ours, &mut theirs, &lens, now);

        // The same two again, the other way round.
        let first = said(theirs.format_handshake_initiation(&mut out, true)).try_into().unwrap();
        let second = answer(&mut ours, &first, now).unwrap();
        let mut keepalive = [0; ROOM];
        let keepalive = said(theirs.decapsulate(None, &second, &mut keepalive));
        let n = keepalive.len();
        prop_assert_eq!(n, OVERHEAD);
        prop_assert_eq!(ours.receive(keepalive, &mut out, now), Received::Keepalive);
        prop_assert!(ours.confirm(messages::data_receiver(keepalive)));
        exchange(&mut ours, &mut theirs, &lens, now);
    }

    #[test]
    fn another_pre_shared_key_makes_no_session(ours in 0u8..3, theirs in 3u8..6) {
        let now = Moment::now();
        let (ours, theirs) = (psk(ours), psk(theirs));
        let [mut a, _] = pair(ours.as_ref());
        let [_, mut b] = pair(theirs.as_ref());
        let first = initiation(&mut a, now);
        let second = answer(&mut b, &first, now).unwrap();
        prop_assert_eq!(a.answered(&second, now), Answer::Forged);
        let mut tunn = reference(2, 1, theirs.as_ref());
        let mut out = [0; ROOM];
        let second = said(tunn.decapsulate(None, &initiation(&mut a, now), &mut out)).try_into().unwrap();
        prop_assert_eq!(a.answered(&second, now), Answer::Forged);
    }

    #[test]
    fn an_altered_handshake_message_is_refused(at in any::<prop::sample::Index>(), flip in 1u8..=255) {
        let now = Moment::now();
        let [mut a, mut b] = pair(None);
        let first = initiation(&mut a, now);
        // Type and MACs are not of the handshake itself; of the sender's index nothing but the answer's address follows.
        let mut altered = first;
        altered[8 + at.index(INITIATION - 32 - 8)] ^= flip;
        prop_assert!(answer(&mut b, &altered, now).is_none());
        let second = answer(&mut b, &first, now).unwrap();
        let mut altered = second;
        altered[8 + at.index(RESPONSE - 32 - 8)] ^= flip;
        prop_assert_ne!(a.answered(&altered, now), Answer::Taken);
        prop_assert_eq!(a.answered(&second, now), Answer::Taken);
    }
}

#[test]
fn macs_and_cookies_are_those_of_the_reference() {
    let now = Moment::now();
    let from = "192.0.2.1:7".parse().unwrap();
    let [mut a, _] = pair(None);
    let checker = cookie::Checker::new(&own(2).public());
    let first = initiation(&mut a, now);
    assert!(checker.knows_us(&first) && !checker.has_cookie(&first, from, now));
    assert!(!cookie::Checker::new(&own(3).public()).knows_us(&first));
    // Theirs for ours: its limiter asks everybody for a cookie.
    let limiter = Arc::new(boringtun::noise::rate_limiter::RateLimiter::new(
        &x25519::PublicKey::from(*own(2).public().as_bytes()),
        0,
    ));
    let mut reply = [0; ROOM];
    let Err(TunnResult::WriteToNetwork(reply)) =
        limiter.verify_packet(Some("192.0.2.1".parse().unwrap()), &first, &mut reply)
    else {
        panic!("no cookie")
    };
    let reply = (&*reply).try_into().unwrap();
    assert!(a.take_cookie(&reply, now));
    assert!(!a.take_cookie(&reply, now), "one for each message");
    let second = initiation(&mut a, now);
    assert!(limiter.verify_packet(Some("192.0.2.1".parse().unwrap()), &second, &mut [0; ROOM]).is_ok());
    assert!(
        limiter.verify_packet(Some("192.0.2.2".parse().unwrap()), &second, &mut [0; ROOM]).is_err(),
        "it is another address's"
    );
    // Ours for theirs.
    let mut tunn = reference(1, 2, None);
    let mut out = [0; ROOM];
    let first = said(tunn.format_handshake_initiation(&mut out, true)).to_vec();
    let index = messages::sender(first[..].try_into().unwrap());
    let reply = checker.reply(&first, index, from, now).unwrap();
    assert!(matches!(tunn.decapsulate(None, &reply, &mut [0; ROOM]), TunnResult::Done));
    let second = said(tunn.format_handshake_initiation(&mut out, true)).to_vec();
    assert!(checker.knows_us(&second) && checker.has_cookie(&second, from, now));
    for other in ["192.0.2.2:7", "192.0.2.1:8", "[2001:db8::1]:7"] {
        assert!(!checker.has_cookie(&second, other.parse().unwrap(), now), "{other}");
    }
    assert!(!checker.has_cookie(&second, from, now + Duration::from_secs(120)), "the secret is another one");
}

#[test]
fn a_cookie_is_shown_as_long_as_its_maker_knows_it() {
    let now = Moment::now();
    let from = "192.0.2.1:7".parse().unwrap();
    let checker = cookie::Checker::new(&own(2).public());
    let [mut a, _] = pair(None);
    let reply = checker.reply(&initiation(&mut a, now), 256, from, now).unwrap();
    assert!(a.take_cookie(&reply, now));
    let seconds = |n| now + n * SECOND;
    assert!(checker.has_cookie(&initiation(&mut a, seconds(114)), from, seconds(114)));
    let zeros = initiation(&mut a, seconds(115));
    assert_eq!(zeros[INITIATION - 16..], [0; 16]);
}

#[test]
fn a_counter_beyond_the_message_limit_is_neither_sent_nor_accepted() {
    let now = Moment::now();
    let [mut a, mut b] = pair(None);
    handshake(&mut a, &mut b, now);
    a.keypairs.sending(now).unwrap().counter = REJECT_AFTER_MESSAGES - 1;
    assert_eq!(says(&mut a, &mut b, &[2], now), Received::Content(1));
    assert!(!a.has_session(now));
    assert!(matches!(
        a.send(&[3], 1, &mut [0; ROOM], now),
        Sent::Queued { initiation: Some(INITIATION), pushed_out: false }
    ));
    // A peer that goes on all the same.
    let [mut a, mut b] = pair(None);
    handshake(&mut a, &mut b, now);
    let mut out = [0; ROOM];
    let keypair = a.keypairs.sending(now).unwrap();
    keypair.counter = REJECT_AFTER_MESSAGES;
    let n = keypair.seal(&[4], 1, &mut out);
    assert_eq!(b.receive(&out[..n], &mut [0; ROOM], now), Received::Refused);
}

#[test]
fn a_session_ends_for_both_directions_180_seconds_after_it_was_made_and_its_keys_are_gone() {
    let now = Moment::now();
    let [mut a, mut b] = pair(None);
    handshake(&mut a, &mut b, now);
    let last = now + Duration::from_millis(179_999);
    assert_eq!(says(&mut a, &mut b, &[2], last), Received::Content(1));
    let mut under_way = [0; ROOM];
    let Sent::Data(message) = a.send(&[3], 1, &mut under_way, last) else { panic!("it has not ended") };
    let n = message.seal(&mut under_way);
    let end = now + REJECT_AFTER_TIME;
    assert!(!a.has_session(end));
    assert_eq!(b.receive(&under_way[..n], &mut [0; ROOM], end), Received::Refused);
    b.tick(&mut [0; ROOM], end);
    assert!(b.keypairs.current().is_none());
}

#[test]
fn the_same_initiation_again_or_an_older_one_is_not_answered() {
    let now = Moment::now();
    let [mut a, mut b] = pair(None);
    let [first, second] = [0, 1].map(|_| initiation(&mut a, now));
    assert!(answer(&mut b, &second, now).is_some());
    assert!(answer(&mut b, &second, now).is_none());
    assert!(answer(&mut b, &first, now).is_none());
    let third = initiation(&mut a, now);
    assert!(answer(&mut b, &third, now).is_some());
}

#[test]
fn where_two_begin_at_once_each_hears_what_the_other_sends_by_whatever_session() {
    for lost in [None, Some(0), Some(1)] {
        let now = Moment::now();
        let [mut a, mut b] = pair(None);
        handshake(&mut a, &mut b, now);
        let (of_a, of_b) = (initiation(&mut a, now), initiation(&mut b, now));
        let (by_a, by_b) = (answer(&mut a, &of_b, now).unwrap(), answer(&mut b, &of_a, now).unwrap());
        assert_eq!(says(&mut a, &mut b, &[1], now), Received::Content(1), "the session before");
        if lost != Some(0) {
            assert_eq!(b.answered(&by_a, now), Answer::Taken);
        }
        if lost != Some(1) {
            assert_eq!(a.answered(&by_b, now), Answer::Taken);
        }
        for n in 0..4 {
            assert_eq!(says(&mut a, &mut b, &[n], now), Received::Content(1), "{lost:?}");
            assert_eq!(says(&mut b, &mut a, &[n], now), Received::Content(1), "{lost:?}");
        }
    }
}

/// Runs both sides' timers and carries what they say, until nothing is left to say.
fn pass(
    nodes: &mut [Noise; 2],
    from: Moment,
    time: Duration,
    mut lost: impl FnMut(usize, &[u8]) -> bool,
) -> [u32; 3] {
    let step = Duration::from_millis(250);
    let (mut now, mut count) = (from, [0; 3]);
    while now.since(from) < time {
        now = now + step;
        for n in 0..2 {
            let mut out = [0; ROOM];
            let mut next = nodes[n].tick(&mut out, now).send.map(|len| (n, out[..len].to_vec()));
            while let Some((by, datagram)) = next.take() {
                count[match datagram[0] {
                    1 => 0,
                    4 => 1,
                    _ => 2,
                }] += 1;
                if lost(by, &datagram) {
                    break;
                }
                let to = &mut nodes[1 - by];
                let mut reply = [0; ROOM];
                let len = match messages::parse(&datagram).unwrap() {
                    messages::Message::Initiation(m) => answer(to, m, now).map(|answer| {
                        reply[..RESPONSE].copy_from_slice(&answer);
                        RESPONSE
                    }),
                    messages::Message::Response(m) => {
                        assert_eq!(to.answered(m, now), Answer::Taken);
                        to.keepalive(&mut reply, now)
                    }
                    messages::Message::Data(m) => {
                        assert_ne!(to.receive(m, &mut reply, now), Received::Refused);
                        to.confirm(messages::data_receiver(m));
                        None
                    }
                    messages::Message::Cookie(_) => None,
                };
                next = len.map(|len| (1 - by, reply[..len].to_vec()));
            }
        }
    }
    count
}

#[test]
fn who_has_nothing_to_say_says_so_once_and_an_idle_pair_is_silent() {
    let now = Moment::now();
    let mut nodes = pair(None);
    let [a, b] = &mut nodes;
    handshake(a, b, now);
    // b got content and owes a sign of life after ten seconds; a, which hears it, waits for nothing.
    assert_eq!(pass(&mut nodes, now, 9 * SECOND, |_, _| false), [0, 0, 0]);
    assert_eq!(pass(&mut nodes, now + 9 * SECOND, 300 * SECOND, |_, _| false), [0, 1, 0]);
}

#[test]
fn an_unanswered_initiation_is_repeated_every_five_seconds_for_ninety() {
    let now = Moment::now();
    let mut nodes = pair(None);
    let mut out = [0; ROOM];
    assert!(matches!(
        nodes[0].send(&[1], 1, &mut out, now),
        Sent::Queued { initiation: Some(INITIATION), pushed_out: false }
    ));
    for n in 1..QUEUE_LIMIT {
        assert!(
            matches!(
                nodes[0].send(&[1], 1, &mut out, now),
                Sent::Queued { initiation: None, pushed_out: false }
            ),
            "{n}"
        );
    }
    assert!(matches!(
        nodes[0].send(&[1], 1, &mut out, now),
        Sent::Queued { initiation: None, pushed_out: true }
    ));
    assert_eq!(pass(&mut nodes, now, 89 * SECOND, |_, _| true), [17, 0, 0]);
    let end = nodes[0].tick(&mut out, now + 90 * SECOND);
    assert_eq!(end, Tick { send: None, given_up: true, discarded: QUEUE_LIMIT });
    assert_eq!(pass(&mut nodes, now + 90 * SECOND, 300 * SECOND, |_, _| true), [0, 0, 0]);
    // The next packet begins anew.
    let later = now + 400 * SECOND;
    assert!(matches!(
        nodes[0].send(&[1], 1, &mut out, later),
        Sent::Queued { initiation: Some(INITIATION), pushed_out: false }
    ));
    assert_eq!(pass(&mut nodes, later, 6 * SECOND, |_, _| false), [1, 1, 1]);
    assert!(nodes[0].next_queued(&mut out, later + 6 * SECOND).is_some());
}

#[test]
fn who_sends_and_hears_nothing_for_fifteen_seconds_begins() {
    let now = Moment::now();
    let mut nodes = pair(None);
    let [a, b] = &mut nodes;
    handshake(a, b, now);
    // A new process: it knows of no session.
    let [_, fresh] = pair(None);
    nodes[1] = fresh;
    let mut out = [0; ROOM];
    assert!(matches!(nodes[0].send(&[1], 1, &mut out, now), Sent::Data(_)));
    assert_eq!(pass(&mut nodes, now, 14 * SECOND, |_, _| false), [0, 0, 0]);
    assert_eq!(pass(&mut nodes, now + 14 * SECOND, SECOND, |_, _| false), [1, 1, 1]);
}

#[test]
fn a_session_is_renewed_by_who_began_it_when_it_is_used() {
    let now = Moment::now();
    let mut nodes = pair(None);
    let [a, b] = &mut nodes;
    handshake(a, b, now);
    let at = |seconds: u64| now + Duration::from_secs(seconds);
    let say = |nodes: &mut [Noise; 2], n: usize, seconds: u64| {
        let [a, b] = nodes;
        let (from, to) = if n == 0 { (a, b) } else { (b, a) };
        assert_eq!(says(from, to, &[1], at(seconds)), Received::Content(1));
    };
    say(&mut nodes, 0, 119);
    say(&mut nodes, 1, 119);
    assert_eq!(pass(&mut nodes, at(119), SECOND / 2, |_, _| false)[0], 0);
    say(&mut nodes, 1, 121);
    assert_eq!(pass(&mut nodes, at(121), SECOND / 2, |_, _| false)[0], 0, "it has not sent since");
    say(&mut nodes, 0, 122);
    assert_eq!(pass(&mut nodes, at(122), SECOND / 2, |_, _| false)[0], 1, "it has");
    // The new session: now only the other has something to say.
    say(&mut nodes, 1, 122 + 150);
    assert_eq!(pass(&mut nodes, at(122 + 150), 5 * SECOND, |_, _| false)[0], 0);
    say(&mut nodes, 1, 122 + 166);
    assert_eq!(pass(&mut nodes, at(122 + 166), 5 * SECOND, |_, _| false)[0], 1);
}

/// A part of this process's memory, whatever lies there, onto the heap.
fn memory(address: usize, bytes: usize) -> Vec<u8> {
    use std::os::unix::fs::FileExt as _;
    let mut found = vec![0; bytes];
    let memory = std::fs::File::open("/proc/self/mem").unwrap();
    memory.read_exact_at(&mut found, address as u64).unwrap();
    found
}

#[test]
fn an_answered_handshake_leaves_no_secret_in_what_is_kept_of_its_peer() {
    let now = Moment::now();
    let [mut first, mut second] = pair(None);
    let message = initiation(&mut first, now);
    let state: &Initiated = &first.pending.as_ref().unwrap().state;
    let secret = memory(std::ptr::from_ref(state).addr(), size_of::<Initiated>());
    let response = answer(&mut second, &message, now).unwrap();
    assert_eq!(first.answered(&response, now), Answer::Taken);
    let kept = memory(std::ptr::from_ref(&first).addr(), size_of::<Noise>());
    let found = kept
        .windows(16)
        .filter(|window| secret.windows(16).any(|secret| secret == *window && secret != [0; 16]));
    assert_eq!(found.count(), 0);
}

/// Which of these lie on this thread's stack, up to `deep` bytes below whoever calls.
#[inline(never)]
fn on_the_stack(deep: usize, secrets: &[(&'static str, [u8; 32])]) -> Vec<&'static str> {
    let here = std::ptr::from_ref(&deep).addr();
    // Nothing but a call or two between here and what is looked at.
    let stack = memory(here - deep, deep);
    // Half of each is enough to be told from chance.
    let found = |secret: &[u8; 32]| stack.windows(16).any(|window| *window == secret[8..24]);
    secrets.iter().filter(|(_, secret)| found(secret)).map(|(name, _)| *name).collect()
}

/// What the tests of stacks look for, never as it is on the stack of who asks.
fn kept_apart(n: u8) -> Box<[u8; 32]> {
    let mut secret = Box::new([0; 32]);
    for (i, byte) in secret.iter_mut().enumerate() {
        *byte = u8::try_from(i).unwrap().wrapping_mul(37) ^ n;
    }
    secret
}

/// Their shared secret, made on another thread's stack.
fn shared_apart(a: u8, b: u8) -> Box<[u8; 32]> {
    std::thread::spawn(move || {
        let [a, b] = [a, b].map(|n| x25519::StaticSecret::from(*kept_apart(n)));
        Box::new(a.diffie_hellman(&x25519::PublicKey::from(&b)).to_bytes())
    })
    .join()
    .unwrap()
}

/// A control: whoever copies a secret deep in the stack is caught.
#[inline(never)]
fn careless(secret: &[u8; 32]) {
    let mut frame = [0_u8; 4096];
    frame[64..96].copy_from_slice(secret);
    std::hint::black_box(&mut frame);
}

#[test]
fn no_key_is_left_on_the_stack_by_a_handshake() {
    const DEEP: usize = 28 << 10;
    std::thread::spawn(|| {
        let mut secrets = vec![
            ("a's key", *kept_apart(1)),
            ("b's key", *kept_apart(2)),
            ("the pre-shared key", *kept_apart(3)),
            ("what both keys make", *shared_apart(1, 2)),
        ];
        // As HMAC has its keys (RFC 2104).
        for (name, pad) in [("inner", 0x36), ("outer", 0x5c)] {
            secrets.push((name, secrets[3].1.map(|byte| byte ^ pad)));
        }
        careless(&kept_apart(1));
        assert_eq!(on_the_stack(DEEP, &secrets), ["a's key"]);
        careless(&[0; 32]);

        let [a, b, psk] = [1, 2, 3].map(kept_apart);
        let own = [&a, &b].map(|key| Arc::new(Own::new(&PrivateKey::new(**key).unwrap())));
        let psk_key = PresharedKey::new(*psk).unwrap();
        let now = Moment::now();
        let public = own.each_ref().map(|own| own.public());
        let mut first = Noise::new(Arc::clone(&own[0]), &public[1], Some(&psk_key), 1).unwrap();
        let mut second = Noise::new(Arc::clone(&own[1]), &public[0], Some(&psk_key), 2).unwrap();
        let message = initiation(&mut first, now);
        let mut answer = [0; RESPONSE];
        for step in 0..4 {
            match step {
                0 => drop(initiation(&mut second, now)),
                1 => assert!(own[1].recognise(&message).is_some()),
                2 => drop(second.answer(own[1].recognise(&message).unwrap(), &mut answer, now).unwrap()),
                _ => assert_eq!(first.answered(&answer, now), Answer::Taken),
            }
            let made = hash::made::keys().into_iter().map(|key| ("a session's key", key));
            let all: Vec<_> = secrets.iter().copied().chain(made).collect();
            assert_eq!(on_the_stack(DEEP, &all), [""; 0], "step {step}");
        }
        assert_eq!(hash::made::keys().len(), 4);
    })
    .join()
    .unwrap();
}

#[test]
fn no_key_is_left_on_the_stack_by_data_once_a_thread_waits() {
    std::thread::spawn(|| {
        let now = Moment::now();
        let [mut first, mut second] = pair(None);
        let message = initiation(&mut first, now);
        let response = answer(&mut second, &message, now).unwrap();
        assert_eq!(first.answered(&response, now), Answer::Taken);
        let keys: Vec<_> = hash::made::keys().into_iter().map(|key| ("a session's key", key)).collect();
        let mut out = vec![0; 2048];
        assert!(first.keepalive(&mut out, now).is_some());
        // Whether the cipher leaves any there is its own affair, and differs with the processor.
        careless(&keys[0].1);
        assert!(!on_the_stack(8 << 10, &keys).is_empty());
        wipe_below();
        assert_eq!(on_the_stack(8 << 10, &keys), [""; 0]);
    })
    .join()
    .unwrap();
}
