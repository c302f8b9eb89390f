//! How the agents of two nodes agree on a post-quantum pre-shared key: service `hawser.keys.v1.PairKeys`, and the one
//! place where its messages become [`Letter`]s and the other way round.
//!
//! Served on the mesh address, [`mesh_core::numbers::PORT_KEY_EXCHANGE`]. A reader ignores fields that it does not know; a
//! value that it does not know in a field that it does is refused. No message is longer than [`MAX_MESSAGE`].

#[rustfmt::skip]
#[allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::allow_attributes_without_reason,
    clippy::pedantic,
    clippy::wildcard_enum_match_arm,
    reason = "generated"
)]
mod generated;

use std::fmt;
use std::sync::Arc;

use mesh_core::announcement::Epoch;
use mesh_core::key::PublicKey;
use mesh_core::name::NameError;
use mesh_core::psk::{
    Ciphertext, ClusterNameError, Context, EncapsulationKey, End, Letter, Message, Mode, NodeId, PairError,
    Refusal, Role, Round, Tag,
};
use mesh_core::slot::Slot;

pub use self::generated::pair_keys_client::PairKeysClient;
pub use self::generated::pair_keys_server::{PairKeys, PairKeysServer};
pub use self::generated::{ExchangeRequest, ExchangeResponse};
use self::generated::{message::Say, refused::Reason};

/// Longest message in bytes, for both directions of client and server: an offer between nodes with the longest names
/// has under 2,100.
pub const MAX_MESSAGE: usize = 4096;

/// A field of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// `mode`.
    Mode,
    /// `message`.
    Message,
    /// `message.context`.
    Context,
    /// `message.context.slot`.
    Slot,
    /// `message.context.smaller` or `greater`.
    End(Role),
    /// `….cluster`.
    Cluster(Role),
    /// `….node`.
    Node(Role),
    /// `….public_key`.
    PublicKey(Role),
    /// `….epoch`.
    Epoch(Role),
    /// `message.say`.
    Say,
    /// `….round`.
    Round,
    /// `….encapsulation_key`.
    EncapsulationKey,
    /// `….ciphertext`.
    Ciphertext,
    /// `….tag`.
    Tag,
    /// `….refused.reason`.
    Reason,
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = |role: &Role| match role {
            Role::Initiator => "message.context.smaller",
            Role::Responder => "message.context.greater",
        };
        match self {
            Self::Mode => f.write_str("mode"),
            Self::Message => f.write_str("message"),
            Self::Context => f.write_str("message.context"),
            Self::Slot => f.write_str("message.context.slot"),
            Self::End(role) => f.write_str(end(role)),
            Self::Cluster(role) => write!(f, "{}.cluster", end(role)),
            Self::Node(role) => write!(f, "{}.node", end(role)),
            Self::PublicKey(role) => write!(f, "{}.public_key", end(role)),
            Self::Epoch(role) => write!(f, "{}.epoch", end(role)),
            Self::Say => f.write_str("message.say"),
            Self::Round => f.write_str("message.say.round"),
            Self::EncapsulationKey => f.write_str("message.say.encapsulation_key"),
            Self::Ciphertext => f.write_str("message.say.ciphertext"),
            Self::Tag => f.write_str("message.say.tag"),
            Self::Reason => f.write_str("message.say.reason"),
        }
    }
}

/// Why a message is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LetterError {
    /// A field that must be there is not, or is one that this agent does not know.
    #[error("{field} is missing or unknown here; upgrade the older of the two agents")]
    Missing {
        /// Which.
        field: Field,
    },
    /// A number without a meaning.
    #[error("{field} is {found}, wanted {wanted}; upgrade the older of the two agents")]
    Value {
        /// Which.
        field: Field,
        /// What it is.
        found: i64,
        /// What it may be.
        wanted: &'static str,
    },
    /// Bytes of another length.
    #[error("{field} has {found} bytes, wanted {wanted}; upgrade the older of the two agents")]
    Length {
        /// Which.
        field: Field,
        /// How many.
        found: usize,
        /// How many there must be.
        wanted: usize,
    },
    /// Not the name of a node.
    #[error("{field}: {source}; correct the name in the configuration of the sending node")]
    Node {
        /// Which.
        field: Field,
        /// Why.
        source: NameError,
    },
    /// Not the name of a cluster.
    #[error("{field}: {source}; correct clusterName in the configuration of the sending node")]
    Cluster {
        /// Which.
        field: Field,
        /// Why.
        source: ClusterNameError,
    },
    /// Not a pair.
    #[error("message.context: {0}; give the two nodes different names and keys")]
    Pair(#[from] PairError),
    /// The ends are in the wrong order.
    #[error(
        "message.context.smaller is {smaller}, which is not smaller than {greater}; upgrade the older of the two agents"
    )]
    Order {
        /// The first.
        smaller: NodeId,
        /// The second.
        greater: NodeId,
    },
}

