//! Post-quantum pre-shared keys of WireGuard (design D3, D11): to whom one belongs, and what two agents tell each other
//! to agree on one. Secrets, and the machine that agrees, are in the `keyring` crate.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::announcement::Epoch;
use crate::key::PublicKey;
use crate::name::NodeName;
use crate::slot::Slot;

/// Bytes of an ML-KEM-768 encapsulation key (FIPS 203, table 3).
pub const ENCAPSULATION_KEY_LENGTH: usize = 1184;
/// Bytes of an ML-KEM-768 ciphertext (FIPS 203, table 3).
pub const CIPHERTEXT_LENGTH: usize = 1088;

/// The name of a cluster: an RFC 1123 label, 1 to 63 characters.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterName(String);

/// Why a text is not the name of a cluster.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a cluster name: wanted 1 to 63 of a-z, 0-9 and '-', beginning and ending with a letter or digit"
)]
pub struct ClusterNameError(String);

impl ClusterName {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ClusterName {
    type Err = ClusterNameError;

    fn from_str(text: &str) -> Result<Self, ClusterNameError> {
        let outer = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let bytes = text.as_bytes();
        let ends = [bytes.first(), bytes.last()].iter().all(|b| b.is_some_and(|b| outer(*b)));
        if ends && bytes.len() <= 63 && bytes.iter().all(|b| outer(*b) || *b == b'-') {
            Ok(Self(text.to_owned()))
        } else {
            Err(ClusterNameError(text.chars().take(70).collect()))
        }
    }
}

impl serde::Serialize for ClusterName {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> serde::Deserialize<'de> for ClusterName {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl fmt::Display for ClusterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A node, wherever it is. Ordered by the name of the node, then by that of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId {
    /// Its name.
    pub node: NodeName,
    /// Its cluster.
    pub cluster: ClusterName,
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of cluster {}", self.node, self.cluster)
    }
}

/// One node's end of a slot.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct End {
    /// Who.
    pub id: NodeId,
    /// Its key of that slot.
    pub key: PublicKey,
    /// The number of that key.
    pub epoch: Epoch,
}

/// Which side of a pair a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// The smaller name: offers.
    Initiator,
    /// The greater name: answers.
    Responder,
}

/// Why two ends are not a pair.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PairError {
    /// One node twice.
    #[error("node {0} is at both ends; a pair has two nodes")]
    SameNode(NodeId),
    /// One key twice.
    #[error("both ends have key {0}; a pair has two keys")]
    SameKey(PublicKey),
}

/// To what a pre-shared key belongs: two nodes, one slot, and their keys of that slot. Another key, another context.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Context {
    slot: Slot,
    /// The smaller first.
    ends: [End; 2],
}

impl Context {
    /// The context of two ends, in either order.
    ///
    /// # Errors
    /// Both ends are one node, or have one key.
    pub fn new(slot: Slot, a: End, b: End) -> Result<Self, PairError> {
        if a.id == b.id {
            return Err(PairError::SameNode(a.id));
        }
        if a.key == b.key {
            return Err(PairError::SameKey(a.key));
        }
        let ends = if a.id < b.id { [a, b] } else { [b, a] };
        Ok(Self { slot, ends })
    }

    /// The slot.
    pub const fn slot(&self) -> Slot {
        self.slot
    }

    /// Both ends, the smaller name first.
    pub const fn ends(&self) -> &[End; 2] {
        &self.ends
    }

    /// The end of one side.
    pub const fn end(&self, role: Role) -> &End {
        match role {
            Role::Initiator => &self.ends[0],
            Role::Responder => &self.ends[1],
        }
    }

    /// What `node` is in this pair, if it is in it.
    pub fn role(&self, node: &NodeId) -> Option<Role> {
        [Role::Initiator, Role::Responder].into_iter().find(|role| self.end(*role).id == *node)
    }

    /// The context as bytes, the same on both sides: each field with its length (big-endian `u32`) before it, in the
    /// order clusters, nodes, keys, epochs (big-endian `u64`), slot (one byte), the smaller node first.
    pub fn encode(&self) -> Vec<u8> {
        let [a, b] = &self.ends;
        let epochs = [a, b].map(|end| end.epoch.0.to_be_bytes());
        let slot = [if self.slot == Slot::Zero { 0 } else { 1 }];
        let fields: [&[u8]; 9] = [
            a.id.cluster.as_str().as_bytes(),
            b.id.cluster.as_str().as_bytes(),
            a.id.node.as_str().as_bytes(),
            b.id.node.as_str().as_bytes(),
            a.key.as_bytes(),
            b.key.as_bytes(),
            &epochs[0],
            &epochs[1],
            &slot,
        ];
        fields.into_iter().flat_map(with_length).collect()
    }
}

/// A field with its length (big-endian `u32`) before it, so that no two lists of fields give the same bytes.
pub fn with_length(field: &[u8]) -> impl Iterator<Item = u8> + '_ {
    let length = u32::try_from(field.len()).expect("invariant: fields are names and keys, far below 4 GiB");
    length.to_be_bytes().into_iter().chain(field.iter().copied())
}

