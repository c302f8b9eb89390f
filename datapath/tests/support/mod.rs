//! What the tests of the programs share: packets, a small cluster in a namespace, the real programs, and a language for cases.
#![allow(dead_code, reason = "each test binary uses its part of it")]

pub(crate) mod bench;
pub(crate) mod kernel;
pub(crate) mod names;
pub(crate) mod object;
pub(crate) mod packet;
pub(crate) mod pins;
pub(crate) mod play;
pub(crate) mod policy;
pub(crate) mod read;
pub(crate) mod stage;
pub(crate) mod text;