impl From<&Letter> for ExchangeRequest {
    fn from(letter: &Letter) -> Self {
        Self { mode: mode_to_wire(letter.mode), message: letter.message.as_ref().map(message_to_wire) }
    }
}

impl From<&Letter> for ExchangeResponse {
    fn from(letter: &Letter) -> Self {
        Self { mode: mode_to_wire(letter.mode), message: letter.message.as_ref().map(message_to_wire) }
    }
}

impl TryFrom<ExchangeRequest> for Letter {
    type Error = LetterError;

    /// A request has a message.
    fn try_from(wire: ExchangeRequest) -> Result<Self, LetterError> {
        let message = wire.message.ok_or(LetterError::Missing { field: Field::Message })?;
        Ok(Self { mode: mode(wire.mode)?, message: Some(parse(message)?) })
    }
}

impl TryFrom<ExchangeResponse> for Letter {
    type Error = LetterError;

    fn try_from(wire: ExchangeResponse) -> Result<Self, LetterError> {
        Ok(Self { mode: mode(wire.mode)?, message: wire.message.map(parse).transpose()? })
    }
}

fn mode_to_wire(mode: Mode) -> i32 {
    let mode = match mode {
        Mode::Off => generated::Mode::Off,
        Mode::Prefer => generated::Mode::Prefer,
        Mode::Require => generated::Mode::Require,
    };
    mode.into()
}

fn mode(wire: i32) -> Result<Mode, LetterError> {
    match generated::Mode::try_from(wire) {
        Ok(generated::Mode::Off) => Ok(Mode::Off),
        Ok(generated::Mode::Prefer) => Ok(Mode::Prefer),
        Ok(generated::Mode::Require) => Ok(Mode::Require),
        Ok(generated::Mode::Unspecified) | Err(_) => Err(LetterError::Value {
            field: Field::Mode,
            found: wire.into(),
            wanted: "1 (off), 2 (prefer) or 3 (require)",
        }),
    }
}

fn message_to_wire(message: &Message) -> generated::Message {
    let tag = |tag: &Tag| tag.0.to_vec();
    let round = |round: &Round| round.0.to_vec();
    let say = match message {
        Message::Ask { round: asked, .. } => {
            Say::Ask(generated::Ask { round: asked.as_ref().map(round).unwrap_or_default() })
        }
        Message::Offer { round: offered, key, .. } => {
            Say::Offer(generated::Offer { round: round(offered), encapsulation_key: key.as_bytes().to_vec() })
        }
        Message::Answer { round: answered, ciphertext, tag: proof, .. } => Say::Answer(generated::Answer {
            round: round(answered),
            ciphertext: ciphertext.as_bytes().to_vec(),
            tag: tag(proof),
        }),
        Message::Confirm { tag: proof, seen, .. } => {
            Say::Confirm(generated::Confirm { tag: tag(proof), seen: *seen })
        }
        Message::Confirmed { tag: proof, seen, .. } => {
            Say::Confirmed(generated::Confirm { tag: tag(proof), seen: *seen })
        }
        Message::Unknown { tag: proof, .. } => Say::Unknown(generated::Unknown { tag: tag(proof) }),
        Message::Withdrawn { round: withdrawn, .. } => {
            Say::Withdrawn(generated::Withdrawn { round: round(withdrawn) })
        }
        Message::Refused { reason, .. } => {
            let reason = match reason {
                Refusal::OtherContext => Reason::OtherContext,
                Refusal::Off => Reason::Off,
                Refusal::Busy => Reason::Busy,
                Refusal::Key => Reason::Key,
                Refusal::Role => Reason::Role,
            };
            Say::Refused(generated::Refused { reason: reason.into() })
        }
    };
    generated::Message { context: Some(context_to_wire(message.context())), say: Some(say) }
}

