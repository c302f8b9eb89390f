//! From the model to netlink messages. What cannot be encoded is refused here, before anything is sent.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use super::model::{
    Chain, ChainType, Direction, Elements, End, Family, Hook, InterfaceName, Is, Match, Policy, PortMap,
    Rule, Set, Table, Verdict,
};
use super::observe::Counter;
use super::ports;
use super::sets::{element_messages, set_message};
use super::wire::{Attr, NFPROTO_INET, NFPROTO_IPV4, NFPROTO_IPV6, flag, msg, nfta};

/// A table that cannot be put into netlink.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// An interface name that no interface can have.
    #[error("interface name {name:?} in {object}: must be 1 to 15 bytes without '/', space or '*'")]
    InterfaceName {
        /// Where it stands.
        object: Object,
        /// The name.
        name: String,
    },
    /// A rule looks up a set that the table does not have, or one of another type.
    #[error("{object} looks up set {set:?}, which is not in the table or holds something else")]
    UnknownSet {
        /// The rule.
        object: Object,
        /// Name of the set.
        set: String,
    },
    /// A comment that nf_tables cannot keep.
    #[error("comment of {object} has {length} bytes; at most {MAX_COMMENT} are kept, and no NUL")]
    Comment {
        /// The rule.
        object: Object,
        /// Length found, in bytes.
        length: usize,
    },
    /// A message that exceeds what an attribute can hold (64 KiB).
    #[error("{object} does not fit a netlink attribute of 65,535 bytes")]
    TooLong {
        /// What was being encoded.
        object: Object,
    },
}

/// `NFTNL_UDATA_COMMENT_MAXLEN` less the terminating NUL.
const MAX_COMMENT: usize = 127;

/// What a message of a transaction is about; names the thing in errors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Object {
    /// The transaction as a whole.
    Transaction,
    /// A table.
    Table(String),
    /// A set.
    Set {
        /// Its table.
        table: String,
        /// Its name.
        set: String,
    },
    /// Elements of a set.
    Elements {
        /// The table.
        table: String,
        /// The set.
        set: String,
        /// Position of the first one sent with the message.
        from: usize,
    },
    /// A base chain.
    Chain {
        /// Its table.
        table: String,
        /// Its name.
        chain: String,
    },
    /// A rule.
    Rule {
        /// Its table.
        table: String,
        /// Its chain.
        chain: String,
        /// Position in the chain, from 0.
        index: usize,
        /// Its comment.
        comment: String,
    },
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Transaction => write!(f, "the transaction"),
            Self::Table(table) => write!(f, "table {table}"),
            Self::Set { table, set } => write!(f, "set {table}/{set}"),
            Self::Elements { table, set, from } => {
                write!(f, "elements of set {table}/{set} from number {from}")
            }
            Self::Chain { table, chain } => write!(f, "chain {table}/{chain}"),
            Self::Rule { table, chain, index, comment } => {
                write!(f, "rule {index} ({comment}) of chain {table}/{chain}")
            }
        }
    }
}

/// One message of a transaction.
#[derive(Debug, Clone)]
pub(crate) struct Message {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) family: u8,
    pub(crate) attrs: Vec<Attr>,
    pub(crate) object: Object,
}

/// An expression of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Expr {
    pub(crate) name: &'static str,
    pub(crate) data: Vec<Attr>,
}

impl Expr {
    fn attr(&self) -> Attr {
        let inner =
            vec![Attr::text(nfta::EXPR_NAME, self.name), Attr::nested(nfta::EXPR_DATA, self.data.clone())];
        Attr::nested(nfta::LIST_ELEM, inner)
    }
}

const REG_VERDICT: u32 = 0;
const REG_1: u32 = 1;
const NFT_CMP_EQ: u32 = 0;
const NFT_CMP_LTE: u32 = 3;
const NFT_CMP_GTE: u32 = 5;
/// `NFT_PAYLOAD_TRANSPORT_HEADER`.
const PAYLOAD_TRANSPORT: u32 = 2;
const NFT_CMP_NEQ: u32 = 1;
const IFNAMSIZ: usize = 16;
/// Userdata type of our hash; nft and iptables pass over types that they do not know.
const UDATA_HASH: u8 = 0xf0;
const UDATA_COMMENT: u8 = 0;

