use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn backends(numbers: impl IntoIterator<Item = u16>) -> Vec<SocketAddr> {
    let mut all: Vec<SocketAddr> = numbers
        .into_iter()
        .map(|n| {
            let [high, low] = n.to_be_bytes();
            match n % 3 {
                0 => SocketAddr::new(IpAddr::from([10, 0, high, low]), 80 + n % 7),
                1 => SocketAddr::new(IpAddr::from([10, 0, high, low]), 8080),
                _ => SocketAddr::new(IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, n]), 80),
            }
        })
        .collect();
    all.sort_unstable();
    all
}

fn named(backends: &[SocketAddr], size: u32) -> Vec<SocketAddr> {
    table(backends, size).into_iter().map(|index| backends[index as usize]).collect()
}

fn shares(table: &[SocketAddr]) -> BTreeMap<SocketAddr, usize> {
    let mut shares = BTreeMap::new();
    for backend in table {
        *shares.entry(*backend).or_default() += 1;
    }
    shares
}

#[test]
fn sizes_are_primes_just_below_powers_of_two() {
    for size in &SIZES[1..] {
        let divisors = (2..).take_while(|d| d * d <= *size).filter(|d| size % d == 0).count();
        assert_eq!(divisors, 0, "{size}");
        assert!(size.next_power_of_two() - size <= size.next_power_of_two() / 40, "{size}");
    }
}

#[test]
fn a_table_has_a_hundred_places_for_each_backend() {
    for (backends, size) in
        [(0, 0), (1, 1), (2, 251), (5, 509), (6, 1021), (655, 65_521), (20_000, 1_048_573)]
    {
        assert_eq!(size_for(backends), size, "{backends} backends");
    }
}

#[test]
fn nobody_and_somebody_alone() {
    assert_eq!(table(&[], 251), Vec::<u32>::new());
    assert_eq!(table(&backends([1]), 1), [0]);
    assert_eq!(table(&backends([1]), 0), Vec::<u32>::new());
}

/// Computed once; other nodes may run another version of us, and must send the same flow to the same backend.
#[test]
fn the_table_is_what_it_always_was() {
    let table = table(&backends(0..5), 251);
    let text: String = table.iter().map(|index| char::from(b"abcde"[*index as usize])).collect();
    expect_test::expect!["cccbddabedbbdaaacaaadceadebaeeccdeceeedbaecaedbdebcabeccddadcdcbaaadeabcdaedeaaaeecddebaacdabaabeabdadedebcbddeaccebbdbceeebcacbbebcebcbdececebdbcbcaddcbeaebbbdccbbccddadecdaaeeaeacdeeaceaaadeddcbdecdabcdbdacdcbcbaccdeababdbbcdbdabcecebbdaabceaeeebcda"].assert_eq(&text);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn everybody_has_nearly_the_same_share(numbers in proptest::collection::btree_set(0_u16..3000, 2..60)) {
        let all = backends(numbers);
        let size = size_for(all.len());
        let shares = shares(&named(&all, size));
        let fair = size as usize / all.len();
        prop_assert_eq!(shares.len(), all.len());
        for (backend, share) in shares {
            prop_assert!((fair..=fair + 1).contains(&share), "{} has {} of {}", backend, share, size);
        }
    }

    /// The paper's figure 12: with M over 100 N some two percent of the others' places move.
    #[test]
    fn one_that_goes_moves_its_own_share_and_few_others(
        numbers in proptest::collection::btree_set(0_u16..3000, 3..60),
        gone in any::<proptest::sample::Index>(),
    ) {
        let all = backends(numbers);
        let size = size_for(all.len());
        let mut rest = all.clone();
        let gone = rest.remove(gone.index(all.len()));
        let (before, after) = (named(&all, size), named(&rest, size));
        let own = before.iter().filter(|backend| **backend == gone).count();
        let moved = before.iter().zip(&after).filter(|(b, a)| b != a).count();
        prop_assert!(moved >= own);
        let others = moved - own;
        prop_assert!(others * 100 <= size as usize * 6, "{} of {} places moved besides {}", others, size, own);
    }
}
