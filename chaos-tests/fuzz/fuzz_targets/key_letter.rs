//! Any bytes as a request between two agents: what is read is written and read again unchanged, within the limit.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mesh_core::psk::Letter;
use prost::Message as _;
use proto::keys::{ExchangeRequest, MAX_MESSAGE};

fuzz_target!(|bytes: &[u8]| {
    let Ok(Ok(letter)) = ExchangeRequest::decode(bytes).map(Letter::try_from) else { return };
    let written = ExchangeRequest::from(&letter).encode_to_vec();
    assert!(written.len() <= MAX_MESSAGE);
    let read = ExchangeRequest::decode(written.as_slice()).map(Letter::try_from);
    assert_eq!(read.ok().and_then(Result::ok), Some(letter));
});