/// The messages that make the kernel's table exactly `table`, whatever it was: add, delete, add again, which is one
/// change for every packet. `seeds` are the values at which counters start, by comment.
pub(crate) fn replace(table: &Table, seeds: &BTreeMap<String, Counter>) -> Result<Vec<Message>, EncodeError> {
    let mut messages = remove(&table.name);
    messages.push(table_message(&table.name, msg::NEWTABLE, flag::CREATE));
    for (set, id) in table.sets.iter().zip(1..) {
        messages.push(set_message(&table.name, set, id));
        messages.extend(element_messages(&table.name, set)?);
    }
    let mut seeds = seeds.clone();
    for chain in &table.chains {
        messages.push(chain_message(&table.name, chain));
        for (index, rule) in chain.rules.iter().enumerate() {
            // The first rule of a name carries the whole sum on.
            let seed = if rule.counter { seeds.remove(&rule.comment) } else { None };
            let expressions = rule_expressions(table, chain, index)?;
            let object = rule_object(&table.name, chain, index);
            messages.push(rule_message(
                &object,
                NFPROTO_INET,
                &expressions,
                rule,
                seed,
                flag::CREATE | flag::APPEND,
            ));
        }
    }
    Ok(messages)
}

/// The messages after which the table does not exist, whether it did before or not.
pub(crate) fn remove(table: &str) -> Vec<Message> {
    vec![table_message(table, msg::NEWTABLE, flag::CREATE), table_message(table, msg::DELTABLE, 0)]
}

fn table_message(table: &str, kind: u16, flags: u16) -> Message {
    let mut attrs = vec![Attr::text(nfta::TABLE_NAME, table)];
    if kind == msg::NEWTABLE {
        attrs.push(Attr::be32(nfta::TABLE_FLAGS, 0));
    }
    Message { kind, flags, family: NFPROTO_INET, attrs, object: Object::Table(table.to_owned()) }
}

pub(crate) fn hook_number(hook: Hook) -> u32 {
    match hook {
        Hook::Prerouting => 0,
        Hook::Input => 1,
        Hook::Forward => 2,
        Hook::Output => 3,
        Hook::Postrouting => 4,
    }
}

pub(crate) fn chain_type(kind: ChainType) -> &'static str {
    match kind {
        ChainType::Filter => "filter",
        ChainType::Nat => "nat",
    }
}

const NF_DROP: u32 = 0;
const NF_ACCEPT: u32 = 1;

pub(crate) fn policy_number(policy: Policy) -> u32 {
    match policy {
        Policy::Accept => NF_ACCEPT,
        Policy::Drop => NF_DROP,
    }
}

fn chain_message(table: &str, chain: &Chain) -> Message {
    let hook = vec![
        Attr::be32(nfta::HOOK_HOOKNUM, hook_number(chain.hook)),
        Attr::bytes(nfta::HOOK_PRIORITY, chain.priority.to_be_bytes()),
    ];
    let attrs = vec![
        Attr::text(nfta::CHAIN_TABLE, table),
        Attr::text(nfta::CHAIN_NAME, &chain.name),
        Attr::nested(nfta::CHAIN_HOOK, hook),
        Attr::be32(nfta::CHAIN_POLICY, policy_number(chain.policy)),
        Attr::text(nfta::CHAIN_TYPE, chain_type(chain.kind)),
    ];
    let object = Object::Chain { table: table.to_owned(), chain: chain.name.clone() };
    Message { kind: msg::NEWCHAIN, flags: flag::CREATE, family: NFPROTO_INET, attrs, object }
}

fn rule_object(table: &str, chain: &Chain, index: usize) -> Object {
    let comment = chain.rules[index].comment.clone();
    Object::Rule { table: table.to_owned(), chain: chain.name.clone(), index, comment }
}

