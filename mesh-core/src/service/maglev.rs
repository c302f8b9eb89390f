//! Maglev's lookup table (Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer", NSDI 2016,
//! section 3.4): each backend has nearly as many places as any other, and when one goes, few places change that were not
//! its own. Backends are known by address and port alone, so all nodes build the same table from the same set, whatever
//! came before.

use std::net::{IpAddr, SocketAddr};

/// Primes to choose from, each just below a power of two, so that regions of [`super::places`] waste nothing. One
/// backend needs one place.
pub const SIZES: [u32; 14] =
    [1, 251, 509, 1021, 2039, 4093, 8191, 16_381, 32_749, 65_521, 131_071, 262_139, 524_287, 1_048_573];

/// Places for each backend at least: the paper's M > 100 N keeps the shares within one percent of each other.
const PER_BACKEND: usize = 100;

/// How many places a table for so many backends should have; 0 for none.
pub fn size_for(backends: usize) -> u32 {
    match backends {
        0 => 0,
        1 => 1,
        2 => SIZES[1], // 125 for each, which is more than enough
        _ => {
            let wanted = backends.saturating_mul(PER_BACKEND);
            let fits = |size: &&u32| usize::try_from(**size).is_ok_and(|size| size >= wanted);
            SIZES.iter().find(fits).copied().unwrap_or(SIZES[SIZES.len() - 1])
        }
    }
}

/// The table: for each place the index of a backend. `backends` must be in ascending order, `size` one of [`SIZES`];
/// empty if there is nobody. With more backends than places the last ones have none.
pub fn table(backends: &[SocketAddr], size: u32) -> Vec<u32> {
    let len = usize::try_from(size).unwrap_or(0);
    if backends.is_empty() || len == 0 {
        return Vec::new();
    }
    let mut walks: Vec<Walk> = backends.iter().map(|backend| Walk::new(*backend)).collect();
    let mut places: Vec<Option<u32>> = vec![None; len];
    let mut free = len;
    loop {
        for (index, walk) in (0_u32..).zip(&mut walks) {
            walk.claim(&mut places, size, index);
            free -= 1;
            if free == 0 {
                return places.into_iter().flatten().collect();
            }
        }
    }
}

/// A backend's order of preference: a random sequence of places. The paper's walks by a constant step; with few backends
/// the steps of two may be so related that a third of the places moves when one goes (measured), and random sequences
/// never came near that, for about twice the work.
struct Walk(u64);

impl Walk {
    fn new(backend: SocketAddr) -> Self {
        Self(hash(backend))
    }

    /// Takes the next place that is free: the sequence comes to each one in the end.
    fn claim(&mut self, places: &mut [Option<u32>], size: u32, index: u32) {
        loop {
            self.0 = self.0.wrapping_add(STEP);
            let place = usize::try_from(mix(self.0) % u64::from(size)).unwrap_or(0);
            if let Some(free @ None) = places.get_mut(place) {
                *free = Some(index);
                return;
            }
        }
    }
}

/// SplitMix64's step (the golden ratio's digits).
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// FNV-1a, 64 bits, of the 16 bytes of the address (IPv4 mapped) and the port, in network order. Nobody who chooses
/// addresses gains by collisions: they are its own backends.
fn hash(backend: SocketAddr) -> u64 {
    let address = match backend.ip() {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    };
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    let port = backend.port().to_be_bytes();
    address.iter().chain(&port).fold(0xcbf2_9ce4_8422_2325, step)
}

/// The finalizer of SplitMix64 (Steele, Lea, Flood 2014): each bit of the input changes half of the output's.
fn mix(mut value: u64) -> u64 {
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests;
