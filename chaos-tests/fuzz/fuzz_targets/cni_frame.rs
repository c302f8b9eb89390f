//! Any bytes as a frame between plugin and agent: what is read is written and read again unchanged.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| cni::fuzz_frame(bytes));
