//! What the kernel has, and how it differs from what is desired.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::encode::{
    COUNTER, EncodeError, Expr, chain_type, hash, hook_number, parse_userdata, policy_number,
    rule_expressions,
};
use super::model::{Chain, Elements, Set, Table};
use super::sets::{SetShape, set_keys, set_shape};
use super::socket::{Answer, Channel, NftError};
use super::wire::{self, Attr, NFPROTO_INET, msg, nfta};

#[cfg(test)]
mod tests;

/// Packets and bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Counter {
    /// Packets.
    pub packets: u64,
    /// Bytes, from the network header on.
    pub bytes: u64,
}

impl Counter {
    /// The sum; stays at the greatest number rather than begin anew.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            packets: self.packets.saturating_add(other.packets),
            bytes: self.bytes.saturating_add(other.bytes),
        }
    }
}

/// The kernel's table, as dumped.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    /// The table, if there is one.
    pub table: Option<ObservedTable>,
}

/// A dumped table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ObservedTable {
    /// `NFT_TABLE_F_*`; ours has none, a dormant one (1) does nothing.
    pub flags: u32,
    /// Sets by name.
    pub sets: BTreeMap<String, ObservedSet>,
    /// Chains by name.
    pub chains: BTreeMap<String, ObservedChain>,
}

/// A dumped set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedSet {
    /// What it can hold.
    pub shape: SetShape,
    /// Keys, sorted.
    pub keys: Vec<Key>,
}

/// A key of a set, in network order, with its value behind it in a map, and whether it is the end of an interval (the first
/// address after it).
pub type Key = (Vec<u8>, bool);

/// A dumped chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedChain {
    /// Hook, priority, type and policy; `None` for a chain without a hook.
    pub base: Option<(u32, i32, String, u32)>,
    /// Its rules, in order.
    pub rules: Vec<ObservedRule>,
}

/// A dumped rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedRule {
    /// The kernel's number of it in its table, by which it is deleted.
    pub(crate) handle: Option<u64>,
    /// Name and attributes of each expression.
    pub(crate) expressions: Vec<(String, Vec<u8>)>,
    /// Comment, as `nft list` shows it.
    pub comment: Option<String>,
    /// Our hash of its specification.
    pub hash: Option<u64>,
}

/// One way in which the kernel's table is not the desired one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Difference {
    /// There is no such table.
    TableMissing,
    /// It has flags, such as `dormant`.
    TableFlags,
    /// A set is missing.
    SetMissing(String),
    /// A set that nobody wants.
    SetForeign(String),
    /// A set is of another type.
    SetType(String),
    /// A set has other elements.
    SetElements(String),
    /// A chain is missing.
    ChainMissing(String),
    /// A chain that nobody wants.
    ChainForeign(String),
    /// A chain has another hook, priority, type or policy.
    ChainBase(String),
    /// A chain's rules are not the desired ones in the desired order; the position of the first that differs.
    Rules(String, usize),
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TableMissing => write!(f, "table missing"),
            Self::TableFlags => write!(f, "table has flags"),
            Self::SetMissing(set) => write!(f, "set {set} missing"),
            Self::SetForeign(set) => write!(f, "set {set} not ours"),
            Self::SetType(set) => write!(f, "set {set} of another type"),
            Self::SetElements(set) => write!(f, "set {set} has other elements"),
            Self::ChainMissing(chain) => write!(f, "chain {chain} missing"),
            Self::ChainForeign(chain) => write!(f, "chain {chain} not ours"),
            Self::ChainBase(chain) => write!(f, "chain {chain} has another hook, priority, type or policy"),
            Self::Rules(chain, index) => write!(f, "chain {chain} differs from rule {index} on"),
        }
    }
}

