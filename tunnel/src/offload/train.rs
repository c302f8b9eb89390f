//! Datagrams on their way out, in the order in which they were made. Those of one peer and one length that follow
//! each other are a train, which the kernel takes in one call (`UDP_SEGMENT`).

use std::net::SocketAddr;
use std::ops::Range;

/// Most datagrams of a train: `UDP_MAX_SEGMENTS` of Linux before 6.9.
pub const MAX_DATAGRAMS: usize = 64;
/// Most bytes of a train: an IP packet's 65535 without IPv6's and UDP's headers.
pub const MAX_BYTES: usize = 65535 - 48;

/// Datagrams for one endpoint, each of `segment` bytes but the last, which may be shorter.
#[derive(Debug)]
pub struct Train<T> {
    /// Where they go.
    pub to: SocketAddr,
    /// Whose they are.
    pub owner: T,
    /// Where they lie in the yard's buffer.
    pub bytes: Range<usize>,
    /// Bytes of each but the last.
    pub segment: usize,
    /// How many.
    pub count: usize,
}

impl<T> Train<T> {
    /// Whether a datagram of such a length may be its next.
    const fn takes(&self, len: usize) -> bool {
        // Not after a shorter one: it ends its train.
        self.bytes.end - self.bytes.start == self.segment * self.count
            && len <= self.segment
            && self.count < MAX_DATAGRAMS
            && self.bytes.end - self.bytes.start + len <= MAX_BYTES
    }
}

/// Where trains are made up. `T` says whose a train is.
#[derive(Debug)]
pub struct Yard<T> {
    buffer: Vec<u8>,
    used: usize,
    trains: Vec<Train<T>>,
}

impl<T: Clone + PartialEq> Yard<T> {
    /// A yard with room for so many bytes.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self { buffer: vec![0; capacity], used: 0, trains: Vec::new() }
    }

    /// The room that is left: the next datagram is made at its beginning.
    pub fn room(&mut self) -> &mut [u8] {
        &mut self.buffer[self.used..]
    }

    /// Bytes that wait.
    #[must_use]
    pub const fn waiting(&self) -> usize {
        self.used
    }

    /// Whether one datagram is all that waits.
    #[must_use]
    pub fn has_one(&self) -> bool {
        matches!(&self.trains[..], [only] if only.count == 1)
    }

    /// What waits.
    pub fn waiting_mut(&mut self) -> &mut [u8] {
        &mut self.buffer[..self.used]
    }

    /// Takes the first `len` bytes of [`Yard::room`] in, as a datagram; where they lie in [`Yard::waiting_mut`].
    pub fn commit(&mut self, to: SocketAddr, owner: &T, len: usize) -> Range<usize> {
        let bytes = self.used..self.used + len;
        self.used = bytes.end;
        if let Some(last) = self.trains.last_mut()
            && len > 0
            && last.takes(len)
            && last.to == to
            && last.owner == *owner
        {
            last.bytes.end = bytes.end;
            last.count += 1;
            return bytes;
        }
        self.trains.push(Train { to, owner: owner.clone(), bytes: bytes.clone(), segment: len, count: 1 });
        bytes
    }

    /// Hands out all trains and forgets them.
    pub fn drain(&mut self, mut send: impl FnMut(&Train<T>, &[u8])) {
        for train in &self.trains {
            send(train, &self.buffer[train.bytes.clone()]);
        }
        self.trains.clear();
        self.used = 0;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_datagram_leaves_once_in_order_to_where_it_should(
            datagrams in prop::collection::vec(
                (0u8..3, 0u8..2, prop_oneof![Just(1452usize), Just(96), 1usize..1500]), 0..200
            ),
        ) {
            let mut yard = Yard::new(1 << 20);
            let to = |n: u8| SocketAddr::from(([192, 0, 2, n], 1));
            let mut got = Vec::new();
            let mut take = |train: &Train<u8>, bytes: &[u8]| {
                assert!(train.count <= MAX_DATAGRAMS && (bytes.len() <= MAX_BYTES || train.count == 1));
                let cut: Vec<_> = bytes.chunks(train.segment).collect();
                assert_eq!(cut.len(), train.count);
                got.extend(cut.into_iter().map(|d| (train.to, train.owner, d.to_vec())));
            };
            for (index, &(host, owner, len)) in datagrams.iter().enumerate() {
                let mark = u8::try_from(index & 0xff).unwrap();
                yard.room()[..len].fill(mark);
                yard.commit(to(host), &owner, len);
            }
            yard.drain(&mut take);
            prop_assert_eq!(yard.waiting(), 0);
            let expected: Vec<_> = datagrams.iter().enumerate().map(|(index, &(host, owner, len))| {
                (to(host), owner, vec![u8::try_from(index & 0xff).unwrap(); len])
            }).collect();
            prop_assert_eq!(got, expected);
        }
    }

    #[test]
    fn datagrams_of_one_length_are_one_train_and_a_shorter_one_ends_it() {
        let mut yard = Yard::new(1 << 20);
        for len in [100, 100, 100, 60, 60, 100] {
            yard.commit(SocketAddr::from(([192, 0, 2, 1], 1)), &(), len);
        }
        let mut counts = Vec::new();
        yard.drain(|train, _| counts.push((train.count, train.segment)));
        assert_eq!(counts, [(4, 100), (1, 60), (1, 100)]);
    }
}
