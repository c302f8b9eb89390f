//! What of a rotation survives its agent: a small JSON document beside the keys.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use mesh_core::announcement::Epoch;
use mesh_core::key::PublicKey;
use mesh_core::name::NodeName;
use mesh_core::slot::Slot;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// The format that is written and read.
const FORMAT: u32 = 1;

/// Longest value of `hawser.dev/rotate` that tells two requests apart, in bytes; what follows is ignored.
pub const REQUEST_MAX: usize = 128;

/// Whose key it was, for records: SHA-256 of the public key, written `SHA256:` and base64 without padding, as
/// OpenSSH does.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// Of a public key.
    pub fn of(key: &PublicKey) -> Self {
        Self(Sha256::digest(key.as_bytes()).into())
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SHA256:{}", STANDARD_NO_PAD.encode(self.0))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<Fingerprint> for String {
    fn from(fingerprint: Fingerprint) -> Self {
        fingerprint.to_string()
    }
}

impl TryFrom<String> for Fingerprint {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        const WANTED: &str = "wanted SHA256: and the base64 of 32 bytes";
        let bytes = text.strip_prefix("SHA256:").and_then(|sum| STANDARD_NO_PAD.decode(sum).ok());
        bytes.and_then(|bytes| bytes.try_into().ok()).map(Self).ok_or(WANTED)
    }
}

/// Value of the annotation `hawser.dev/rotate`: any two different values are two requests.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Request(String);

impl Request {
    /// From the annotation; none where it is absent or empty.
    pub fn of(annotation: Option<&str>) -> Option<Self> {
        let text = annotation.filter(|text| !text.is_empty())?;
        Some(Self(text[..text.floor_char_boundary(REQUEST_MAX)].to_owned()))
    }

    /// Its text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Why a rotation began.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Cause {
    /// The older of the two keys reached its age.
    Schedule,
    /// Somebody asked for it.
    Request(Request),
    /// A new `mesh-tunnel` waits for the devices; each is handed over while its slot is silent.
    Tunnel,
}

/// Why a peer was not seen to have left a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "camelCase")]
pub enum Laggard {
    /// No handshake with it on the other slot, so this node itself still sends to it on this one.
    #[error("no handshake on the other slot")]
    Unconfirmed,
    /// It drains the other slot, and its drain goes first.
    #[error("it drains the other slot itself")]
    Yielded,
    /// Its answers come on this slot.
    #[error("it still sends on this slot")]
    Present,
    /// It does not answer.
    #[error("it does not answer")]
    Silent,
    /// It has just made a handshake on this slot.
    #[error("it makes handshakes on this slot")]
    Knocking,
}

/// How the decision to replace a key came about.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Verdict {
    /// Peers that had not left the slot at the deadline; empty: the slot was silent.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub overdue: BTreeMap<NodeName, Laggard>,
    /// Some node, known or not, still sent there at the deadline: the device received packets.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub noisy: bool,
    /// Peers that were not waited for: their Nodes were dead, and nothing was heard of them.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub gone: BTreeSet<NodeName>,
}

impl Verdict {
    /// Did somebody who may be alive still use the slot?
    pub fn in_use(&self) -> bool {
        self.noisy || !self.overdue.is_empty()
    }
}

/// A key as records name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KeyId {
    /// Its number.
    pub epoch: Epoch,
    /// Its fingerprint.
    pub fingerprint: Fingerprint,
}

/// How far the slot at hand is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Stage {
    /// A peer drains the other slot, or the other slot's device is missing; nothing is announced.
    Waiting,
    /// The slot is announced as draining, or is to be.
    Draining {
        /// The key that goes. The slot's key file bears another epoch: it is gone.
        old: KeyId,
        /// Written before the key is replaced, so that the record of it survives a crash. It is not believed after
        /// one: the slot is judged again.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        verdict: Option<Verdict>,
    },
}

/// A rotation in progress.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rotation {
    /// Why.
    pub cause: Cause,
    /// The slot at hand.
    pub slot: Slot,
    /// How far it is.
    pub stage: Stage,
}

/// What is persisted. The default is that of a node that never rotated; it is also safe to go on with when the
/// document is lost in the middle of a rotation, since the keys' truth is in their own files: the drain is taken
/// back, and the rotation begins again by schedule or by the same request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct State {
    /// The rotation in progress.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotation: Option<Rotation>,
    /// The request that was done last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub done: Option<Request>,
    /// A request that came during a rotation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending: Option<Request>,
}

/// Why a document is refused.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Not JSON, or a field is wrong.
    #[error("the rotation's state is not what this agent writes: {0}; it is begun anew")]
    Malformed(#[from] serde_json::Error),
    /// Of another agent.
    #[error("the rotation's state is of format {0}, this agent reads {FORMAT}; it is begun anew")]
    Format(u32),
}

#[derive(Serialize, Deserialize)]
struct Document<S> {
    v: u32,
    state: S,
}

impl State {
    /// The document: one line of JSON.
    pub fn encode(&self) -> String {
        serde_json::to_string(&Document { v: FORMAT, state: self })
            .expect("invariant: a struct of numbers and strings is always JSON")
    }

    /// Reads the document.
    ///
    /// # Errors
    /// It is not what [`State::encode`] writes. Then go on with the default, and say so.
    pub fn decode(text: &str) -> Result<Self, StateError> {
        let Document { v, state } = serde_json::from_str::<Document<serde_json::Value>>(text)?;
        if v == FORMAT { Ok(serde_json::from_value(state)?) } else { Err(StateError::Format(v)) }
    }
}
