//! The truth table: network policy of real agents in one lab of three nodes, in every corner that connectivity can show, held
//! against the oracle and against verdicts by hand. `make test-policy` runs it; `HAWSER_CASES=words` runs the cases with
//! these words in their names.
//!
//! A case is a list of steps. Each changes objects of the API, as users do; then everything is asked at once: all pairs of
//! nine pods, pods and nodes, pods and the world, TCP, UDP, SCTP and ICMP, both families. A step is settled when each answer
//! and each silence is as the oracle says about the objects that the API has, and has to be so once more.

#![expect(clippy::print_stdout, reason = "a case is reported when it is done")]

mod case;
mod cases;
mod ledger;
mod party;
mod probe;
mod run;
mod stage;
mod world;

use anyhow::{Result, ensure};

/// What the table promises.
const PROMISED: usize = 230;

#[test]
fn policy_is_what_the_oracle_says_in_every_case() -> Result<()> {
    let cases = cases::all()?;
    // Those of mesh-core's verdicts come on top.
    ensure!(cases::own()?.len() >= PROMISED, "{} cases", cases.len());
    run::run("truth", &cases)
}
