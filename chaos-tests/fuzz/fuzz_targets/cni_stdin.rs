//! Any verb with any `CNI_ARGS` and any stdin: a plan or an error with code and message, never a panic.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| cni::fuzz_stdin(bytes));
