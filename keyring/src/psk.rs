//! Post-quantum pre-shared keys of a pair of nodes and one slot (design D3, D11).
//!
//! - [`KemKey`], [`encapsulate`]: ML-KEM-768 (FIPS 203).
//! - [`Psk`]: the pre-shared key, from the KEM's shared secret and the pair's [`Context`] by HKDF-SHA256 (RFC 5869).
//! - [`Exchange`]: the machine by which two agents agree on one, for one pair and slot. Pure; time and randomness are
//!   arguments.
//! - [`verdict`], [`may_exchange`], [`instead`]: what may be done with a slot meanwhile.
//! - [`Pact`]: both machines of a pair and what follows for the plan; what agents and models run.
//! - [`PskStore`]: the files.
//!
//! # What it protects from
//!
//! An adversary who records packets today and computes discrete logarithms later learns WireGuard's X25519 secrets,
//! and with them the exchange, which crosses the mesh; but not what ML-KEM made of it, so not the pre-shared key, so
//! no session made with it. Who breaks X25519 while the exchange goes on would have to change the announcement in the
//! API as well: it bears the hash of the ML-KEM key (`kem`).
//!
//! # First boot
//!
//! A pair that never talked has no channel with a pre-shared key to agree over. Both slots begin without one, so
//! both work; the pair talks on the one that [`mesh_core::slot::pair_slot`] names and agrees for the *other*, and then,
//! once a handshake has proved that one, talks there and agrees for the first. Where both sides take part and one wants
//! `require`, the slot without a key carries only the agents' exchange ([`AllowedScope::MeshOnly`]: the mesh addresses
//! are in allowed IPs and routes, the pods' prefixes are not) until both sides saw a handshake with the key. As soon
//! as the other slot is proved, a placeholder is put on a slot without a key, so that no session without one
//! can come to be there.
//!
//! # Why a pair is never left without a channel
//!
//! Only the initiator starts, and only for a slot on which neither side sends ([`may_exchange`]; the responder refuses),
//! while the other slot has been seen to work. From the moment when either side may have installed
//! a key until a handshake proves that both have, neither moves to that slot. When the key of the *other* slot is
//! replaced meanwhile, that slot starts without a key on both sides, hence works.
//! What is not covered: a node that loses files of this store but keeps its WireGuard keys. It must replace those keys
//! (`hawser.dev/rotate`), since its peers rightly insist on the lost ones.
//!
//! # Choice of crates
//!
//! `ml-kem` (RustCrypto; Apache-2.0 or MIT; no unsafe code of its own; wipes its keys; tested with the vectors of ACVP
//! and Wycheproof; not audited) rather than `libcrux-ml-kem` (Apache-2.0; verified with hax and F*; wipes nothing; four
//! advisories for it and what it pulls in during 2026) or `aws-lc-rs` (fast; no way to give it the randomness, so
//! neither vectors nor replays, and C code for whoever links this crate).

mod exchange;
mod kem;
mod pact;
mod problem;
mod secret;
mod standing;
mod suite;

pub use exchange::{Conditions, Effect, Exchange, Input, NotOurs, Record, Started};
pub use kem::{KemKey, RefusedKem, encapsulate};
pub use mesh_core::psk::{
    Ciphertext, ClusterName, Context, EncapsulationKey, End, Letter, Message, Mode, NodeId, PairError, PskId,
    Refusal, Role, Round, Tag,
};
pub use pact::{Met, Pact, Sight, Wants};
pub use problem::PskProblem;
pub use secret::{Proof, Psk};
pub use standing::{
    AllowedScope, Carry, Effective, ModeConflict, Standing, Verdict, instead, may_exchange, verdict,
};
pub use suite::{MlKem, Random, Suite, SuiteError, SystemRandom};

pub use crate::store::psk::{LoadedPsks, PskFileError, PskStore};