/// How `observed` differs from `desired`; empty: it is exactly that.
///
/// # Errors
/// `desired` itself cannot be encoded.
pub fn diff(desired: &Table, observed: &Observed) -> Result<Vec<Difference>, EncodeError> {
    let Some(table) = &observed.table else { return Ok(vec![Difference::TableMissing]) };
    let mut differences = Vec::new();
    if table.flags != 0 {
        differences.push(Difference::TableFlags);
    }
    for set in &desired.sets {
        differences.extend(match table.sets.get(&set.name) {
            None => Some(Difference::SetMissing(set.name.clone())),
            Some(found) => diff_set(set, found),
        });
    }
    let foreign = table.sets.keys().filter(|name| desired.sets.iter().all(|set| set.name != **name));
    differences.extend(foreign.cloned().map(Difference::SetForeign));
    for chain in &desired.chains {
        match table.chains.get(&chain.name) {
            None => differences.push(Difference::ChainMissing(chain.name.clone())),
            Some(found) => {
                differences.extend(diff_base(chain, found));
                differences.extend(diff_rules(desired, chain, found)?);
            }
        }
    }
    let foreign = table.chains.keys().filter(|name| desired.chains.iter().all(|chain| chain.name != **name));
    differences.extend(foreign.cloned().map(Difference::ChainForeign));
    Ok(differences)
}

/// What of `desired` is not in `observed`; sets may hold more.
///
/// # Errors
/// `desired` itself cannot be encoded.
pub fn lacks(desired: &Table, observed: &Observed) -> Result<Vec<Difference>, EncodeError> {
    let mut differences = diff(desired, observed)?;
    let found = |name: &String| observed.table.as_ref().and_then(|table| table.sets.get(name));
    let holds = |set: &Set| {
        let keys = found(&set.name).map(|found| &found.keys);
        keys.is_some_and(|keys| set_keys(&set.elements).iter().all(|key| keys.contains(key)))
    };
    differences.retain(|difference| match difference {
        Difference::SetElements(name) => !desired.sets.iter().any(|set| set.name == *name && holds(set)),
        Difference::TableMissing
        | Difference::TableFlags
        | Difference::SetMissing(_)
        | Difference::SetForeign(_)
        | Difference::SetType(_)
        | Difference::ChainMissing(_)
        | Difference::ChainForeign(_)
        | Difference::ChainBase(_)
        | Difference::Rules(..) => true,
    });
    Ok(differences)
}

fn diff_set(set: &Set, found: &ObservedSet) -> Option<Difference> {
    if found.shape != set_shape(&set.elements) {
        return Some(Difference::SetType(set.name.clone()));
    }
    let mut keys = set_keys(&set.elements);
    keys.sort_unstable();
    // An end at the lowest address says that what precedes the first interval is outside, which goes without saying.
    let interval = matches!(set.elements, Elements::Addresses(_));
    let plain = |(key, end): &Key| !(interval && *end && key.iter().all(|byte| *byte == 0));
    (!found.keys.iter().filter(|key| plain(key)).eq(&keys)).then(|| Difference::SetElements(set.name.clone()))
}

fn diff_base(chain: &Chain, found: &ObservedChain) -> Option<Difference> {
    let (hook, kind) = (hook_number(chain.hook), chain_type(chain.kind).to_owned());
    let wanted = (hook, chain.priority, kind, policy_number(chain.policy));
    (found.base.as_ref() != Some(&wanted)).then(|| Difference::ChainBase(chain.name.clone()))
}

fn diff_rules(
    table: &Table,
    chain: &Chain,
    found: &ObservedChain,
) -> Result<Option<Difference>, EncodeError> {
    for (index, rule) in chain.rules.iter().enumerate() {
        let wanted = rule_expressions(table, chain, index)?;
        let same = found.rules.get(index).is_some_and(|found| {
            found.comment.as_ref() == Some(&rule.comment)
                && found.hash == Some(hash(&wanted))
                && same_expressions(&found.expressions, &wanted)
        });
        if !same {
            return Ok(Some(Difference::Rules(chain.name.clone(), index)));
        }
    }
    let more = found.rules.len() > chain.rules.len();
    Ok(more.then(|| Difference::Rules(chain.name.clone(), chain.rules.len())))
}

