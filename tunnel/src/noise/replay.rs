//! Which messages of a session have come (section 5.4.6; the ring of words is RFC 6479's).

/// A message may be so far behind the newest one: as far as in the kernel.
pub(super) const WINDOW: u64 = 8192;
const BITS: u64 = u64::BITS as u64;
/// One more than the window has, since it seldom begins where a word does.
const WORDS: usize = (WINDOW / BITS) as usize + 1;

/// The messages of one session that have come.
pub(super) struct Window {
    /// One more than the greatest.
    end: u64,
    /// Bit n % 64 of word n / 64 % `WORDS`: message n has come.
    words: [u64; WORDS],
}

impl Window {
    pub(super) const fn new() -> Self {
        Self { end: 0, words: [0; WORDS] }
    }

    /// Whether this message has not come yet, as far as is known. Less than `u64::MAX`.
    pub(super) fn is_new(&self, number: u64) -> bool {
        number >= self.end || self.end - number <= WINDOW && self.words[word(number)] & bit(number) == 0
    }

    /// Notes that it has come, which is to be known to be true: it is authentic.
    pub(super) fn note(&mut self, number: u64) {
        if number >= self.end {
            let (last, new) = (self.end.saturating_sub(1) / BITS, number / BITS);
            for n in (last + 1..=new).take(WORDS) {
                self.words[word(n * BITS)] = 0;
            }
            self.end = number + 1;
        }
        self.words[word(number)] |= bit(number);
    }
}

fn word(number: u64) -> usize {
    usize::try_from(number / BITS % WORDS as u64).unwrap_or_default()
}

const fn bit(number: u64) -> u64 {
    1 << (number % BITS)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn each_message_is_new_once_and_only_within_the_window(
            start in prop_oneof![Just(0u64), any::<u32>().prop_map(u64::from), Just(u64::MAX - (1 << 20))],
            steps in prop::collection::vec(
                prop_oneof![-3i64..4, -70i64..70, -9000i64..9000, Just(-8191), Just(-8192), Just(-8193), 8000i64..40_000],
                1..400,
            ),
        ) {
            let (mut window, mut came, mut greatest) = (Window::new(), BTreeSet::new(), None::<u64>);
            for step in steps {
                let at = greatest.unwrap_or(start).saturating_add_signed(step).min(u64::MAX - 1);
                let expected = match greatest {
                    None => true,
                    Some(g) => at > g || g - at < WINDOW && !came.contains(&at),
                };
                prop_assert_eq!(window.is_new(at), expected, "{} after {:?}", at, greatest);
                if expected {
                    window.note(at);
                    came.insert(at);
                    greatest = greatest.max(Some(at));
                    prop_assert!(!window.is_new(at));
                }
            }
        }
    }
}
