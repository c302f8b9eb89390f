//! Any text as the annotation of a node: refused with a short message, or understood the same after it is written again.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let text = String::from_utf8_lossy(bytes);
    match keyring::decode(&text) {
        Ok(announcement) => {
            assert_eq!(keyring::decode(&keyring::encode(&announcement)), Ok(announcement));
        }
        Err(error) => {
            let message = error.to_string();
            assert!(message.len() < 1000 && !message.contains(|c: char| c.is_control()), "{message:?}");
        }
    }
});
