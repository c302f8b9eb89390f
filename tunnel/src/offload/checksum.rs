//! The Internet checksum (RFC 1071), over many bytes at a time.

/// Protocol number of TCP.
pub(crate) const TCP: u8 = 6;
/// Protocol number of UDP.
pub(crate) const UDP: u8 = 17;

/// A sum of 16-bit words, not yet folded.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum(u64);

impl Sum {
    /// Adds bytes. Only the last piece that is added may have an odd length: it is summed as if a zero followed.
    ///
    /// The sum does not depend on the order of a word's bytes (RFC 1071, section 2 B), so words of the host are added.
    #[must_use]
    pub fn bytes(self, bytes: &[u8]) -> Self {
        Self(self.0 + sum(bytes))
    }

    /// Adds a number of 16 bits.
    #[must_use]
    pub fn word(self, word: u16) -> Self {
        Self(self.0 + u64::from(u16::from_ne_bytes(word.to_be_bytes())))
    }

    /// Adds the pseudo-header (RFC 9293, section 3.1; RFC 8200, section 8.1): addresses as they lie in the IP header,
    /// the protocol and the length of what the checksum covers.
    #[must_use]
    pub fn pseudo(self, addresses: &[u8], protocol: u8, len: u16) -> Self {
        self.bytes(addresses).word(u16::from(protocol)).word(len)
    }

    /// The sum as a word of the network, not complemented: what stands in the field of a partial checksum.
    #[must_use]
    pub fn fold(self) -> [u8; 2] {
        let mut sum = self.0;
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        u16::try_from(sum).expect("invariant: folded to 16 bits").to_ne_bytes()
    }

    /// The checksum for its field.
    #[must_use]
    pub fn finish(self) -> [u8; 2] {
        self.fold().map(|b| !b)
    }

    /// The checksum where zero means that there is none (RFC 768): zero is written as its other form. TCP may have it so,
    /// too, and the kernel does.
    #[must_use]
    pub fn finish_nonzero(self) -> [u8; 2] {
        match self.finish() {
            [0, 0] => [0xff, 0xff],
            other => other,
        }
    }

    /// Whether the sum over everything, the checksum included, says that nothing was altered.
    #[must_use]
    pub fn verifies(self) -> bool {
        self.fold() == [0xff, 0xff]
    }
}

/// Bytes from which on wider registers pay.
#[cfg(target_arch = "x86_64")]
const LONG: usize = 256;

fn sum(bytes: &[u8]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if bytes.len() >= LONG && std::arch::is_x86_feature_detected!("avx2") {
        #[allow(unsafe_code, reason = "a function for some processors alone")]
        // SAFETY: this processor has what the function is compiled for.
        return unsafe { sum_avx2(bytes) };
    }
    sum_lanes(bytes)
}

/// The same for registers of twice the width.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn sum_avx2(bytes: &[u8]) -> u64 {
    sum_lanes(bytes)
}

/// Four bytes at a time in several lanes, which compilers turn into vector instructions.
#[inline(always)]
fn sum_lanes(bytes: &[u8]) -> u64 {
    const LANES: usize = 16;
    let four = |word: &[u8; 4]| u64::from(u32::from_ne_bytes(*word));
    let mut lanes = [0u64; LANES];
    let mut blocks = bytes.chunks_exact(LANES * 4);
    for block in &mut blocks {
        for (lane, word) in lanes.iter_mut().zip(block.as_chunks().0) {
            *lane += four(word);
        }
    }
    let (words, rest) = blocks.remainder().as_chunks();
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    lanes.iter().sum::<u64>() + words.iter().map(four).sum::<u64>() + four(&last)
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// RFC 1071, section 1, word by word.
    pub(crate) fn slowly(bytes: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            let word = u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
            sum += word;
            if sum > 0xffff {
                sum -= 0xffff;
            }
        }
        u16::try_from(sum).unwrap()
    }

    #[test]
    fn the_example_of_the_rfc() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(Sum::default().bytes(&bytes).fold(), [0xdd, 0xf2]);
        assert_eq!(Sum::default().bytes(&bytes).finish(), [0x22, 0x0d]);
        assert_eq!(Sum::default().finish_nonzero(), [0xff, 0xff]);
        assert_eq!(Sum::default().word(0xffff).finish_nonzero(), [0xff, 0xff]);
    }

    proptest! {
        #[test]
        fn it_is_the_sum_word_by_word(
            bytes in prop::collection::vec(any::<u8>(), 0..3000), cut in 0usize..1500, word: u16,
        ) {
            let cut = (cut * 2).min(bytes.len() & !1);
            let sum = Sum::default().bytes(&bytes[..cut]).bytes(&bytes[cut..]).word(word);
            let mut all = word.to_be_bytes().to_vec();
            all.extend(&bytes);
            prop_assert_eq!(u16::from_be_bytes(sum.fold()), slowly(&all));
            let mut with = all.clone();
            with.resize(all.len().next_multiple_of(2), 0);
            with.extend(sum.finish());
            prop_assert!(Sum::default().bytes(&with).verifies() );
        }

        #[test]
        fn it_does_not_overflow(len in 65000usize..=65535) {
            let bytes = vec![0xff; len];
            prop_assert_eq!(u16::from_be_bytes(Sum::default().bytes(&bytes).fold()), slowly(&bytes));
        }
    }
}
