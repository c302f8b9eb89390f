//! Initiations that somebody recorded, and sessions that nobody shares.

use super::*;

/// A new process of the host that `node` is: nobody's session is known to it.
fn reborn(node: &Node, other: &Node) -> Node {
    let n = node.private.expose()[0];
    let again = Node::new(n);
    again.knows(other, &[if n == 1 { "10.0.0.2/32" } else { "10.0.0.1/32" }]);
    again
}

fn ping(from: &Node) -> Vec<u8> {
    let (a, b) = ([10, 0, 0, 1], [10, 0, 0, 2]);
    if from.private.expose()[0] == 1 { v4(a, b, 8) } else { v4(b, a, 8) }
}

/// What a new process of `node` would begin with.
fn knock(node: &Node, at: &Node) -> Vec<u8> {
    let again = reborn(node, at);
    let first = again.transmit(&ping(&again)).udp.remove(0).1;
    assert_eq!(first[0], 1);
    first
}

fn inner_of<T>(node: &Node, peer: &Node, with: impl FnOnce(&mut PeerInner) -> T) -> T {
    let peer = Arc::clone(&read(&node.engine.registry).by_key[&peer.public()]);
    with(&mut lock(&peer.inner))
}

fn carries(from: &Node, to: &Node) {
    let packet = ping(from);
    let datagram = from.transmit(&packet).udp.remove(0).1;
    assert_eq!(datagram[0], 4, "there is a session");
    assert_eq!(to.receive(&datagram, from.addr).tun, [packet]);
}

#[test]
fn recorded_initiations_do_not_push_out_the_session_in_use_however_many_they_are() {
    let (a, b) = pair();
    let elsewhere = "198.51.100.1:9".parse().unwrap();
    for n in 0..40 {
        let answer = b.receive(&knock(&a, &b), elsewhere).udp;
        assert_eq!(answer.first().map(|(to, d)| (*to, d[0])), Some((elsewhere, 2)), "number {n}");
        carries(&b, &a);
        carries(&a, &b);
    }
    assert_eq!(b.endpoint_of(a.public()), Some(a.addr));
    assert_eq!(b.count(Counter::HandshakeDone), 1, "none of them was confirmed");
}

#[test]
fn the_same_initiation_again_is_no_answer_and_moves_nothing() {
    let (a, b) = pair();
    let recorded = knock(&a, &b);
    assert_eq!(b.receive(&recorded, a.addr).udp.len(), 1);
    for _ in 0..40 {
        assert!(b.receive(&recorded, a.addr).udp.is_empty());
        carries(&b, &a);
        carries(&a, &b);
    }
    assert_eq!(b.count(Counter::ReplayOrAuth), 40);
}

/// Both have a session, by all that they know, and not the same one; and each has answers that never arrived.
#[test]
fn two_that_have_no_session_in_common_agree_on_one_at_once_whatever_was_lost_before() {
    for lost in [0, 3, 4, 8, 20] {
        let (a, b) = pair();
        let a = {
            // It came back, and its first words by the new session were lost.
            let (back, b_of_old) = (reborn(&a, &b), reborn(&b, &a));
            let first = back.transmit(&ping(&back));
            settle(&[&back, &b_of_old], 0, first);
            back
        };
        for _ in 0..lost {
            b.receive(&knock(&a, &b), a.addr);
            a.receive(&knock(&b, &a), b.addr);
        }
        // Neither hears the other.
        for (from, to) in [(&a, &b), (&b, &a)] {
            let datagram = from.transmit(&ping(from)).udp.remove(0).1;
            assert!(to.receive(&datagram, from.addr).tun.is_empty());
        }
        // So one of them begins, as its timers would have it.
        let mut scratch = vec![0; SCRATCH];
        let n = inner_of(&a, &b, |inner| inner.begin(&mut scratch).unwrap());
        let first = Out { udp: vec![(b.addr, scratch[..n].to_vec())], ..Out::default() };
        settle(&[&a, &b], 0, first);
        carries(&a, &b);
        carries(&b, &a);
    }
}