/// A rule for `object` (an [`Object::Rule`], else nothing is named) of a table of `family`.
pub(crate) fn rule_message(
    object: &Object,
    family: u8,
    expressions: &[Expr],
    rule: &Rule,
    seed: Option<Counter>,
    flags: u16,
) -> Message {
    let mut attrs = Vec::new();
    if let Object::Rule { table, chain, .. } = object {
        attrs.push(Attr::text(nfta::RULE_TABLE, table));
        attrs.push(Attr::text(nfta::RULE_CHAIN, chain));
    }
    let list = expressions.iter().map(|expr| match seed {
        Some(value) if expr.name == COUNTER => counter(value).attr(),
        Some(_) | None => expr.attr(),
    });
    attrs.push(Attr::nested(nfta::RULE_EXPRESSIONS, list.collect()));
    attrs.push(Attr::bytes(nfta::RULE_USERDATA, userdata(&rule.comment, hash(expressions))));
    Message { kind: msg::NEWRULE, flags, family, attrs, object: object.clone() }
}

/// The expressions of a rule, validated against the sets of its table.
pub(crate) fn rule_expressions(table: &Table, chain: &Chain, index: usize) -> Result<Vec<Expr>, EncodeError> {
    let rule = &chain.rules[index];
    expressions(rule, &table.sets, &rule_object(&table.name, chain, index))
}

/// The expressions of `rule`, whose sets are among `sets`.
pub(crate) fn expressions(rule: &Rule, sets: &[Set], object: &Object) -> Result<Vec<Expr>, EncodeError> {
    if rule.comment.len() > MAX_COMMENT || rule.comment.contains('\0') {
        return Err(EncodeError::Comment { object: object.clone(), length: rule.comment.len() });
    }
    let mut out = Vec::new();
    let mut known_family = None;
    for condition in &rule.matches {
        match condition {
            Match::Interface(direction, is, name) => {
                out.push(meta(interface_key(*direction)));
                out.push(compare(*is, interface_bytes(name, object)?));
            }
            Match::InterfaceIn(direction, is, set) => {
                known(sets, set, object, |elements| matches!(elements, Elements::Interfaces(_)))?;
                out.push(meta(interface_key(*direction)));
                out.push(lookup(set, *is));
            }
            Match::Family(family) => out.extend(require(*family, &mut known_family)),
            Match::Mark { mask, value } => {
                out.push(meta(META_MARK));
                out.push(bitwise(mask.to_ne_bytes()));
                out.push(compare(Is::Yes, value.to_ne_bytes().to_vec()));
            }
            Match::AddressIn(family, end, is, set) => {
                known_addresses(sets, set, object, *family)?;
                out.extend(require(*family, &mut known_family));
                out.push(address(*family, *end));
                out.push(lookup(set, *is));
            }
            Match::Protocol(number) => {
                out.push(meta(META_L4PROTO));
                out.push(compare(Is::Yes, vec![*number]));
            }
            Match::Port(end, port) => {
                out.push(payload(PAYLOAD_TRANSPORT, if *end == End::Source { 0 } else { 2 }, 2, REG_1));
                out.push(compare(Is::Yes, port.to_be_bytes().to_vec()));
            }
            Match::TcpOpens(is) => {
                const FLAGS: u32 = 13;
                const SYN: u8 = 2;
                const ACK: u8 = 16;
                out.push(payload(PAYLOAD_TRANSPORT, FLAGS, 1, REG_1));
                // One byte is loaded into four, the others zero.
                out.push(bitwise([SYN | ACK, 0, 0, 0]));
                out.push(compare(*is, vec![SYN, 0, 0, 0]));
            }
            Match::Icmpv6Type(first, last) => {
                out.push(payload(PAYLOAD_TRANSPORT, 0, 1, REG_1));
                out.push(compare_as(NFT_CMP_GTE, vec![*first]));
                out.push(compare_as(NFT_CMP_LTE, vec![*last]));
            }
            Match::LocalDestination => {
                out.push(destination_type());
                out.push(compare(Is::Yes, RTN_LOCAL.to_ne_bytes().to_vec()));
            }
            Match::BegunTo(family, set) => {
                known_addresses(sets, set, object, *family)?;
                out.extend(require(*family, &mut known_family));
                out.push(begun_to(*family));
                out.push(lookup(set, Is::Yes));
            }
            Match::CtState(states) => {
                out.push(Expr {
                    name: "ct",
                    data: vec![Attr::be32(nfta::CT_DREG, REG_1), Attr::be32(nfta::CT_KEY, CT_STATE)],
                });
                out.push(bitwise(states.to_ne_bytes()));
                out.push(compare(Is::No, vec![0; 4]));
            }
        }
    }
    let map = match &rule.verdict {
        Verdict::Snat(to) => {
            out.extend(require(Family::of(*to), &mut known_family));
            None
        }
        Verdict::Dnat(name) => {
            let map = port_map(sets, name, object)?;
            out.extend(require(map.family(), &mut known_family));
            out.extend(ports::find(map, name));
            Some(map)
        }
        Verdict::Accept
        | Verdict::Drop
        | Verdict::Return
        | Verdict::Masquerade
        | Verdict::RejectReset
        | Verdict::RejectPort => None,
    };
    if rule.counter {
        out.push(counter(Counter::default()));
    }
    match map {
        Some(map) => out.push(ports::translate(map)),
        None => out.extend(verdict(&rule.verdict)),
    }
    Ok(out)
}

