//! What the scenarios share.

pub(crate) mod ask;
pub(crate) mod beat;
pub(crate) mod counts;
pub(crate) mod namer;
pub(crate) mod times;

pub(crate) use chaos_tests::objects;

pub(crate) use ask::{Ask, settle};
pub(crate) use beat::Beat;
pub(crate) use counts::Counts;
pub(crate) use namer::Namer;
pub(crate) use times::Times;
