//! Encrypts and decrypts data messages many at a time, without anybody's lock.

#[cfg(ipsec_mb)]
mod multi;

use std::ops::Range;
use std::sync::Arc;

use super::aead::Key;
use super::messages::{HEADER, counter};

/// A data message that was laid out, in a buffer of many.
#[derive(Debug)]
pub struct Seal {
    /// Its session's.
    pub key: Arc<Key>,
    /// Where it lies.
    pub at: Range<usize>,
}

/// A data message that has come.
#[derive(Debug)]
pub struct Open {
    /// Where it lies among the datagrams.
    pub from: Range<usize>,
    /// Where its content is to lie: 32 bytes less.
    pub into: Range<usize>,
    /// Whether it is what its sender sent.
    pub authentic: bool,
}

/// Fewer messages than this go to the library for one at a time: the other one is made for many, and a lone packet waits for it.
#[cfg(ipsec_mb)]
const MANY: usize = 4;

/// What a thread does it with.
#[derive(Debug)]
pub struct Bulk {
    #[cfg(ipsec_mb)]
    multi: Option<multi::Manager>,
}

impl Bulk {
    /// What this program and this processor have; with `many` also what is for many at a time.
    #[must_use]
    pub fn new(many: bool) -> Self {
        #[cfg(not(ipsec_mb))]
        let _ = many;
        Self {
            #[cfg(ipsec_mb)]
            multi: many.then(multi::Manager::new).flatten(),
        }
    }

    /// The libraries, for the log.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        #[cfg(ipsec_mb)]
        if self.multi.is_some() {
            return "ipsec-mb (AVX-512) and aws-lc";
        }
        "aws-lc"
    }

    /// Encrypts all `messages` in `buffer`, each with content, and forgets them.
    pub fn seal(&mut self, messages: &mut Vec<Seal>, buffer: &mut [u8]) {
        #[cfg(ipsec_mb)]
        if let Some(multi) = &mut self.multi
            && messages.len() >= MANY
        {
            if !multi.seal(messages, buffer) {
                // Which of them it did is not known, and none may leave in clear: what is all zeros is no message.
                tracing::error!(
                    "the cipher library refused what it is for; the other one is used from now on"
                );
                messages.iter().for_each(|message| buffer[message.at.clone()].fill(0));
                self.multi = None;
            }
            messages.clear();
        }
        for Seal { key, at } in messages.drain(..) {
            key.seal_message(&mut buffer[at]);
        }
    }

    /// Decrypts `messages` of one session, which lie in `datagrams`, into `buffer`.
    pub fn open(&mut self, key: &Key, datagrams: &[u8], messages: &mut [Open], buffer: &mut [u8]) {
        #[cfg(ipsec_mb)]
        if let Some(multi) = &mut self.multi
            && messages.len() >= MANY
            // The library wants content.
            && messages.iter().all(|message| !message.into.is_empty())
        {
            if multi.open(key, datagrams, messages, buffer) {
                return;
            }
            tracing::error!("the cipher library refused what it is for; the other one is used from now on");
            self.multi = None;
        }
        for message in messages {
            let sealed = &datagrams[message.from.clone()];
            let out = &mut buffer[message.into.clone()];
            message.authentic = key.open(counter(sealed), &[], &sealed[HEADER..], out);
        }
    }
}

impl Default for Bulk {
    fn default() -> Self {
        Self::new(true)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::messages::OVERHEAD;
    use super::*;

    proptest! {
        #[test]
        fn many_at_a_time_are_what_each_is_by_itself(
            texts in prop::collection::vec((any::<u64>(), prop::collection::vec(any::<u8>(), 1..1600)), 0..80),
            altered in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), 1u8..=255), 0..4),
        ) {
            let key = Arc::new(Key::new(&[9; 32]));
            let (mut buffer, mut expected, mut messages) = (Vec::new(), Vec::new(), Vec::new());
            for (number, text) in &texts {
                let start = buffer.len();
                buffer.extend_from_slice(&[4, 0, 0, 0, 1, 2, 3, 4]);
                buffer.extend_from_slice(&number.to_le_bytes());
                buffer.extend_from_slice(text);
                buffer.extend_from_slice(&[0; 16]);
                let mut one = buffer[start..].to_vec();
                key.seal(*number, &[], &mut one[HEADER..]);
                expected.extend(one);
                messages.push(Seal { key: Arc::clone(&key), at: start..buffer.len() });
            }
            let mut bulk = Bulk::default();
            bulk.seal(&mut messages, &mut buffer);
            prop_assert!(messages.is_empty());
            prop_assert_eq!(&buffer, &expected);

            let (mut from, mut into) = (0, 0);
            let mut opens: Vec<Open> = texts.iter().map(|(_, text)| {
                let open = Open { from: from..from + text.len() + OVERHEAD, into: into..into + text.len(), authentic: false };
                (from, into) = (open.from.end, open.into.end);
                open
            }).collect();
            let mut spoilt = std::collections::BTreeSet::new();
            if !texts.is_empty() {
                for (which, at, flip) in altered {
                    let which = which.index(texts.len());
                    // Once only: two flips may be none.
                    if spoilt.insert(which) {
                        let range = opens[which].from.clone();
                        buffer[range.start + 8 + at.index(range.len() - 8)] ^= flip;
                    }
                }
            }
            let mut out = vec![0; into];
            bulk.open(&key, &buffer, &mut opens, &mut out);
            for (n, (open, (_, text))) in opens.iter().zip(&texts).enumerate() {
                prop_assert_eq!(open.authentic, !spoilt.contains(&n));
                if open.authentic {
                    prop_assert_eq!(&out[open.into.clone()], text);
                }
            }
        }
    }
}