/// Public bytes of a fixed length on the heap.
macro_rules! bytes {
    ($(#[$doc:meta])* $name:ident, $length:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash)]
        pub struct $name(Box<[u8; $length]>);

        impl $name {
            /// From its bytes.
            pub fn from_bytes(bytes: &[u8; $length]) -> Self {
                Self(Box::new(*bytes))
            }

            /// Its bytes.
            pub const fn as_bytes(&self) -> &[u8; $length] {
                &self.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({:02x}{:02x}…)", stringify!($name), self.0[0], self.0[1])
            }
        }
    };
}

bytes! {
    /// An ML-KEM-768 encapsulation key, public, not validated yet.
    EncapsulationKey, ENCAPSULATION_KEY_LENGTH
}
bytes! {
    /// An ML-KEM-768 ciphertext, public.
    Ciphertext, CIPHERTEXT_LENGTH
}

/// Tells one offer from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Round(pub [u8; 16]);

/// A proof that its sender holds the pre-shared key (HMAC-SHA-256); says nothing about the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag(pub [u8; 32]);

/// Names a pre-shared key and says nothing about it: both sides of a pair can be compared by it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PskId(pub [u8; 16]);

impl fmt::Display for PskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl serde::Serialize for PskId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A text is not the name of a pre-shared key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not the name of a pre-shared key: wanted 32 of 0-9 and a-f")]
pub struct PskIdError;

impl FromStr for PskId {
    type Err = PskIdError;

    fn from_str(text: &str) -> Result<Self, PskIdError> {
        let number = u128::from_str_radix(text, 16).map_err(|_| PskIdError)?;
        let id = Self(number.to_be_bytes());
        // Also what the parser takes besides: signs, capitals, fewer digits.
        if id.to_string() == text { Ok(id) } else { Err(PskIdError) }
    }
}

impl<'de> serde::Deserialize<'de> for PskId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl fmt::Debug for PskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// What an administrator wants of a node (D11).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// No new pre-shared key is agreed. One that exists stays until a key of its slot is replaced.
    Off,
    /// Agreed with every node that takes part; pods talk meanwhile.
    #[default]
    Prefer,
    /// No pod traffic in a session that was made without one.
    Require,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Off => "off",
            Self::Prefer => "prefer",
            Self::Require => "require",
        })
    }
}

/// What the agreement on pre-shared keys wants of one slot of a pair. Its default: no such agreement.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct SlotPsk {
    /// The key that belongs there, or one that nobody else has.
    pub id: Option<PskId>,
    /// Only the peer's mesh addresses may be in its allowed IPs: a session without a pre-shared key may come to be here, and
    /// pods wait for one with it (D11).
    pub confined: bool,
    /// Only the peer's mesh addresses may be routed here: not both sides are known to have seen the key at work.
    pub withheld: bool,
    /// A handshake is wanted there, to see that both sides have the key.
    pub prove: bool,
}

/// Why a message got no other answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Refusal {
    /// The sender knows other keys for this slot; its own context says which.
    #[error(
        "it knows other keys of this slot; this passes when both nodes have seen each other's announcement"
    )]
    OtherContext,
    /// Its mode is `off`.
    #[error("its post-quantum mode is off; set prefer there")]
    Off,
    /// It talks on this slot now, or has nothing else to talk on.
    #[error("it talks on this slot; this passes when it has moved to the other one")]
    Busy,
    /// The encapsulation key is not the announced one, or none at all.
    #[error(
        "it does not accept the ML-KEM key: not the one announced as kem, or malformed; this passes when it has seen the announcement"
    )]
    Key,
    /// Only the node with the smaller name offers and confirms.
    #[error(
        "it takes the other node for the one that offers; the names of the two nodes are read differently"
    )]
    Role,
}

/// One message of an exchange. `K` and `C` are other than ML-KEM's in models only.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Message<K = EncapsulationKey, C = Ciphertext> {
    /// From the responder: something is missing, speak to me.
    Ask {
        /// Of which key.
        context: Arc<Context>,
        /// The offer that it has answered without hearing more.
        round: Option<Round>,
    },
    /// From the initiator.
    Offer {
        /// Of which key.
        context: Arc<Context>,
        /// Which offer.
        round: Round,
        /// Encapsulate to this.
        key: K,
    },
    /// From the responder: it holds the key now and has not installed it.
    Answer {
        /// Of which key.
        context: Arc<Context>,
        /// To which offer.
        round: Round,
        /// For the initiator to decapsulate.
        ciphertext: C,
        /// Proof.
        tag: Tag,
    },
    /// From the initiator: it has installed the key.
    Confirm {
        /// Of which key.
        context: Arc<Context>,
        /// Proof.
        tag: Tag,
        /// It saw a handshake later than the installation.
        seen: bool,
    },
    /// From the responder: it has installed the key too.
    Confirmed {
        /// Of which key.
        context: Arc<Context>,
        /// Proof.
        tag: Tag,
        /// It saw a handshake later than the installation.
        seen: bool,
    },
    /// From the responder: it does not hold the confirmed key and never will.
    Unknown {
        /// Of which key.
        context: Arc<Context>,
        /// The proof that it was sent.
        tag: Tag,
    },
    /// From the initiator: it has not taken up the answer to this offer and never will.
    Withdrawn {
        /// Of which key.
        context: Arc<Context>,
        /// Which offer.
        round: Round,
    },
    /// From either.
    Refused {
        /// What the refusing side knows, not what it was sent.
        context: Arc<Context>,
        /// Why.
        reason: Refusal,
    },
}

impl<K, C> Message<K, C> {
    /// The context that the sender knows.
    pub const fn context(&self) -> &Arc<Context> {
        match self {
            Self::Ask { context, .. }
            | Self::Offer { context, .. }
            | Self::Answer { context, .. }
            | Self::Confirm { context, .. }
            | Self::Confirmed { context, .. }
            | Self::Unknown { context, .. }
            | Self::Withdrawn { context, .. }
            | Self::Refused { context, .. } => context,
        }
    }
}

/// What crosses the wire, each way: the sender's mode, and a message if it has one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Letter {
    /// Mode of the sender.
    pub mode: Mode,
    /// What it says. A request has one; an answer may have none.
    pub message: Option<Message>,
}

#[cfg(test)]
mod tests;
