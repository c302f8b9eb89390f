//! Intel's Multi-Buffer Crypto library for IPsec, which has ChaCha20-Poly1305 for AVX-512 (`cfg(ipsec_mb)`: on amd64, where it was found when this was built).

#![allow(unsafe_code, reason = "a C library is called; each block says why it may be")]

use std::ffi::c_int;
use std::ops::Range;
use std::ptr::{NonNull, null, null_mut};
use std::sync::Arc;

use super::{Open, Seal};
use crate::noise::aead::Key;
use crate::noise::hash::equal;
use crate::noise::messages::{HEADER, TAG, counter};

/// As `native/ipsec_mb.c` has it.
#[repr(C)]
struct Message {
    key: *const u8,
    from: *const u8,
    into: *mut u8,
    len: u64,
    nonce: [u8; 12],
    tag: [u8; TAG],
}

#[repr(C)]
struct Opaque([u8; 0]);

unsafe extern "C" {
    fn hawser_mb_new() -> *mut Opaque;
    fn hawser_mb_free(manager: *mut Opaque);
    fn hawser_mb_run(manager: *mut Opaque, decrypt: c_int, messages: *mut Message, count: usize) -> c_int;
}

/// The library's state for one thread.
pub(super) struct Manager {
    state: NonNull<Opaque>,
    messages: Vec<Message>,
}

// SAFETY: the library keeps nothing of a thread, and a manager is used by whoever has it alone (`&mut`). Pointers in `messages` are
// gone before a call of ours returns.
unsafe impl Send for Manager {}

impl std::fmt::Debug for Manager {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Manager")
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        // SAFETY: `hawser_mb_new` made it, and nobody has it any more.
        unsafe { hawser_mb_free(self.state.as_ptr()) };
    }
}

fn nonce(message: &[u8]) -> [u8; 12] {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&counter(message).to_le_bytes());
    nonce
}

impl Manager {
    /// `None` where this processor has nothing for it that others do not use as well.
    pub(super) fn new() -> Option<Self> {
        // The library asks the processor alone, and not whether the kernel saves these registers.
        if !std::arch::is_x86_feature_detected!("avx512f") || !std::arch::is_x86_feature_detected!("avx512bw")
        {
            return None;
        }
        // SAFETY: it has no conditions.
        let state = NonNull::new(unsafe { hawser_mb_new() })?;
        Some(Self { state, messages: Vec::new() })
    }

    /// Whether the library did what it was asked for.
    fn run(&mut self, decrypt: bool) -> bool {
        // SAFETY: the manager is alive and ours alone; each message's pointers were made by our caller from slices that live until it
        // returns, of at least `len` bytes each (32 of the key), those to write to from one that is ours alone and is not touched meanwhile.
        let failed = unsafe {
            hawser_mb_run(
                self.state.as_ptr(),
                c_int::from(decrypt),
                self.messages.as_mut_ptr(),
                self.messages.len(),
            )
        };
        failed == 0
    }

    /// Encrypts messages with content, of a buffer of which this begins at `start`; whether it did. If not, nothing may be sent of them.
    pub(super) fn seal(
        &mut self,
        keys: &[Arc<Key>],
        messages: &[Seal],
        start: usize,
        buffer: &mut [u8],
    ) -> bool {
        let place = |at: &Range<usize>| at.start - start..at.end - start;
        self.messages.clear();
        for Seal { key, at } in messages {
            let message = &buffer[place(at)];
            let text = &message[HEADER..message.len() - TAG];
            let (nonce, len, key) = (nonce(message), text.len() as u64, keys[*key].bytes().as_ptr());
            self.messages.push(Message { key, from: null(), into: null_mut(), len, nonce, tag: [0; TAG] });
        }
        // One pointer for all: a second borrow of the buffer would end the first one's.
        let base = buffer.as_mut_ptr();
        for (message, Seal { at, .. }) in self.messages.iter_mut().zip(messages) {
            message.into = base.wrapping_add(at.start - start + HEADER);
            message.from = message.into;
        }
        let done = self.run(false);
        for (Seal { at, .. }, sealed) in messages.iter().zip(self.messages.drain(..)) {
            let end = place(at).end;
            buffer[end - TAG..end].copy_from_slice(&sealed.tag);
        }
        done
    }

    /// Decrypts messages with content; whether it did. If not, none is authentic.
    pub(super) fn open(
        &mut self,
        key: &Key,
        datagrams: &[u8],
        messages: &mut [Open],
        start: usize,
        buffer: &mut [u8],
    ) -> bool {
        self.messages.clear();
        let key = key.bytes().as_ptr();
        for Open { from, into, .. } in messages.iter() {
            let message = &datagrams[from.clone()];
            let text = &message[HEADER..message.len() - TAG];
            // As long as what it is made of, which is looked at here.
            let _ = &buffer[into.start - start..into.end - start][..text.len()];
            let (from, len, nonce) = (text.as_ptr(), text.len() as u64, nonce(message));
            self.messages.push(Message { key, from, into: null_mut(), len, nonce, tag: [0; TAG] });
        }
        let base = buffer.as_mut_ptr();
        for (message, Open { into, .. }) in self.messages.iter_mut().zip(messages.iter()) {
            message.into = base.wrapping_add(into.start - start);
        }
        let done = self.run(true);
        for (message, opened) in messages.iter_mut().zip(self.messages.drain(..)) {
            let tag = &datagrams[message.from.end - TAG..message.from.end];
            message.authentic = done && equal(&opened.tag, tag);
        }
        done
    }
}
