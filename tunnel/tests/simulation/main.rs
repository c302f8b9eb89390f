//! Hours of protocol time in seconds: engines with real sessions in a world where everything goes wrong, and then nothing.
//!
//! Storms and calms take turns. What holds always: a host gets what another sent it, unaltered, once. What holds in a calm:
//! `World::calm` says. A seed names a world; two runs of it are alike, whatever keys are drawn.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "helpers of tests; what a long run did is to be seen"
)]

mod clock;
mod node;
mod random;
mod silence;
mod world;

use std::time::Duration;

use tunnel::counters::Counter;
use world::World;

/// Hours of each world; 24 and more in `HAWSER_SIMULATED_HOURS`.
const HOURS: u64 = 2;
/// Worlds; more in `HAWSER_SIMULATED_SEEDS`.
const SEEDS: u64 = 5;

fn number(name: &str, usual: u64) -> u64 {
    std::env::var(name).map_or(usual, |text| text.parse().unwrap_or_else(|e| panic!("{name}={text}: {e}")))
}

/// Runs a world for so long.
fn run(seed: u64, length: Duration) -> World {
    let mut world = World::new(seed);
    while world.now < length {
        let storm = world.pick(Duration::from_secs(5), Duration::from_secs(400));
        world.storm(storm);
        let calm = world.pick(Duration::from_secs(40), Duration::from_secs(700));
        world.calm(calm);
    }
    world
}

#[test]
fn after_every_storm_each_pair_talks_again_and_loses_nothing() {
    let length = Duration::from_secs(3600 * number("HAWSER_SIMULATED_HOURS", HOURS));
    let first = number("HAWSER_FIRST_SEED", 0);
    for seed in first..first + number("HAWSER_SIMULATED_SEEDS", SEEDS) {
        let world = run(seed, length);
        let (sent, arrived) = world.packets();
        println!(
            "seed {seed}: {} s, {} troubles, {sent} packets, {arrived} arrived; since their last start: {} handshakes, {} cookies",
            world.now.as_secs(),
            world.troubles,
            world.sum(Counter::HandshakeDone),
            world.sum(Counter::CookieSent),
        );
        assert!(sent > 0 && arrived > sent / 2, "the world is not as it was meant");
    }
}

#[test]
fn a_seed_names_a_world() {
    let run = |seed| run(seed, Duration::from_secs(1800));
    let (first, second, other) = (run(1), run(1), run(2));
    assert_eq!((first.digest, first.packets()), (second.digest, second.packets()));
    assert_ne!(first.digest, other.digest);
}