const META_MARK: u32 = 3;
const META_IIFNAME: u32 = 6;
const META_OIFNAME: u32 = 7;
const META_NFPROTO: u32 = 15;
pub(super) const META_L4PROTO: u32 = 16;
const CT_STATE: u32 = 0;
/// `RTN_LOCAL` of `linux/rtnetlink.h`.
const RTN_LOCAL: u32 = 2;
pub(crate) const COUNTER: &str = "counter";

fn interface_key(direction: Direction) -> u32 {
    match direction {
        Direction::In => META_IIFNAME,
        Direction::Out => META_OIFNAME,
    }
}

fn meta(key: u32) -> Expr {
    meta_to(key, REG_1)
}

pub(super) fn meta_to(key: u32, register: u32) -> Expr {
    Expr { name: "meta", data: vec![Attr::be32(nfta::META_DREG, register), Attr::be32(nfta::META_KEY, key)] }
}

/// `ct original ip daddr`: what has no connection ends the rule.
fn begun_to(family: Family) -> Expr {
    const NFT_CT_DST_IP: u32 = 20;
    const NFT_CT_DST_IP6: u32 = 22;
    const IP_CT_DIR_ORIGINAL: u8 = 0;
    let key = match family {
        Family::V4 => NFT_CT_DST_IP,
        Family::V6 => NFT_CT_DST_IP6,
    };
    let data = vec![
        Attr::be32(nfta::CT_DREG, REG_1),
        Attr::be32(nfta::CT_KEY, key),
        Attr::bytes(nfta::CT_DIRECTION, [IP_CT_DIR_ORIGINAL]),
    ];
    Expr { name: "ct", data }
}

/// What the routes say of the destination (`fib daddr type`).
fn destination_type() -> Expr {
    const NFT_FIB_RESULT_ADDRTYPE: u32 = 3;
    const NFTA_FIB_F_DADDR: u32 = 2;
    let data = vec![
        Attr::be32(nfta::FIB_DREG, REG_1),
        Attr::be32(nfta::FIB_RESULT, NFT_FIB_RESULT_ADDRTYPE),
        Attr::be32(nfta::FIB_FLAGS, NFTA_FIB_F_DADDR),
    ];
    Expr { name: "fib", data }
}

fn compare(is: Is, value: Vec<u8>) -> Expr {
    let op = match is {
        Is::Yes => NFT_CMP_EQ,
        Is::No => NFT_CMP_NEQ,
    };
    compare_as(op, value)
}

fn compare_as(op: u32, value: Vec<u8>) -> Expr {
    let data = vec![
        Attr::be32(nfta::CMP_SREG, REG_1),
        Attr::be32(nfta::CMP_OP, op),
        Attr::nested(nfta::CMP_DATA, vec![Attr::bytes(nfta::DATA_VALUE, value)]),
    ];
    Expr { name: "cmp", data }
}

fn bitwise(mask: [u8; 4]) -> Expr {
    let data = vec![
        Attr::be32(nfta::BITWISE_SREG, REG_1),
        Attr::be32(nfta::BITWISE_DREG, REG_1),
        Attr::be32(nfta::BITWISE_LEN, 4),
        Attr::nested(nfta::BITWISE_MASK, vec![Attr::bytes(nfta::DATA_VALUE, mask)]),
        Attr::nested(nfta::BITWISE_XOR, vec![Attr::bytes(nfta::DATA_VALUE, [0; 4])]),
    ];
    Expr { name: "bitwise", data }
}

