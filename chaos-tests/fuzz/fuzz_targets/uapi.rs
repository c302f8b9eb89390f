//! Any bytes on the configuration socket: framed, parsed, applied, printed, parsed again.
#![no_main]

#[path = "tunnel_common.rs"]
#[allow(dead_code)]
mod tunnel_common;

use libfuzzer_sys::fuzz_target;
use tunnel::engine::Engine;
use tunnel::io::server::Framer;
use tunnel::uapi::{self, Request};
use tunnel_common::Net;

fuzz_target!(|bytes: &[u8]| {
    let scope = |name: &str| (name == "eth0").then_some(2);
    let mut framer = Framer::default();
    let (engine, net) = (Engine::new(1420), Net::default());
    for chunk in bytes.chunks(97) {
        framer.push(chunk);
        while let Ok(Some(text)) = framer.next_request() {
            if let Ok(Request::Set(request)) = uapi::parse(&text, &scope) {
                let _ = engine.set(&request, &net);
            }
        }
    }
    if let Ok(Request::Set(request)) = uapi::parse(bytes, &scope) {
        let _ = engine.set(&request, &net);
    }
    // What is printed describes a device that prints the same.
    let printed = uapi::format_get(&engine.view(&net));
    let lines: String = printed
        .lines()
        .filter(|l| !["last_", "tx_", "rx_", "errno"].iter().any(|p| l.starts_with(p)) && !l.is_empty())
        .map(|l| format!("{l}\n"))
        .collect();
    let copy = Engine::new(1420);
    let text = format!("set=1\n{lines}\n");
    match uapi::parse(text.as_bytes(), &scope) {
        Ok(Request::Set(request)) => copy.set(&request, &net).expect("what is printed can be set"),
        other => panic!("what is printed is not understood: {other:?}"),
    }
    assert_eq!(*printed, *uapi::format_get(&copy.view(&net)));
});