/// Whether the kernel's expressions do what `wanted` says; values of counters do not matter.
pub(crate) fn same_expressions(found: &[(String, Vec<u8>)], wanted: &[Expr]) -> bool {
    found.len() == wanted.len()
        && found.iter().zip(wanted).all(|((name, data), wanted)| {
            let added = |kind, value: &[u8]| kernel_adds(wanted.name, kind, value);
            name == wanted.name && (name == COUNTER || wire::same(data, &wanted.data, &added))
        })
}

/// Attributes that the kernel lists though they were not sent, with the only meaning that we want.
fn kernel_adds(expression: &str, kind: u16, value: &[u8]) -> bool {
    match expression {
        // Mask and xor, which is what an absent operation means.
        "bitwise" => kind == nfta::BITWISE_OP && value == [0; 4],
        // A range of one address, or one port, ends in the register in which it begins, and is said to have addresses
        // (flag 1) and ports (flag 2).
        "nat" => {
            let is = |numbers: &[u32]| numbers.iter().any(|number| value == number.to_be_bytes());
            match kind {
                nfta::NAT_REG_ADDR_MAX => is(&[1]),
                nfta::NAT_REG_PROTO_MAX => is(&[2, 9]),
                nfta::NAT_FLAGS => is(&[1, 3]),
                _ => false,
            }
        }
        _ => false,
    }
}

/// Sums of the counting rules of `observed`, by comment.
pub(crate) fn sums(observed: &Observed) -> BTreeMap<String, Counter> {
    let mut sums: BTreeMap<String, Counter> = BTreeMap::new();
    let chains = observed.table.iter().flat_map(|table| table.chains.values());
    for rule in chains.flat_map(|chain| &chain.rules) {
        let value = rule.expressions.iter().find(|(name, _)| name == COUNTER).and_then(|(_, data)| {
            let attrs = wire::parse(data)?;
            Some(Counter {
                packets: wire::be64(wire::find(&attrs, nfta::COUNTER_PACKETS)?)?,
                bytes: wire::be64(wire::find(&attrs, nfta::COUNTER_BYTES)?)?,
            })
        });
        if let (Some(comment), Some(value)) = (&rule.comment, value) {
            let sum = sums.entry(comment.clone()).or_default();
            *sum = sum.plus(value);
        }
    }
    sums
}

/// Attempts to read a ruleset that others keep changing (kube-proxy on a busy node syncs every second).
const ATTEMPTS: u32 = 8;

/// Reads with `read` until the ruleset did not change meanwhile.
pub(crate) fn steady<T>(
    channel: &mut Channel,
    mut read: impl FnMut(&mut Channel) -> Result<Option<T>, NftError>,
) -> Result<T, NftError> {
    for _ in 0..ATTEMPTS {
        let before = channel.generation()?;
        let found = read(channel);
        if channel.generation()? != before {
            continue;
        }
        if let Some(found) = found? {
            return Ok(found);
        }
    }
    Err(NftError::Unsteady { attempts: ATTEMPTS })
}

/// Reads the `inet` table `name`.
pub(crate) fn observe(channel: &mut Channel, name: &str) -> Result<Observed, NftError> {
    steady(channel, |channel| {
        let Some(tables) = channel.dump(msg::GETTABLE, NFPROTO_INET, &[], "tables")? else { return Ok(None) };
        let Some(flags) = tables.iter().find_map(|answer| table_flags(answer, name)) else {
            return Ok(Some(Observed::default()));
        };
        let mut table = ObservedTable { flags, ..ObservedTable::default() };
        let Some(chains) = chains(channel, NFPROTO_INET)? else { return Ok(None) };
        for chain in chains.into_iter().filter(|chain| chain.table == name) {
            table.chains.insert(chain.name, ObservedChain { base: chain.base, rules: Vec::new() });
        }
        let Some(rules) = rules(channel, NFPROTO_INET, name, None)? else { return Ok(None) };
        for (chain, rule) in rules {
            if let Some(chain) = table.chains.get_mut(&chain) {
                chain.rules.push(rule);
            }
        }
        let filter = [Attr::text(nfta::SET_TABLE, name)];
        let Some(sets) = channel.dump(msg::GETSET, NFPROTO_INET, &filter, "sets")? else { return Ok(None) };
        for answer in &sets {
            let (set, shape) = parse_set(answer).ok_or(NftError::Malformed { what: "a set" })?;
            let Some(keys) = elements(channel, name, &set)? else { return Ok(None) };
            table.sets.insert(set, ObservedSet { shape, keys });
        }
        Ok(Some(Observed { table: Some(table) }))
    })
}

