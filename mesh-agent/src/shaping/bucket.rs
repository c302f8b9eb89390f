//! What of a rate becomes numbers of a token bucket filter (`linux/pkt_sched.h`).

/// How long a packet may wait at most in front of a rate: the reference plugin's 25 ms.
const LATENCY_MS: u64 = 25;
/// Burst where nobody asked for one: what the rate lets through in this time, in parts of a second. Timers are more precise than
/// that, and a queue that may burst for longer is no rate to a user.
const BURST_PARTS: u64 = 100;
/// ... and at least this many packets, so that low rates are not one packet at a time.
const BURST_PACKETS: u64 = 8;
/// Bursts from here on, in bit, are what runtimes write when nobody asked (2^31-1, 2^32-1 or eight times that: the pod's
/// annotations know no burst). Taken at their word they would let hundreds of megabytes through before the rate begins.
const NOBODYS_BURST: u64 = 0x7fff_ffff;
/// Length of an Ethernet header, which counts.
const HEADER: u32 = 14;

const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;
const TCA_TBF_BURST: u16 = 6;
/// `sizeof(struct tc_tbf_qopt)`, and where its fields are that we use.
const PARMS: usize = 36;
const LINKLAYER: usize = 1;
const RATE: usize = 8;
const LIMIT: usize = 24;
/// `TC_LINKLAYER_ETHERNET`: the length of a packet is its own, and no table of times is wanted.
const ETHERNET: u8 = 1;

/// One direction's token bucket filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// Bytes a second, not 0.
    pub rate: u64,
    /// Bytes that may pass at once; a whole packet at least.
    pub burst: u32,
    /// Bytes that may wait, burst included.
    pub limit: u32,
}

impl Bucket {
    /// Of a rate in bit/s and a burst in bit, as `bandwidth` has them, on a link with this MTU in bytes. None: no limit.
    pub fn of(rate: u64, burst: u64, mtu: u32) -> Option<Self> {
        if rate == 0 {
            return None;
        }
        let (rate, packet) = ((rate / 8).max(1), mtu.saturating_add(HEADER));
        let burst = match burst {
            0 | NOBODYS_BURST.. => (rate / BURST_PARTS).max(BURST_PACKETS * u64::from(packet)),
            bits => bits / 8,
        };
        let most = |bytes: u64| u32::try_from(bytes).unwrap_or(u32::MAX);
        // A packet over the burst would never pass.
        let burst = most(burst).max(packet);
        let waiting = most((rate / 1000).saturating_mul(LATENCY_MS)).max(packet);
        Some(Self { rate, burst, limit: burst.saturating_add(waiting) })
    }

    /// Attributes of `TCA_OPTIONS`.
    pub(super) fn options(&self) -> impl Iterator<Item = (u16, Vec<u8>)> {
        let mut parms = vec![0; PARMS];
        parms[LINKLAYER] = ETHERNET;
        let low = u32::try_from(self.rate).unwrap_or(u32::MAX);
        parms[RATE..RATE + 4].copy_from_slice(&low.to_ne_bytes());
        parms[LIMIT..LIMIT + 4].copy_from_slice(&self.limit.to_ne_bytes());
        let wide = (self.rate > u64::from(u32::MAX)).then(|| self.rate.to_ne_bytes().to_vec());
        let burst = (TCA_TBF_BURST, self.burst.to_ne_bytes().to_vec());
        [(TCA_TBF_PARMS, parms), burst].into_iter().chain(wide.map(|rate| (TCA_TBF_RATE64, rate)))
    }

    /// Rate and limit of a filter whose options the kernel lists: the burst it keeps as a time alone.
    pub(super) fn read(options: &[u8]) -> Option<(u64, u32)> {
        let all = crate::nft::wire::parse(options)?;
        let parms = crate::nft::wire::find(&all, TCA_TBF_PARMS)?;
        let number = |at: usize| Some(u32::from_ne_bytes(parms.get(at..at + 4)?.try_into().ok()?));
        let wide = crate::nft::wire::find(&all, TCA_TBF_RATE64);
        let wide = wide.and_then(|bytes| Some(u64::from_ne_bytes(bytes.try_into().ok()?)));
        Some((wide.unwrap_or(u64::from(number(RATE)?)), number(LIMIT)?))
    }

    /// What [`Self::read`] gives of this one.
    pub(super) const fn seen(&self) -> (u64, u32) {
        (self.rate, self.limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_bursts_of_runtimes_that_were_asked_for_none_are_ours() {
        let bucket = |burst| Bucket::of(10_000_000, burst, 1420).unwrap();
        for nobodys in [0, 0x7fff_ffff, 0xffff_ffff, 8 * 0xffff_ffff] {
            assert_eq!(bucket(nobodys), Bucket { rate: 1_250_000, burst: 12_500, limit: 43_750 });
        }
        assert_eq!(bucket(8_000_000), Bucket { rate: 1_250_000, burst: 1_000_000, limit: 1_031_250 });
        assert_eq!(bucket(8).burst, 1434, "a packet passes");
        assert_eq!(Bucket::of(0, 8_000, 1420), None);
    }

    proptest! {
        #[test]
        fn every_rate_of_the_kubelet_lets_packets_through_and_waits_for_some(
            rate in 1_000_u64..=1_000_000_000_000_000, burst in 0_u64..=8 * 0xffff_ffff, mtu in 68_u32..=65_535,
        ) {
            let bucket = Bucket::of(rate, burst, mtu).unwrap();
            let packet = mtu + HEADER;
            prop_assert!(bucket.burst >= packet);
            prop_assert!(bucket.limit == u32::MAX || bucket.limit - bucket.burst >= packet);
            prop_assert_eq!(bucket.rate, rate / 8);
            let mut listed = Vec::new();
            for (kind, value) in bucket.options() {
                crate::nft::wire::Attr::bytes(kind, value).write(&mut listed).unwrap();
            }
            prop_assert_eq!(Bucket::read(&listed), Some(bucket.seen()));
        }

        #[test]
        fn a_burst_that_nobody_asked_for_is_a_hundredth_of_a_second_or_a_few_packets(rate in 1_000_u64..=100_000_000_000) {
            let bucket = Bucket::of(rate, 0xffff_ffff, 1420).unwrap();
            prop_assert!(u64::from(bucket.burst) <= (rate / 800).max(8 * 1434));
        }
    }
}