fn context_to_wire(context: &Context) -> generated::Context {
    let end = |role| {
        let End { id, key, epoch } = context.end(role);
        Some(generated::End {
            cluster: id.cluster.as_str().to_owned(),
            node: id.node.as_str().to_owned(),
            public_key: key.as_bytes().to_vec(),
            epoch: epoch.0,
        })
    };
    generated::Context {
        slot: if context.slot() == Slot::Zero { 0 } else { 1 },
        smaller: end(Role::Initiator),
        greater: end(Role::Responder),
    }
}

fn parse(wire: generated::Message) -> Result<Message, LetterError> {
    let context = wire.context.ok_or(LetterError::Missing { field: Field::Context })?;
    let context = Arc::new(parse_context(context)?);
    let round = |bytes: &[u8]| fixed(Field::Round, bytes).map(Round);
    let tag = |bytes: &[u8]| fixed(Field::Tag, bytes).map(Tag);
    Ok(match wire.say.ok_or(LetterError::Missing { field: Field::Say })? {
        Say::Ask(ask) if ask.round.is_empty() => Message::Ask { context, round: None },
        Say::Ask(ask) => Message::Ask { context, round: Some(round(&ask.round)?) },
        Say::Offer(offer) => Message::Offer {
            context,
            round: round(&offer.round)?,
            key: EncapsulationKey::from_bytes(&fixed(Field::EncapsulationKey, &offer.encapsulation_key)?),
        },
        Say::Answer(answer) => Message::Answer {
            context,
            round: round(&answer.round)?,
            ciphertext: Ciphertext::from_bytes(&fixed(Field::Ciphertext, &answer.ciphertext)?),
            tag: tag(&answer.tag)?,
        },
        Say::Confirm(confirm) => Message::Confirm { context, tag: tag(&confirm.tag)?, seen: confirm.seen },
        Say::Confirmed(confirm) => {
            Message::Confirmed { context, tag: tag(&confirm.tag)?, seen: confirm.seen }
        }
        Say::Unknown(unknown) => Message::Unknown { context, tag: tag(&unknown.tag)? },
        Say::Withdrawn(withdrawn) => Message::Withdrawn { context, round: round(&withdrawn.round)? },
        Say::Refused(refused) => Message::Refused { context, reason: parse_reason(refused.reason)? },
    })
}

fn parse_reason(wire: i32) -> Result<Refusal, LetterError> {
    match Reason::try_from(wire) {
        Ok(Reason::OtherContext) => Ok(Refusal::OtherContext),
        Ok(Reason::Off) => Ok(Refusal::Off),
        Ok(Reason::Busy) => Ok(Refusal::Busy),
        Ok(Reason::Key) => Ok(Refusal::Key),
        Ok(Reason::Role) => Ok(Refusal::Role),
        Ok(Reason::Unspecified) | Err(_) => {
            Err(LetterError::Value { field: Field::Reason, found: wire.into(), wanted: "1 to 5" })
        }
    }
}

fn parse_context(wire: generated::Context) -> Result<Context, LetterError> {
    let slot = match wire.slot {
        0 => Slot::Zero,
        1 => Slot::One,
        found => {
            return Err(LetterError::Value { field: Field::Slot, found: found.into(), wanted: "0 or 1" });
        }
    };
    let smaller = parse_end(Role::Initiator, wire.smaller)?;
    let greater = parse_end(Role::Responder, wire.greater)?;
    if smaller.id > greater.id {
        return Err(LetterError::Order { smaller: smaller.id, greater: greater.id });
    }
    Ok(Context::new(slot, smaller, greater)?)
}

fn parse_end(role: Role, wire: Option<generated::End>) -> Result<End, LetterError> {
    let wire = wire.ok_or(LetterError::Missing { field: Field::End(role) })?;
    let node = wire.node.parse().map_err(|source| LetterError::Node { field: Field::Node(role), source })?;
    let cluster = wire.cluster.parse();
    let cluster = cluster.map_err(|source| LetterError::Cluster { field: Field::Cluster(role), source })?;
    let key = PublicKey::from_bytes(fixed(Field::PublicKey(role), &wire.public_key)?);
    if wire.epoch == 0 {
        return Err(LetterError::Value { field: Field::Epoch(role), found: 0, wanted: "1 or more" });
    }
    Ok(End { id: NodeId { node, cluster }, key, epoch: Epoch(wire.epoch) })
}

fn fixed<const N: usize>(field: Field, bytes: &[u8]) -> Result<[u8; N], LetterError> {
    bytes.try_into().map_err(|_| LetterError::Length { field, found: bytes.len(), wanted: N })
}

#[cfg(test)]
mod tests;