/// Names of all `inet` tables.
pub(crate) fn tables(channel: &mut Channel) -> Result<BTreeSet<String>, NftError> {
    steady(channel, |channel| {
        let Some(all) = channel.dump(msg::GETTABLE, NFPROTO_INET, &[], "tables")? else { return Ok(None) };
        let name = |answer: &Answer| {
            let attrs = wire::parse(&answer.attrs)?;
            wire::find(&attrs, nfta::TABLE_NAME).map(wire::text)
        };
        let all = all.iter().filter(|answer| answer.family == NFPROTO_INET);
        let named = all.map(|answer| name(answer).ok_or(NftError::Malformed { what: "a table" }));
        named.collect::<Result<_, _>>().map(Some)
    })
}

fn table_flags(answer: &Answer, name: &str) -> Option<u32> {
    let attrs = wire::parse(&answer.attrs)?;
    let found = wire::find(&attrs, nfta::TABLE_NAME).map(wire::text)?;
    (found == name).then(|| wire::find(&attrs, nfta::TABLE_FLAGS).and_then(wire::be32).unwrap_or(0))
}

/// A chain of any table.
#[derive(Debug)]
pub(crate) struct ListedChain {
    pub(crate) family: u8,
    pub(crate) table: String,
    pub(crate) name: String,
    pub(crate) base: Option<(u32, i32, String, u32)>,
}

/// All chains of `family` (0: of every family). `None`: interrupted.
pub(crate) fn chains(channel: &mut Channel, family: u8) -> Result<Option<Vec<ListedChain>>, NftError> {
    let Some(answers) = channel.dump(msg::GETCHAIN, family, &[], "chains")? else { return Ok(None) };
    let chains =
        answers.iter().map(|answer| parse_chain(answer).ok_or(NftError::Malformed { what: "a chain" }));
    chains.collect::<Result<_, _>>().map(Some)
}

fn parse_chain(answer: &Answer) -> Option<ListedChain> {
    let attrs = wire::parse(&answer.attrs)?;
    let base = match wire::find(&attrs, nfta::CHAIN_HOOK) {
        None => None,
        Some(hook) => {
            let hook = wire::parse(hook)?;
            Some((
                wire::be32(wire::find(&hook, nfta::HOOK_HOOKNUM)?)?,
                i32::from_be_bytes(wire::find(&hook, nfta::HOOK_PRIORITY)?.try_into().ok()?),
                wire::text(wire::find(&attrs, nfta::CHAIN_TYPE)?),
                wire::be32(wire::find(&attrs, nfta::CHAIN_POLICY)?)?,
            ))
        }
    };
    Some(ListedChain {
        family: answer.family,
        table: wire::text(wire::find(&attrs, nfta::CHAIN_TABLE)?),
        name: wire::text(wire::find(&attrs, nfta::CHAIN_NAME)?),
        base,
    })
}

