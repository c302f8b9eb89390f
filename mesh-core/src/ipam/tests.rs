use super::*;
use proptest::prelude::*;

fn pool(cidrs: &[&str]) -> Ipam {
    let cidrs: Vec<IpNet> = cidrs.iter().map(|c| c.parse().unwrap()).collect();
    Ipam::new("n1".parse().unwrap(), &cidrs)
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn network_mesh_and_broadcast_addresses_are_never_handed_out() {
    let mut ipam = pool(&["10.0.0.0/29"]);
    let mut got = Vec::new();
    while let Ok(addresses) = ipam.allocate(&[], Millis(0)) {
        got.extend(addresses);
    }
    assert_eq!(got, ["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"].map(ip));
}

#[test]
fn a_dual_stack_node_gives_one_of_each_family() {
    let got = pool(&["10.0.0.0/24", "fd00::/64"]).allocate(&[], Millis(0)).unwrap();
    assert_eq!(got, ["10.0.0.2", "fd00::2"].map(ip));
}

#[test]
fn the_error_of_an_exhausted_pool_names_node_cidr_and_count() {
    let mut ipam = pool(&["10.0.0.0/30"]);
    ipam.allocate(&[], Millis(0)).unwrap();
    assert_eq!(
        ipam.allocate(&[], Millis(0)).unwrap_err().to_string(),
        "node n1: pod CIDR 10.0.0.0/30 is exhausted: 1 of 1 addresses in use, 0 more in quarantine"
    );
}

#[test]
fn a_failed_family_leaves_the_other_untouched() {
    let mut ipam = pool(&["10.0.0.0/24", "fd00::/126"]);
    ipam.allocate(&[], Millis(0)).unwrap();
    ipam.allocate(&[], Millis(0)).unwrap();
    assert!(matches!(ipam.allocate(&[], Millis(0)), Err(IpamError::Exhausted { .. })));
    assert_eq!(ipam.usage(Millis(0))[0].used, 2);
}

#[test]
fn the_oldest_freed_address_goes_first_and_only_after_its_rest() {
    let mut ipam = pool(&["10.0.0.0/29"]);
    for _ in 0..5 {
        ipam.allocate(&[], Millis(0)).unwrap();
    }
    ipam.release(ip("10.0.0.4"), Millis(10));
    ipam.release(ip("10.0.0.2"), Millis(20));
    assert!(ipam.allocate(&[], Millis(10 + QUARANTINE - 1)).is_err());
    assert_eq!(ipam.allocate(&[], Millis(20 + QUARANTINE)).unwrap(), [ip("10.0.0.4")]);
    assert_eq!(ipam.allocate(&[], Millis(20 + QUARANTINE)).unwrap(), [ip("10.0.0.2")]);
}

#[test]
fn an_address_asked_for_is_given_if_it_is_free_and_ours() {
    let mut ipam = pool(&["10.0.0.0/24"]);
    assert_eq!(ipam.allocate(&[ip("10.0.0.77")], Millis(0)).unwrap(), [ip("10.0.0.77")]);
    assert!(matches!(ipam.allocate(&[ip("10.0.0.77")], Millis(0)), Err(IpamError::Taken { .. })));
    assert!(matches!(ipam.allocate(&[ip("10.0.0.1")], Millis(0)), Err(IpamError::NotOurs { .. })));
    assert!(matches!(ipam.allocate(&[ip("10.0.1.7")], Millis(0)), Err(IpamError::NotOurs { .. })));
}

#[test]
fn a_pool_warns_from_ninety_percent_on() {
    let mut ipam = pool(&["10.0.0.0/28"]); // 13 addresses: 2 to 14
    for _ in 0..11 {
        ipam.allocate(&[], Millis(0)).unwrap();
    }
    assert_eq!(ipam.problems(Millis(0)), []);
    ipam.allocate(&[], Millis(0)).unwrap();
    assert_eq!(ipam.problems(Millis(0)).len(), 1);
}

proptest! {
    /// Oracle: a set of what is out and the time at which each was freed.
    #[test]
    fn no_address_is_out_twice_or_before_its_rest(
        steps in proptest::collection::vec((0_u64..20_000, any::<bool>(), any::<proptest::sample::Index>()), 1..200),
    ) {
        let mut ipam = pool(&["10.0.0.0/28", "fd00::/124"]);
        let mut out: Vec<Vec<IpAddr>> = Vec::new();
        let mut freed: BTreeMap<IpAddr, u64> = BTreeMap::new();
        let mut now = 0;
        for (later, add, which) in steps {
            now += later;
            if add || out.is_empty() {
                match ipam.allocate(&[], Millis(now)) {
                    Ok(addresses) => {
                        for address in &addresses {
                            prop_assert!(!out.iter().flatten().any(|a| a == address));
                            prop_assert!(freed.get(address).is_none_or(|at| now - at >= QUARANTINE));
                            let older = freed.iter().find(|(a, at)| {
                                a.is_ipv4() == address.is_ipv4()
                                    && !out.iter().flatten().any(|o| o == *a)
                                    && freed.get(address).is_some_and(|mine| *at < mine)
                            });
                            prop_assert_eq!(older, None, "{} was freed earlier", address);
                        }
                        for address in &addresses { freed.remove(address); }
                        out.push(addresses);
                    }
                    Err(_) => {
                        let free = (2..15).filter(|n| {
                            let a = ip(&format!("10.0.0.{n}"));
                            !out.iter().flatten().any(|o| *o == a) && freed.get(&a).is_none_or(|at| now - at >= QUARANTINE)
                        });
                        prop_assert_eq!(free.count(), 0);
                    }
                }
            } else {
                for address in out.swap_remove(which.index(out.len())) {
                    ipam.release(address, Millis(now));
                    freed.insert(address, now);
                }
            }
        }
    }
}
