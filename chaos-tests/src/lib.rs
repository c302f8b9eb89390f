//! The lab and its scenarios.