/// The rules of a table, or of one chain of it, with the chain's name. `None`: interrupted.
pub(crate) fn rules(
    channel: &mut Channel,
    family: u8,
    table: &str,
    chain: Option<&str>,
) -> Result<Option<Vec<(String, ObservedRule)>>, NftError> {
    let mut filter = vec![Attr::text(nfta::RULE_TABLE, table)];
    filter.extend(chain.map(|chain| Attr::text(nfta::RULE_CHAIN, chain)));
    let Some(answers) = channel.dump(msg::GETRULE, family, &filter, "rules")? else { return Ok(None) };
    let rules = answers.iter().map(|answer| parse_rule(answer).ok_or(NftError::Malformed { what: "a rule" }));
    let rules = rules.collect::<Result<Vec<_>, _>>()?;
    // The kernel's filters are a courtesy of newer versions.
    let mine =
        |rule: &(String, String, ObservedRule)| rule.0 == table && chain.is_none_or(|chain| rule.1 == chain);
    Ok(Some(rules.into_iter().filter(mine).map(|(_, chain, rule)| (chain, rule)).collect()))
}

fn parse_rule(answer: &Answer) -> Option<(String, String, ObservedRule)> {
    let attrs = wire::parse(&answer.attrs)?;
    let mut expressions = Vec::new();
    for (_, element) in wire::parse(wire::find(&attrs, nfta::RULE_EXPRESSIONS).unwrap_or_default())? {
        let element = wire::parse(element)?;
        let name = wire::text(wire::find(&element, nfta::EXPR_NAME)?);
        expressions.push((name, wire::find(&element, nfta::EXPR_DATA).unwrap_or_default().to_vec()));
    }
    let (comment, hash) = parse_userdata(wire::find(&attrs, nfta::RULE_USERDATA).unwrap_or_default());
    let handle = wire::find(&attrs, nfta::RULE_HANDLE).and_then(wire::be64);
    Some((
        wire::text(wire::find(&attrs, nfta::RULE_TABLE)?),
        wire::text(wire::find(&attrs, nfta::RULE_CHAIN)?),
        ObservedRule { handle, expressions, comment, hash },
    ))
}

fn parse_set(answer: &Answer) -> Option<(String, SetShape)> {
    let attrs = wire::parse(&answer.attrs)?;
    let number = |kind| wire::find(&attrs, kind).and_then(wire::be32);
    let shape = SetShape {
        flags: number(nfta::SET_FLAGS).unwrap_or(0),
        key_type: number(nfta::SET_KEY_TYPE).unwrap_or(0),
        key_len: number(nfta::SET_KEY_LEN)?,
        data_type: number(nfta::SET_DATA_TYPE).unwrap_or(0),
        data_len: number(nfta::SET_DATA_LEN).unwrap_or(0),
    };
    Some((wire::text(wire::find(&attrs, nfta::SET_NAME)?), shape))
}

fn elements(channel: &mut Channel, table: &str, set: &str) -> Result<Option<Vec<Key>>, NftError> {
    let filter = [Attr::text(nfta::ELEMS_TABLE, table), Attr::text(nfta::ELEMS_SET, set)];
    let Some(answers) = channel.dump(msg::GETSETELEM, NFPROTO_INET, &filter, "elements")? else {
        return Ok(None);
    };
    let mut keys = Vec::new();
    for answer in &answers {
        keys.extend(parse_elements(&answer.attrs).ok_or(NftError::Malformed { what: "elements of a set" })?);
    }
    keys.sort_unstable();
    Ok(Some(keys))
}

fn parse_elements(attrs: &[u8]) -> Option<Vec<Key>> {
    let attrs = wire::parse(attrs)?;
    let mut keys = Vec::new();
    for (_, element) in wire::parse(wire::find(&attrs, nfta::ELEMS_LIST).unwrap_or_default())? {
        let element = wire::parse(element)?;
        let key = wire::parse(wire::find(&element, nfta::ELEM_KEY)?)?;
        let flags = wire::find(&element, nfta::ELEM_FLAGS).and_then(wire::be32).unwrap_or(0);
        let mut bytes = wire::find(&key, nfta::DATA_VALUE)?.to_vec();
        if let Some(data) = wire::find(&element, nfta::ELEM_DATA) {
            bytes.extend(wire::find(&wire::parse(data)?, nfta::DATA_VALUE)?);
        }
        keys.push((bytes, flags & 1 != 0));
    }
    Some(keys)
}