fn lookup(set: &str, is: Is) -> Expr {
    const NFT_LOOKUP_F_INV: u32 = 1;
    let flags = match is {
        Is::Yes => 0,
        Is::No => NFT_LOOKUP_F_INV,
    };
    let data = vec![
        Attr::text(nfta::LOOKUP_SET, set),
        Attr::be32(nfta::LOOKUP_SREG, REG_1),
        Attr::be32(nfta::LOOKUP_FLAGS, flags),
    ];
    Expr { name: "lookup", data }
}

/// `meta nfproto`, once a rule: before it, an offset into the header would mean something else in the other family.
fn require(family: Family, known: &mut Option<Family>) -> Vec<Expr> {
    if *known == Some(family) {
        return Vec::new();
    }
    *known = Some(family);
    vec![meta(META_NFPROTO), compare(Is::Yes, vec![nfproto(family)])]
}

pub(super) fn nfproto(family: Family) -> u8 {
    match family {
        Family::V4 => NFPROTO_IPV4,
        Family::V6 => NFPROTO_IPV6,
    }
}

pub(super) fn address(family: Family, end: End) -> Expr {
    const NFT_PAYLOAD_NETWORK_HEADER: u32 = 1;
    let (offset, length) = match (family, end) {
        (Family::V4, End::Source) => (12, 4),
        (Family::V4, End::Destination) => (16, 4),
        (Family::V6, End::Source) => (8, 16),
        (Family::V6, End::Destination) => (24, 16),
    };
    payload(NFT_PAYLOAD_NETWORK_HEADER, offset, length, REG_1)
}

/// `length` bytes of the header `base` from `offset` on.
pub(super) fn payload(base: u32, offset: u32, length: u32, register: u32) -> Expr {
    let data = vec![
        Attr::be32(nfta::PAYLOAD_DREG, register),
        Attr::be32(nfta::PAYLOAD_BASE, base),
        Attr::be32(nfta::PAYLOAD_OFFSET, offset),
        Attr::be32(nfta::PAYLOAD_LEN, length),
    ];
    Expr { name: "payload", data }
}

fn counter(value: Counter) -> Expr {
    let data =
        vec![Attr::be64(nfta::COUNTER_BYTES, value.bytes), Attr::be64(nfta::COUNTER_PACKETS, value.packets)];
    Expr { name: COUNTER, data }
}

fn immediate(register: u32, data: Attr) -> Expr {
    let data =
        vec![Attr::be32(nfta::IMMEDIATE_DREG, register), Attr::nested(nfta::IMMEDIATE_DATA, vec![data])];
    Expr { name: "immediate", data }
}

fn verdict(verdict: &Verdict) -> Vec<Expr> {
    /// `NFT_RETURN`, -5.
    const NFT_RETURN: u32 = 0_u32.wrapping_sub(5);
    const NF_NAT_RANGE_PROTO_RANDOM_FULLY: u32 = 1 << 4;
    const NFT_NAT_SNAT: u32 = 0;
    const NFT_REJECT_TCP_RST: u32 = 1;
    const NFT_REJECT_ICMPX_UNREACH: u32 = 2;
    const NFT_REJECT_ICMPX_PORT_UNREACH: u8 = 1;
    let code = |code| {
        let inner = vec![Attr::be32(nfta::VERDICT_CODE, code)];
        vec![immediate(REG_VERDICT, Attr::nested(nfta::DATA_VERDICT, inner))]
    };
    match verdict {
        Verdict::Accept => code(NF_ACCEPT),
        Verdict::Drop => code(NF_DROP),
        Verdict::Return => code(NFT_RETURN),
        Verdict::Masquerade => {
            let data = vec![Attr::be32(nfta::MASQ_FLAGS, NF_NAT_RANGE_PROTO_RANDOM_FULLY)];
            vec![Expr { name: "masq", data }]
        }
        Verdict::RejectReset => {
            vec![Expr { name: "reject", data: vec![Attr::be32(nfta::REJECT_TYPE, NFT_REJECT_TCP_RST)] }]
        }
        Verdict::RejectPort => {
            let data = vec![
                Attr::be32(nfta::REJECT_TYPE, NFT_REJECT_ICMPX_UNREACH),
                Attr::bytes(nfta::REJECT_ICMP_CODE, vec![NFT_REJECT_ICMPX_PORT_UNREACH]),
            ];
            vec![Expr { name: "reject", data }]
        }
        Verdict::Snat(to) => {
            let bytes = match to {
                IpAddr::V4(v4) => v4.octets().to_vec(),
                IpAddr::V6(v6) => v6.octets().to_vec(),
            };
            let data = vec![
                Attr::be32(nfta::NAT_TYPE, NFT_NAT_SNAT),
                Attr::be32(nfta::NAT_FAMILY, u32::from(nfproto(Family::of(*to)))),
                Attr::be32(nfta::NAT_REG_ADDR_MIN, REG_1),
            ];
            vec![immediate(REG_1, Attr::bytes(nfta::DATA_VALUE, bytes)), Expr { name: "nat", data }]
        }
        // Its expressions need the map.
        Verdict::Dnat(_) => Vec::new(),
    }
}

