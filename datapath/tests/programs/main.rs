//! The programs of the data path, packet by packet, in the kernel by `BPF_PROG_TEST_RUN`. Needs root.

#[path = "../support/mod.rs"]
mod support;

use support::kernel::Kernel;

mod delivery;
mod flows;
mod fragments;
mod guard;
mod icmp;
mod malformed;
mod policy;
mod ports;
mod revocation;
mod services;
mod spoofing;

#[test]
fn the_verifier_takes_every_program_within_its_million_instructions() {
    let sizes = Kernel::load().sizes();
    println!("instructions verified: {sizes:?}");
    assert!(sizes.iter().all(|(_, size)| (1..1_000_000).contains(size)), "{sizes:?}");
}
