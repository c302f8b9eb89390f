use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};
use proptest::prelude::*;

use super::*;

impl Owner for u64 {
    fn owner_id(&self) -> u64 {
        *self
    }
}

/// The obvious table: a list of pairs, searched in full.
#[derive(Default)]
struct Naive(Vec<(IpNet, u64)>);

impl Naive {
    fn apply(&mut self, op: &Op) {
        match *op {
            Op::Insert(p, o) => {
                self.0.retain(|(q, _)| *q != p.trunc());
                self.0.push((p.trunc(), o));
            }
            Op::Remove(p) => self.0.retain(|(q, _)| *q != p.trunc()),
            Op::RemoveFrom(p, o) => self.0.retain(|(q, v)| *q != p.trunc() || *v != o),
            Op::Clear(o) => self.0.retain(|(_, v)| *v != o),
        }
    }

    fn lookup(&self, addr: IpAddr) -> Option<u64> {
        self.0.iter().filter(|(p, _)| p.contains(&addr)).max_by_key(|(p, _)| p.prefix_len()).map(|(_, o)| *o)
    }
}

#[derive(Clone, Debug)]
enum Op {
    Insert(IpNet, u64),
    Remove(IpNet),
    RemoveFrom(IpNet, u64),
    Clear(u64),
}

/// Few distinct bits, so that prefixes nest and collide.
fn addr() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        (0u32..8, 0u32..8).prop_map(|(a, b)| Ipv4Addr::from_bits(a << 29 | b).into()),
        (0u128..8, 0u128..8).prop_map(|(a, b)| Ipv6Addr::from_bits(a << 125 | b).into()),
    ]
}

fn prefix() -> impl Strategy<Value = IpNet> {
    (addr(), prop_oneof![0u8..5, 28u8..33, 124u8..129]).prop_map(|(a, len)| match a {
        IpAddr::V4(a) => Ipv4Net::new(a, len.min(32)).unwrap().into(),
        IpAddr::V6(a) => Ipv6Net::new(a, len).unwrap().into(),
    })
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (prefix(), 0u64..4).prop_map(|(p, o)| Op::Insert(p, o)),
        1 => prefix().prop_map(Op::Remove),
        1 => (prefix(), 0u64..4).prop_map(|(p, o)| Op::RemoveFrom(p, o)),
        1 => (0u64..4).prop_map(Op::Clear),
    ]
}

proptest! {
    #[test]
    fn the_table_answers_as_a_full_search_does(
        ops in proptest::collection::vec(op(), 0..60),
        probes in proptest::collection::vec(addr(), 1..20),
    ) {
        let mut table = AllowedIps::new();
        let mut naive = Naive::default();
        for op in &ops {
            match *op {
                Op::Insert(p, o) => table.insert(p, o),
                Op::Remove(p) => table.remove(p),
                Op::RemoveFrom(p, o) => table.remove_from(p, o),
                Op::Clear(o) => table.clear_owner(o),
            }
            naive.apply(op);
        }
        for a in probes {
            prop_assert_eq!(table.lookup(a).copied(), naive.lookup(a), "{}", a);
        }
        for o in 0..4 {
            let mut expect: Vec<IpNet> = naive.0.iter().filter(|(_, v)| *v == o).map(|(p, _)| *p).collect();
            expect.sort();
            prop_assert_eq!(table.prefixes_of(o).copied().collect::<Vec<_>>(), expect);
        }
    }
}

#[test]
fn default_routes_and_host_routes_of_both_families_are_kept_apart() {
    let mut t = AllowedIps::new();
    t.insert("0.0.0.0/0".parse().unwrap(), 1u64);
    t.insert("::/0".parse().unwrap(), 2);
    t.insert("10.0.0.1/32".parse().unwrap(), 3);
    assert_eq!(t.lookup("10.0.0.1".parse().unwrap()), Some(&3));
    assert_eq!(t.lookup("10.0.0.2".parse().unwrap()), Some(&1));
    assert_eq!(t.lookup("::a00:1".parse().unwrap()), Some(&2));
}
