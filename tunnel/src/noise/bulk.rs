//! Encrypts and decrypts data messages many at a time, without anybody's lock.

pub mod crew;
#[cfg(ipsec_mb)]
mod multi;

use std::ops::Range;
use std::sync::Arc;

use self::crew::Crew;
use super::aead::Key;
use super::messages::{HEADER, counter};

/// A data message that was laid out, in a buffer of many.
#[derive(Debug)]
struct Seal {
    /// Which of the keys.
    key: usize,
    /// Where it lies.
    at: Range<usize>,
}

/// Data messages that were laid out, in a buffer of many, in the order in which they lie.
#[derive(Debug, Default)]
pub struct Unsealed {
    messages: Vec<Seal>,
    /// Of one after the other most have the same: it is counted once for all of them, not by an atomic operation for each.
    keys: Vec<Arc<Key>>,
}

impl Unsealed {
    /// Adds one with the key of its session, behind all others.
    pub fn push(&mut self, key: &Arc<Key>, at: Range<usize>) {
        if !self.keys.last().is_some_and(|last| Arc::ptr_eq(last, key)) {
            self.keys.push(Arc::clone(key));
        }
        self.messages.push(Seal { key: self.keys.len() - 1, at });
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    fn clear(&mut self) {
        self.messages.clear();
        self.keys.clear();
    }
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
/// Fewer messages than this are not worth another thread: about ten microseconds' work, and it may have to be woken.
const SHARE: usize = 16;

/// The libraries, for one thread.
#[derive(Debug)]
struct Hand {
    #[cfg(ipsec_mb)]
    multi: Option<multi::Manager>,
}

impl Hand {
    fn new(many: bool) -> Self {
        #[cfg(not(ipsec_mb))]
        let _ = many;
        Self {
            #[cfg(ipsec_mb)]
            multi: many.then(multi::Manager::new).flatten(),
        }
    }

    /// Encrypts all `messages`, each with content. `buffer` is what lies from `start` on of that in which they lie.
    fn seal(&mut self, keys: &[Arc<Key>], messages: &[Seal], start: usize, buffer: &mut [u8]) {
        let place = |at: &Range<usize>| at.start - start..at.end - start;
        #[cfg(ipsec_mb)]
        if let Some(multi) = &mut self.multi
            && messages.len() >= MANY
        {
            if !multi.seal(keys, messages, start, buffer) {
                // Which of them it did is not known, and none may leave in clear: what is all zeros is no message.
                tracing::error!(
                    "the cipher library refused what it is for; the other one is used from now on"
                );
                messages.iter().for_each(|message| buffer[place(&message.at)].fill(0));
                self.multi = None;
            }
            return;
        }
        for Seal { key, at } in messages {
            keys[*key].seal_message(&mut buffer[place(at)]);
        }
    }

    /// Decrypts `messages` of one session, which lie in `datagrams`, into `buffer`, which is what lies from `start` on of that which they are for.
    fn open(&mut self, key: &Key, datagrams: &[u8], messages: &mut [Open], start: usize, buffer: &mut [u8]) {
        #[cfg(ipsec_mb)]
        if let Some(multi) = &mut self.multi
            && messages.len() >= MANY
            // The library wants content.
            && messages.iter().all(|message| !message.into.is_empty())
        {
            if multi.open(key, datagrams, messages, start, buffer) {
                return;
            }
            tracing::error!("the cipher library refused what it is for; the other one is used from now on");
            self.multi = None;
        }
        for message in messages {
            let sealed = &datagrams[message.from.clone()];
            let out = &mut buffer[message.into.start - start..message.into.end - start];
            message.authentic = key.open(counter(sealed), &[], &sealed[HEADER..], out);
        }
    }
}

/// What a thread does it with.
#[derive(Debug)]
pub struct Bulk {
    hand: Hand,
    crew: Option<Arc<Crew>>,
}

impl Bulk {
    /// What this program and this processor have; with `many` also what is for many at a time.
    #[must_use]
    pub fn new(many: bool) -> Self {
        Self { hand: Hand::new(many), crew: None }
    }

    /// The same, with helpers.
    #[must_use]
    pub fn with_crew(many: bool, crew: Option<Arc<Crew>>) -> Self {
        Self { hand: Hand::new(many), crew }
    }

    /// Whether there are helpers, so that it pays to wait until there is much to do.
    #[must_use]
    pub const fn has_crew(&self) -> bool {
        self.crew.is_some()
    }

    /// The libraries, for the log.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        #[cfg(ipsec_mb)]
        if self.hand.multi.is_some() {
            return "ipsec-mb (AVX-512) and aws-lc";
        }
        "aws-lc"
    }

    /// Encrypts all `messages` in `buffer`, each with content, in the order in which they lie, and forgets them.
    pub fn seal(&mut self, unsealed: &mut Unsealed, buffer: &mut [u8]) {
        let Unsealed { messages, keys } = &*unsealed;
        let taken = self.crew.as_ref().and_then(|crew| crew.take(spare(messages.len())));
        let Some(taken) = taken else {
            self.hand.seal(keys, messages, 0, buffer);
            return unsealed.clear();
        };
        let (hand, many) = (&mut self.hand, taken.many());
        let each = messages.len().div_ceil(taken.count + 1);
        taken.share(|scope| {
            let (mut rest, mut start) = (buffer, 0);
            let mut parts = messages.chunks(each).peekable();
            while let Some(part) = parts.next() {
                let end = part.last().map_or(start, |message| message.at.end);
                let (own, behind) = rest.split_at_mut(end - start);
                if parts.peek().is_none() {
                    hand.seal(keys, part, start, own);
                } else {
                    scope.spawn(move |_| crew::with_hand(many, |hand| hand.seal(keys, part, start, own)));
                }
                (rest, start) = (behind, end);
            }
        });
        unsealed.clear();
    }

    /// Decrypts `messages` of one session, which lie in `datagrams`, into `buffer`, each behind the one before it.
    pub fn open(&mut self, key: &Key, datagrams: &[u8], messages: &mut [Open], buffer: &mut [u8]) {
        let taken = self.crew.as_ref().and_then(|crew| crew.take(spare(messages.len())));
        let Some(taken) = taken else {
            return self.hand.open(key, datagrams, messages, 0, buffer);
        };
        let (hand, many) = (&mut self.hand, taken.many());
        let each = messages.len().div_ceil(taken.count + 1);
        taken.share(|scope| {
            let (mut rest, mut start) = (buffer, 0);
            let mut parts = messages.chunks_mut(each).peekable();
            while let Some(part) = parts.next() {
                let end = part.last().map_or(start, |message| message.into.end);
                let (own, behind) = rest.split_at_mut(end - start);
                if parts.peek().is_none() {
                    hand.open(key, datagrams, part, start, own);
                } else {
                    scope.spawn(move |_| {
                        crew::with_hand(many, |hand| hand.open(key, datagrams, part, start, own))
                    });
                }
                (rest, start) = (behind, end);
            }
        });
    }
}

/// How many helpers so many messages are worth.
const fn spare(messages: usize) -> usize {
    (messages / SHARE).saturating_sub(1)
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
            helpers in 0u8..4, many: bool,
        ) {
            let key = Arc::new(Key::new(&[9; 32]));
            let keys = [Arc::clone(&key), Arc::new(Key::new(&[9; 32]))];
            let (mut buffer, mut expected, mut messages) = (Vec::new(), Vec::new(), Unsealed::default());
            for (number, text) in &texts {
                let start = buffer.len();
                buffer.extend_from_slice(&[4, 0, 0, 0, 1, 2, 3, 4]);
                buffer.extend_from_slice(&number.to_le_bytes());
                buffer.extend_from_slice(text);
                buffer.extend_from_slice(&[0; 16]);
                let mut one = buffer[start..].to_vec();
                key.seal(*number, &[], &mut one[HEADER..]);
                expected.extend(one);
                messages.push(&keys[usize::from(number % 5 == 0)], start..buffer.len());
            }
            let mut bulk = Bulk::with_crew(many, Crew::new("test", helpers, many).unwrap());
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
