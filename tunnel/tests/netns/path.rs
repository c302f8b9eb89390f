//! A path that is narrower than both ends' links: who sends through the tunnel learns of it, and it of who sends.

use std::net::SocketAddr;
use std::time::Duration;

use crate::lab::{Lab, Node, Ns, Program, eventually};
use crate::traffic::tcp_both_ways;

/// Bytes that the narrow link carries, and what is left of them inside: over IPv4 60 less, over IPv6 80.
const NARROW: u32 = 1380;
const SOON: Duration = Duration::from_secs(10);

/// Two nodes that reach each other by a router alone, in at a wide link and out by a narrow one.
struct Narrowed {
    lab: Lab,
    router: Ns,
    /// Whether the nodes speak IPv6 with each other.
    six: bool,
}

impl Narrowed {
    fn new(six: bool) -> Self {
        let lab = Lab::with(&[Program::Ours, Program::Ours]);
        let (a, b) = lab.two();
        let router = Ns::new();
        for (link, last) in [("wide", 100), ("narrow", 101)] {
            lab.plug(&router, link);
            router.run(&format!("ip addr add 192.0.2.{last}/24 dev {link} noprefixroute"));
            router.run(&format!("ip -6 addr add 2001:db8::{last}/64 dev {link} nodad noprefixroute"));
        }
        for (path, value) in [
            ("ipv4/ip_forward", 1),
            ("ipv6/conf/all/forwarding", 1),
            // It speaks for each link's address at that link alone, and sends nobody past itself.
            ("ipv4/conf/all/arp_ignore", 1),
            ("ipv4/conf/all/rp_filter", 0),
            ("ipv4/conf/wide/rp_filter", 0),
            ("ipv4/conf/narrow/rp_filter", 0),
            ("ipv4/conf/all/send_redirects", 0),
            ("ipv4/conf/wide/send_redirects", 0),
            ("ipv4/conf/narrow/send_redirects", 0),
        ] {
            router.run_with_input(&format!("tee /proc/sys/net/{path}"), &value.to_string());
        }
        for node in [a, b] {
            let other = 3 - node.n;
            router.run(&format!("ip route add 192.0.2.{}/32 dev narrow src 192.0.2.101", node.n));
            router.run(&format!("ip -6 route add 2001:db8::{}/128 dev narrow", node.n));
            node.ns.run(&format!("ip route add 192.0.2.{other}/32 via 192.0.2.100"));
            node.ns.run(&format!("ip -6 route add 2001:db8::{other}/128 via 2001:db8::100"));
        }
        for (node, other) in [(a, b), (b, a)] {
            node.knows(other, Some(if six { other.v6() } else { other.v4() }), "");
        }
        a.ns.reaches(&b.inner4());
        b.ns.reaches(&a.inner6());
        let made = Self { lab, router, six };
        made.set_width(NARROW);
        made
    }

    fn set_width(&self, mtu: u32) {
        self.router.run(&format!("ip link set narrow mtu {mtu}"));
    }

    fn room(&self) -> u32 {
        NARROW - if self.six { 80 } else { 60 }
    }

    /// Datagrams that nodes have cut, in all.
    fn fragments(&self) -> u64 {
        let (a, b) = self.lab.two();
        let of = |node: &Node| -> u64 {
            let text = node.ns.run("nstat -asz IpFragCreates Ip6FragCreates");
            let values = text.lines().filter(|line| line.contains("FragCreates"));
            values.map(|line| line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()).sum()
        };
        of(a) + of(b)
    }
}

/// Whether an echo with this much payload comes back, which nobody may cut (`do`), or everybody may (`dont`).
fn echoes(from: &Node, to: &str, payload: u32, cut: &str) -> bool {
    let line = format!("ping -q -c 1 -W 1 -M {cut} -s {payload} {to}");
    from.ns.command(&line).output().unwrap().status.success()
}

/// What the host's routes say that a path takes.
fn known(from: &Node, to: &str) -> Option<u32> {
    let text = from.ns.run(&format!("ip route get {to}"));
    let mut words = text.split_whitespace().skip_while(|word| *word != "mtu");
    words.nth(1).map(|mtu| mtu.parse().unwrap())
}

fn check(six: bool) {
    let narrowed = Narrowed::new(six);
    let (a, b) = narrowed.lab.two();
    let room = narrowed.room();
    let both = [(b.inner4(), 28), (b.inner6(), 48)];
    for (to, _) in &both {
        let at = SocketAddr::new(to.parse().unwrap(), 7000);
        tcp_both_ways(&a.ns, &b.ns, at, 2 << 20);
        for (from, to) in [(a, to.clone()), (b, if to.contains(':') { a.inner6() } else { a.inner4() })] {
            eventually("who sends knows what the path takes", SOON, || {
                // TCP may have been done before the path was looked at.
                echoes(from, &to, 1372, "do");
                known(from, &to) == Some(room)
            });
        }
    }
    for node in [a, b] {
        assert!(node.count("drops.too_long") >= 2, "one of each family at least");
        assert_eq!(node.count("drops.udp_send"), 0);
    }
    // From now on nothing is cut, though it is as long as can be.
    let cut = narrowed.fragments();
    for (to, headers) in &both {
        tcp_both_ways(&a.ns, &b.ns, SocketAddr::new(to.parse().unwrap(), 7001), 2 << 20);
        assert!(echoes(a, to, room - headers, "do"), "{room} bytes to {to}");
        assert!(!echoes(a, to, room - headers + 1, "do"), "one more to {to}");
    }
    assert_eq!(narrowed.fragments(), cut);
    // What may be cut arrives.
    for (to, _) in &both {
        assert!(echoes(a, to, 1372, "dont"), "{to}");
    }
    // A wide path is found again when hosts have forgotten, which they do after ten minutes by themselves.
    narrowed.set_width(1500);
    for node in [a, b] {
        node.ns.run("ip route flush cache");
        node.ns.run("ip -6 route flush cache");
    }
    for (to, headers) in &both {
        eventually("the path is wide again", SOON, || {
            a.ns.run("ip route flush cache");
            a.ns.run("ip -6 route flush cache");
            echoes(a, to, 1420 - headers, "do")
        });
    }
}

#[test]
fn who_sends_learns_of_a_narrow_link_between_nodes_over_ipv4() {
    check(false);
}

#[test]
fn who_sends_learns_of_a_narrow_link_between_nodes_over_ipv6() {
    check(true);
}