/// The map of ports `name`.
fn port_map<'a>(sets: &'a [Set], name: &str, object: &Object) -> Result<&'a PortMap, EncodeError> {
    let of_name = sets.iter().filter(|set| set.name == name);
    let mut maps = of_name.filter_map(|set| match &set.elements {
        Elements::Ports(map) => Some(map),
        Elements::Addresses(_) | Elements::Interfaces(_) => None,
    });
    maps.next().ok_or_else(|| EncodeError::UnknownSet { object: object.clone(), set: name.to_owned() })
}

fn known_addresses(sets: &[Set], name: &str, object: &Object, family: Family) -> Result<(), EncodeError> {
    known(
        sets,
        name,
        object,
        |elements| matches!(elements, Elements::Addresses(ranges) if ranges.family() == family),
    )
}

fn known(
    sets: &[Set],
    name: &str,
    object: &Object,
    fits: impl Fn(&Elements) -> bool,
) -> Result<(), EncodeError> {
    if sets.iter().any(|set| set.name == name && fits(&set.elements)) {
        return Ok(());
    }
    Err(EncodeError::UnknownSet { object: object.clone(), set: name.to_owned() })
}

pub(super) fn check_interface(name: &str, object: &Object) -> Result<(), EncodeError> {
    let bad = |c: char| c == '/' || c == '*' || c == '\0' || c.is_whitespace();
    if name.is_empty() || name.len() >= IFNAMSIZ || name.contains(bad) {
        return Err(EncodeError::InterfaceName { object: object.clone(), name: name.to_owned() });
    }
    Ok(())
}

fn interface_bytes(name: &InterfaceName, object: &Object) -> Result<Vec<u8>, EncodeError> {
    match name {
        InterfaceName::Exact(name) => check_interface(name, object).map(|()| padded(name)),
        InterfaceName::Prefix(name) => check_interface(name, object).map(|()| name.as_bytes().to_vec()),
    }
}

pub(super) fn padded(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize(IFNAMSIZ, 0);
    bytes
}

/// Comment as `nft list` reads it, then our hash: type, length, value each.
fn userdata(comment: &str, hash: u64) -> Vec<u8> {
    let length =
        u8::try_from(comment.len() + 1).expect("invariant: comments are checked against MAX_COMMENT");
    let mut bytes = vec![UDATA_COMMENT, length];
    bytes.extend(comment.as_bytes());
    bytes.extend([0, UDATA_HASH, 8]);
    bytes.extend(hash.to_be_bytes());
    bytes
}

/// Comment and hash out of a rule's userdata, whoever wrote it.
pub(crate) fn parse_userdata(mut bytes: &[u8]) -> (Option<String>, Option<u64>) {
    let (mut comment, mut hash) = (None, None);
    while let [kind, length, rest @ ..] = bytes {
        let Some((value, after)) = rest.split_at_checked(usize::from(*length)) else { break };
        match *kind {
            UDATA_COMMENT => comment = Some(super::wire::text(value)),
            UDATA_HASH => hash = super::wire::be64(value),
            _ => {}
        }
        bytes = after;
    }
    (comment, hash)
}

/// FNV-1a (64 bits) of the expressions: tells versions of a rule apart, across releases and without a secret.
pub(crate) fn hash(expressions: &[Expr]) -> u64 {
    let mut bytes = Vec::new();
    for expr in expressions {
        // An expression is far below the limit; were it not, the message itself could not be written either.
        let _ = expr.attr().write(&mut bytes);
    }
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}
