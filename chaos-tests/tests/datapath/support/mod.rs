//! What the scenarios share.

pub(crate) mod beat;
pub(crate) mod counts;

pub(crate) mod times;

pub(crate) use chaos_tests::objects;

pub(crate) use beat::Beat;
pub(crate) use chaos_tests::ask::{self, Ask, settle};
pub(crate) use chaos_tests::namer::Namer;
pub(crate) use counts::Counts;
pub(crate) use times::Times;
