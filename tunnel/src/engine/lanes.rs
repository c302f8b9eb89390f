//! Which thread carries which peer, when several carry one device's packets: each has a *lane*.
//!
//! A peer has one lane for as long as it lives, the one with the fewest peers when it came. The index that we give to it says
//! which, and peers show us that index in every message but an initiation. So the kernel can be told to hand a datagram to the
//! thread whose it is ([`steering`]), and no table is looked into.
//!
//! ```text
//!   receiver index on the wire:  s  b  x  y      s: one more with each handshake    
//!                                   │            b x y: the 24 bits that are ours, random but for
//!                                   └─ b modulo lanes is the lane
//! ```

use std::num::NonZeroU8;

use crate::noise::messages::{TYPE_COOKIE, TYPE_DATA, TYPE_RESPONSE};

/// Most lanes of a device.
pub const MAX_LANES: u8 = 32;
/// Lanes beyond which nothing is gained by itself: one thread reads the packets of the host for all.
const ENOUGH: usize = 8;

/// How many lanes a device has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lanes(NonZeroU8);

impl Lanes {
    /// One thread carries all.
    pub const ONE: Self = Self(NonZeroU8::MIN);

    /// So many, from 1 to [`MAX_LANES`].
    #[must_use]
    pub fn new(count: u8) -> Option<Self> {
        NonZeroU8::new(count).filter(|n| n.get() <= MAX_LANES).map(Self)
    }

    /// What suits a process that may use so many processors: half of them, since applications and the kernel need the others.
    ///
    /// With two or three it is one. There a second thread takes from the hosts' stack what it gives to the cipher.
    #[must_use]
    pub fn for_processors(count: usize) -> Self {
        let half = u8::try_from((count / 2).clamp(1, ENOUGH)).unwrap_or(1);
        Self::new(half).unwrap_or(Self::ONE)
    }

    /// The number.
    #[must_use]
    pub fn count(self) -> usize {
        usize::from(self.0.get())
    }

    /// Whether there is but one.
    #[must_use]
    pub fn is_one(self) -> bool {
        self.0 == NonZeroU8::MIN
    }

    /// The lane of the peer to whom this 24-bit index was given.
    pub(super) fn of_index(self, index: u32) -> usize {
        self.of_byte(index.to_le_bytes()[0])
    }

    fn of_byte(self, byte: u8) -> usize {
        usize::from(byte % self.0)
    }

    /// The lane of whom a datagram is for; `None` of what names no receiver.
    #[must_use]
    pub fn of_datagram(self, datagram: &[u8]) -> Option<usize> {
        let at = match datagram.first()? {
            // Its sender's index comes first.
            &TYPE_RESPONSE => 9,
            &TYPE_COOKIE | &TYPE_DATA => 5,
            _ => return None,
        };
        datagram.get(at).map(|byte| self.of_byte(*byte))
    }
}

/// An instruction of classic BPF: code, the two jumps, and the constant.
pub type Instruction = (u16, u8, u8, u32);

/// What the kernel is told, for a group of sockets in the order of lanes: [`Lanes::of_datagram`], as a program of classic BPF. An
/// initiation goes to any lane (its sender's index is where others have the receiver's), and what is too short to the first.
#[must_use]
pub fn steering(lanes: Lanes) -> [Instruction; 7] {
    const LOAD_BYTE: u16 = 0x30;
    const SKIP_UNLESS: u16 = 0x15;
    const SKIP: u16 = 0x05;
    const MODULO: u16 = 0x94;
    const RETURN_A: u16 = 0x16;
    [
        (LOAD_BYTE, 0, 0, 0),
        (SKIP_UNLESS, 0, 2, u32::from(TYPE_RESPONSE)),
        (LOAD_BYTE, 0, 0, 9),
        (SKIP, 0, 0, 1),
        (LOAD_BYTE, 0, 0, 5),
        (MODULO, 0, 0, u32::from(lanes.0.get())),
        (RETURN_A, 0, 0, 0),
    ]
}

/// The lane that has the least to do, the first of several.
pub(super) fn least_loaded(peers: &[usize]) -> usize {
    peers.iter().enumerate().min_by_key(|(_, n)| **n).map_or(0, |(lane, _)| lane)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What the kernel makes of a program: a load from beyond the end ends it with 0.
    fn run(program: &[Instruction], datagram: &[u8]) -> u32 {
        let (mut a, mut at) = (0u32, 0usize);
        loop {
            let (code, yes, no, k) = program[at];
            at += 1;
            match code {
                0x30 => match datagram.get(k as usize) {
                    Some(byte) => a = u32::from(*byte),
                    None => return 0,
                },
                0x15 => at += usize::from(if a == k { yes } else { no }),
                0x05 => at += k as usize,
                0x94 => a %= k,
                0x16 => return a,
                other => panic!("instruction {other:#x}"),
            }
        }
    }

    proptest! {
        #[test]
        fn the_kernel_is_told_what_we_go_by_ourselves(
            datagram in prop::collection::vec(any::<u8>(), 0..200), kind in 0u8..6, lanes in 1u8..=MAX_LANES,
        ) {
            let lanes = Lanes::new(lanes).unwrap();
            let mut datagram = datagram;
            if let Some(first) = datagram.first_mut() {
                *first = kind;
            }
            let steered = run(&steering(lanes), &datagram);
            prop_assert!((steered as usize) < lanes.count());
            if let Some(lane) = lanes.of_datagram(&datagram) {
                prop_assert_eq!(steered as usize, lane);
            }
        }

        #[test]
        fn a_message_leads_to_the_lane_of_the_index_that_its_receiver_has(
            index in 0u32..1 << 24, session in any::<u8>(), lanes in 1u8..=MAX_LANES,
        ) {
            let lanes = Lanes::new(lanes).unwrap();
            let on_the_wire = (index << 8 | u32::from(session)).to_le_bytes();
            for (kind, at) in [(TYPE_RESPONSE, 8), (TYPE_COOKIE, 4), (TYPE_DATA, 4)] {
                let mut datagram = [0xff; 92];
                datagram[0] = kind;
                datagram[at..at + 4].copy_from_slice(&on_the_wire);
                prop_assert_eq!(lanes.of_datagram(&datagram), Some(lanes.of_index(index)));
            }
            prop_assert_eq!(lanes.of_datagram(&[1; 148]), None);
        }

        #[test]
        fn whoever_comes_and_goes_no_lane_has_two_peers_more_than_another_until_one_goes(
            comes in prop::collection::vec(any::<bool>(), 0..200), lanes in 1usize..9,
        ) {
            let mut loads = vec![0; lanes];
            let mut gone = 0;
            for (n, comes) in comes.into_iter().enumerate() {
                if comes {
                    let (before, lane) = (loads.iter().min().copied(), least_loaded(&loads));
                    prop_assert_eq!(Some(loads[lane]), before);
                    loads[lane] += 1;
                } else if loads[n % lanes] > 0 {
                    loads[n % lanes] -= 1;
                    gone += 1;
                }
            }
            let spread = loads.iter().max().unwrap() - loads.iter().min().unwrap();
            prop_assert!(spread <= 1 + gone);
        }
    }

    #[test]
    fn half_of_the_processors_up_to_eight_and_one_of_few() {
        let count = |n| Lanes::for_processors(n).count();
        assert_eq!([0, 1, 2, 3, 4, 7, 8, 16, 17, 128, 100_000].map(count), [1, 1, 1, 1, 2, 3, 4, 8, 8, 8, 8]);
        assert_eq!((Lanes::new(0), Lanes::new(MAX_LANES + 1)), (None, None));
    }
}
