//! Who may speak for which address, and who may speak at all.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519;

use crate::lab::{Keys, Lab, PORT, Stream, eventually, hex};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn a_prefix_moved_under_traffic_is_its_new_peers_alone_in_both_directions() {
    let lab = Lab::new(3);
    let [a, b, c] = &lab.nodes[..] else { panic!("three nodes") };
    a.knows(b, Some(b.v4()), "allowed_ip=10.88.0.0/24\n");
    a.knows(c, Some(c.v4()), "");
    for n in [b, c] {
        n.knows(a, Some(a.v4()), "");
        n.ns.run("ip addr add 10.88.0.1/32 dev lo");
        n.ns.reaches(&a.inner4());
    }
    let from_old = Stream::start((&b.ns, ip("10.88.0.1")), (&a.ns, ip("10.77.0.1")), 200);
    from_old.flows(50);
    assert_eq!(a.count("drops.wrong_source"), 0);
    a.set(&format!("public_key={}\nallowed_ip=10.88.0.0/24\n", c.public()));
    let at_move = from_old.seen();
    eventually("the old peer's packets are dropped", Duration::from_secs(5), || {
        a.count("drops.wrong_source") >= 50
    });
    // What the kernel had delivered to the socket before the move may still be counted after it.
    assert!(from_old.seen() - at_move <= 5, "packets of the old peer were accepted after the move");
    from_old.finish();
    let from_new = Stream::start((&c.ns, ip("10.88.0.1")), (&a.ns, ip("10.77.0.1")), 200);
    from_new.flows(50);
    from_new.finish();
    let (old, new) = (b.ns.udp("10.88.0.1:9".parse().unwrap()), c.ns.udp("10.88.0.1:9".parse().unwrap()));
    for s in [&old, &new] {
        s.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    }
    a.ns.udp("10.77.0.1:0".parse().unwrap()).send_to(b"x", "10.88.0.1:9").unwrap();
    assert!(new.recv(&mut [0; 8]).is_ok(), "the new peer receives");
    assert!(old.recv(&mut [0; 8]).is_err(), "the old peer does not");
}

#[test]
fn a_packet_for_nobody_and_one_without_endpoint_are_dropped_and_counted() {
    let lab = Lab::new(2);
    let (a, b) = lab.two();
    a.knows(b, None, "");
    a.ns.udp("10.77.0.1:0".parse().unwrap()).send_to(b"x", "10.99.0.1:9").unwrap();
    a.ns.udp("10.77.0.1:0".parse().unwrap()).send_to(b"x", "10.77.0.2:9").unwrap();
    eventually("both are counted", Duration::from_secs(5), || {
        a.count("drops.no_peer") == 1 && a.count("drops.no_endpoint") == 1
    });
}

#[test]
fn pre_shared_keys_must_match() {
    let lab = Lab::pair();
    let (a, b) = lab.two();
    a.ns.reaches(&b.inner4());
    let psk = |key: &str| format!("preshared_key={}\n", key.repeat(32));
    a.set(&format!("public_key={}\n{}", b.public(), psk("aa")));
    assert!(!a.ns.loses_nothing(&b.inner4(), 2), "one side has a key and the other has none");
    b.set(&format!("public_key={}\n{}", a.public(), psk("bb")));
    assert!(!b.ns.loses_nothing(&a.inner4(), 2), "the keys differ");
    assert!(a.count("drops.replay_or_auth") + b.count("drops.replay_or_auth") > 0);
    b.set(&format!("public_key={}\n{}", a.public(), psk("aa")));
    b.ns.reaches(&a.inner4());
    a.ns.reaches(&b.inner4());
}

#[test]
fn a_peer_with_the_wrong_key_never_connects() {
    let lab = Lab::pair();
    let (a, b) = lab.two();
    a.set(&format!("private_key={}\n", hex(&Keys::new().private)));
    assert!(!a.ns.loses_nothing(&b.inner4(), 3));
    assert!(b.count("drops.unknown_peer") > 0);
    assert_eq!(b.count("handshakes.completed"), 0);
    assert_eq!(a.count("packets.delivered"), 0);
}

