//! Who asks, or answers, too much.

use super::*;

#[test]
fn a_flood_is_answered_with_cookies_and_who_shows_his_cookie_gets_in() {
    let b = Node::new(2);
    let a = Node::new(1);
    b.knows(&a, &["10.0.0.1/32"]);
    let to = x25519::PublicKey::from(*b.public().as_bytes());
    let knock = |tunn: &mut Tunn| {
        let mut buf = vec![0; 2048];
        let TunnResult::WriteToNetwork(d) = tunn.format_handshake_initiation(&mut buf, true) else {
            panic!("an initiation")
        };
        d.to_vec()
    };
    let mut flood = Tunn::new(x25519::StaticSecret::from([66; 32]), to, None, None, 5, None);
    let mut cookies = 0;
    for n in 0..1000u16 {
        let [high, low] = n.to_be_bytes();
        let from = SocketAddr::from(([198, 51, high, low], 9));
        cookies += b.receive(&knock(&mut flood), from).udp.len();
    }
    assert!(cookies >= 700, "{cookies} cookie replies");
    assert_eq!(b.count(Counter::CookieSent), cookies as u64);
    let mut real = Tunn::new(x25519::StaticSecret::from(*a.private.expose()), to, None, None, 6, None);
    let cookie = b.receive(&knock(&mut real), a.addr).udp.remove(0).1;
    assert_eq!(cookie[0], 3);
    assert!(matches!(real.decapsulate(None, &cookie, &mut [0; 2048]), TunnResult::Done));
    let response = b.receive(&knock(&mut real), a.addr).udp.remove(0).1;
    assert_eq!(response[0], 2);
    assert!(matches!(real.decapsulate(None, &response, &mut [0; 2048]), TunnResult::WriteToNetwork(_)));
}

#[test]
fn a_hub_that_asks_all_its_peers_at_once_takes_no_answer_for_load() {
    let hub = Node::new(1);
    for n in 2..=250 {
        let other = Node::new(n);
        hub.knows(&other, &[&format!("10.0.0.{n}/32")]);
        other.knows(&hub, &["10.0.0.1/32"]);
        let ping = v4([10, 0, 0, 1], [10, 0, 0, n], 8);
        let delivered = settle(&[&hub, &other], 0, hub.transmit(&ping));
        assert_eq!(delivered.get(&1), Some(&vec![ping]), "peer {n}");
    }
    assert_eq!((hub.count(Counter::CookieSent), hub.count(Counter::RateLimited)), (0, 0));
}

#[test]
fn answers_that_are_none_cost_little_and_do_not_keep_the_true_one_away() {
    let (a, b) = (Node::new(1), Node::new(2));
    a.knows(&b, &["10.0.0.2/32"]);
    b.knows(&a, &["10.0.0.1/32"]);
    let first = a.transmit(&v4([10, 0, 0, 1], [10, 0, 0, 2], 8)).udp.remove(0).1;
    let answer = b.receive(&first, a.addr).udp.remove(0).1;
    // Somebody who has seen the initiation, and knows the public key as everybody may.
    let mac1 = |message: &mut [u8]| {
        let checker = crate::noise::cookie::Checker::new(&a.public());
        crate::noise::cookie::forge_mac1(&checker, message);
    };
    let from = "198.51.100.1:9".parse().unwrap();
    let mut cookies = 0;
    for n in 0..200 {
        let mut forged = answer.clone();
        forged[20] ^= 1 + n;
        mac1(&mut forged);
        cookies += a.receive(&forged, from).udp.len();
    }
    assert_eq!((cookies, a.count(Counter::CookieSent)), (100, 100), "after a hundred that were looked at");
    assert_eq!(a.count(Counter::HandshakeDone), 0);
    // The true one is asked for a cookie as well; the next second nobody is.
    let asked = a.receive(&answer, b.addr).udp.remove(0).1;
    assert_eq!(asked[0], 3);
    let mut out = Out::default();
    a.engine.handle_timers(Moment::now() + Duration::from_secs(1), &mut vec![0; SCRATCH], &mut out);
    a.engine.handle_timers(Moment::now() + Duration::from_secs(3), &mut vec![0; SCRATCH], &mut out);
    a.receive(&answer, b.addr);
    assert_eq!(a.count(Counter::HandshakeDone), 1);
}
