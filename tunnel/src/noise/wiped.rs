//! What a handshake leaves on the stack.

use zeroize::Zeroize as _;

/// More than a handshake needs.
const DEPTH: usize = 32 << 10;

/// Does some work and overwrites the stack that it has used. Curve and hash copy secrets as they go, and what is moved stays where it was
/// moved from: nobody wipes that, and the threads of a device live as long as the device.
pub(super) fn wiped<T>(work: impl FnOnce() -> T) -> T {
    let result = apart(work);
    wipe();
    result
}

/// More than the cipher needs, and what calls it.
const CIPHERS_DEPTH: usize = 8 << 10;

/// Overwrites the stack below whoever calls. A cipher's own code leaves keys of sessions there: for threads that are about to wait.
#[inline(never)]
pub fn wipe_below() {
    // Made is wiped: once more, word by word, would cost streams two to six per cent (measured). The test looks whether it was made.
    std::hint::black_box([0_u8; CIPHERS_DEPTH]);
}

/// In a frame of its own, so that the next call's frame lies where this one's was.
#[inline(never)]
fn apart<T>(work: impl FnOnce() -> T) -> T {
    work()
}

#[inline(never)]
fn wipe() {
    let mut stack = [0_u64; DEPTH / 8];
    stack.zeroize();
}