#[test]
fn a_removed_peer_stops_at_once() {
    let lab = Lab::pair();
    let (a, b) = lab.two();
    a.ns.reaches(&b.inner4());
    let stream = Stream::start((&a.ns, ip("10.77.0.1")), (&b.ns, ip("10.77.0.2")), 200);
    stream.flows(50);
    b.set(&format!("public_key={}\nremove=true\n", a.public()));
    let seen = stream.seen();
    eventually("its datagrams are unknown", Duration::from_secs(5), || {
        b.count("drops.unknown_session") >= 50
    });
    assert!(stream.seen() - seen <= 5);
    stream.finish();
    assert!(!b.ns.loses_nothing(&a.inner4(), 1));
}

#[test]
fn a_side_that_is_killed_and_comes_back_is_in_traffic_again() {
    let mut lab = Lab::pair();
    lab.nodes[0].ns.reaches("10.77.0.2");
    lab.nodes[1].kill();
    assert!(!lab.nodes[0].ns.loses_nothing("10.77.0.2", 1));
    lab.nodes[1].start();
    let (a, b) = lab.two();
    assert!(!b.get().contains("public_key"), "a new process knows nothing");
    b.configure();
    b.knows(a, Some(a.v4()), "persistent_keepalive_interval=1\n");
    a.ns.reaches(&b.inner4());
    b.ns.reaches(&a.inner6());
}

#[test]
fn one_of_many_peers_works_and_all_are_shown() {
    let lab = Lab::pair();
    let (a, b) = lab.two();
    let mut lines = String::new();
    for n in 0..50 {
        lines += &format!(
            "public_key={}\nendpoint=192.0.2.250:{}\nallowed_ip=10.100.{n}.0/24\nallowed_ip=fd00:{n}::/64\n",
            hex(&Keys::new().public),
            2000 + n
        );
    }
    a.set(&lines);
    a.ns.reaches(&b.inner4());
    b.ns.reaches(&a.inner6());
    assert_eq!(a.ns.run("wg show hawser0 peers").lines().count(), 51);
    assert_eq!(a.ns.run("wg show hawser0 allowed-ips").matches("10.100.").count(), 50);
}

#[test]
fn a_flood_of_handshakes_is_answered_with_cookies_and_a_real_peer_still_connects() {
    let lab = Lab::new(3);
    let [a, b, c] = &lab.nodes[..] else { panic!("three nodes") };
    let socket = c.ns.udp("0.0.0.0:0".parse().unwrap());
    let to = x25519::PublicKey::from(b.keys.public);
    let target: SocketAddr = b.v4().parse().unwrap();
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let stopping = std::sync::Arc::clone(&stop);
    let flood = std::thread::spawn(move || {
        // Valid MACs: whoever knows the public key can make them.
        let mut tunn = Tunn::new(x25519::StaticSecret::from(Keys::new().private), to, None, None, 1, None);
        let mut buf = [0; 2048];
        while !stopping.load(std::sync::atomic::Ordering::Relaxed) {
            if let TunnResult::WriteToNetwork(d) = tunn.format_handshake_initiation(&mut buf, true) {
                let _ = socket.send_to(d, target);
            }
            std::thread::sleep(Duration::from_micros(500));
        }
    });
    eventually("cookies are sent", Duration::from_secs(5), || b.count("handshakes.cookies_sent") > 200);
    a.knows(b, Some(b.v4()), "persistent_keepalive_interval=1\n");
    b.knows(a, None, "");
    eventually("the real peer connects", Duration::from_secs(20), || a.ns.loses_nothing(&b.inner4(), 2));
    assert!(a.count("handshakes.cookies_received") > 0 || a.count("handshakes.initiations_sent") == 1);
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    flood.join().unwrap();
    assert_eq!(PORT, target.port());
}
