//! Base chains of others that drop by default, and the rules that let pods through them.

use crate::nft::model::{Direction, InterfaceName, Is, Match, Rule, Verdict};
use crate::nft::{
    Channel, ListedChain, Message, NETLINK_NETFILTER, NFPROTO_INET, NFPROTO_IPV4, NFPROTO_IPV6, NftError,
    Object, ObservedRule, TABLE, chains, expressions, flag, msg, rule_message, rules, same_expressions,
    steady, wire,
};

/// Where a foreign chain stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ChainHook {
    /// What is forwarded.
    Forward,
    /// What is for the node itself.
    Input,
}

/// How a foreign chain drops what it does not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum DropsBy {
    /// Its policy is drop.
    Policy,
    /// Its last rule drops or rejects everything.
    LastRule,
}

/// A base chain of somebody else that drops what it does not know, at a hook that our packets pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForeignChain {
    /// `NFPROTO_*`: `inet`, `ip` or `ip6`.
    pub family: u8,
    /// Its table.
    pub table: String,
    /// Its name.
    pub chain: String,
    /// Its hook.
    pub hook: ChainHook,
    /// How it drops.
    pub drops: DropsBy,
    /// Whether it has a rule that accepts everything from pods.
    pub accepts_from_pods: bool,
    /// Whether it has a rule that accepts everything to pods.
    pub accepts_to_pods: bool,
}

impl ForeignChain {
    /// As `nft` names it: family, table, chain.
    #[must_use]
    pub fn name(&self) -> String {
        chain_name(self.family, &self.table, &self.chain)
    }
}

fn chain_name(family: u8, table: &str, chain: &str) -> String {
    let family = match family {
        NFPROTO_IPV4 => "ip",
        NFPROTO_IPV6 => "ip6",
        _ => "inet",
    };
    format!("{family} {table} {chain}")
}

/// A rule that we put into a chain of somebody else.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct AcceptRule {
    /// `NFPROTO_*`: `inet`, `ip` or `ip6`.
    family: u8,
    table: String,
    chain: String,
    /// The kernel's number of it in the table.
    handle: u64,
}

impl std::fmt::Display for AcceptRule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let chain = chain_name(self.family, &self.table, &self.chain);
        write!(f, "nf_tables rule {chain} handle {} ({COMMENT})", self.handle)
    }
}

/// Comment of the rules that we put into chains of others.
const COMMENT: &str = "hawser: pods";

/// Accepts what comes from, or goes to, a pod's veth, in words that iptables-nft can list.
fn accept(direction: Direction, veth_prefix: &str) -> Rule {
    Rule {
        matches: vec![Match::Interface(direction, Is::Yes, InterfaceName::Prefix(veth_prefix.to_owned()))],
        verdict: Verdict::Accept,
        counter: true,
        comment: COMMENT.to_owned(),
    }
}

/// Chains of the families `ip`, `ip6` and `inet`, but for our own, that drop by default.
pub(crate) fn observe(veth_prefix: &str) -> Result<Vec<ForeignChain>, NftError> {
    let mut channel = Channel::open(NETLINK_NETFILTER)?;
    steady(&mut channel, |channel| {
        let Some(all) = chains(channel, 0)? else { return Ok(None) };
        let mut found = Vec::new();
        for listed in all {
            let Some((hook, policy_drops)) = relevant(&listed) else { continue };
            let Some(rules) = rules(channel, listed.family, &listed.table, Some(&listed.name))? else {
                return Ok(None);
            };
            let rules: Vec<_> = rules.into_iter().map(|(_, rule)| rule).collect();
            let drops = match (policy_drops, rules.last()) {
                (true, _) => DropsBy::Policy,
                (false, Some(last)) if drops_everything(last) => DropsBy::LastRule,
                (false, _) => continue,
            };
            let has = |direction| -> Result<bool, NftError> {
                let wanted = expressions(&accept(direction, veth_prefix), &[], &Object::Transaction)?;
                Ok(rules.iter().any(|rule| same_expressions(&rule.expressions, &wanted)))
            };
            found.push(ForeignChain {
                family: listed.family,
                hook,
                drops,
                accepts_from_pods: has(Direction::In)?,
                accepts_to_pods: has(Direction::Out)?,
                table: listed.table,
                chain: listed.name,
            });
        }
        Ok(Some(found))
    })
}

/// Rules in chains of others that are ours: with our comment, and exactly what [`let_pods_through`] puts there.
pub(crate) fn ours(veth_prefix: &str) -> Result<Vec<AcceptRule>, NftError> {
    let wanted = [Direction::In, Direction::Out]
        .map(|direction| expressions(&accept(direction, veth_prefix), &[], &Object::Transaction));
    let wanted = wanted.into_iter().collect::<Result<Vec<_>, _>>()?;
    let is_ours = |rule: &ObservedRule| {
        rule.comment.as_deref() == Some(COMMENT)
            && wanted.iter().any(|wanted| same_expressions(&rule.expressions, wanted))
    };
    let mut channel = Channel::open(NETLINK_NETFILTER)?;
    steady(&mut channel, |channel| {
        let Some(all) = chains(channel, 0)? else { return Ok(None) };
        let mut found = Vec::new();
        for listed in all.into_iter().filter(|listed| relevant(listed).is_some()) {
            let Some(rules) = rules(channel, listed.family, &listed.table, Some(&listed.name))? else {
                return Ok(None);
            };
            let handles = rules.iter().filter(|(_, rule)| is_ours(rule)).filter_map(|(_, rule)| rule.handle);
            found.extend(handles.map(|handle| AcceptRule {
                family: listed.family,
                table: listed.table.clone(),
                chain: listed.name.clone(),
                handle,
            }));
        }
        Ok(Some(found))
    })
}

/// Takes such a rule out of its chain.
pub(crate) fn remove(rule: &AcceptRule) -> Result<(), NftError> {
    use wire::{Attr, nfta};
    let object = Object::Rule {
        table: rule.table.clone(),
        chain: rule.chain.clone(),
        index: 0,
        comment: COMMENT.to_owned(),
    };
    let attrs = vec![
        Attr::text(nfta::RULE_TABLE, &rule.table),
        Attr::text(nfta::RULE_CHAIN, &rule.chain),
        Attr::be64(nfta::RULE_HANDLE, rule.handle),
    ];
    let delete = Message { kind: msg::DELRULE, flags: 0, family: rule.family, attrs, object };
    Channel::open(NETLINK_NETFILTER)?.transact(&[delete])
}

/// Hook, and whether the policy is drop.
fn relevant(listed: &ListedChain) -> Option<(ChainHook, bool)> {
    const NF_INET_LOCAL_IN: u32 = 1;
    const NF_INET_FORWARD: u32 = 2;
    const NF_DROP: u32 = 0;
    let own = listed.family == NFPROTO_INET && listed.table == TABLE;
    if own || !matches!(listed.family, NFPROTO_INET | NFPROTO_IPV4 | NFPROTO_IPV6) {
        return None;
    }
    let (hook, _, kind, policy) = listed.base.as_ref()?;
    let hook = match *hook {
        NF_INET_FORWARD => ChainHook::Forward,
        NF_INET_LOCAL_IN => ChainHook::Input,
        _ => return None,
    };
    (kind == "filter").then_some((hook, *policy == NF_DROP))
}

/// A rule without a condition that drops or rejects (`reject`, or the target REJECT of iptables-nft).
fn drops_everything(rule: &ObservedRule) -> bool {
    let drop = expressions(
        &Rule { verdict: Verdict::Drop, counter: false, ..accept(Direction::In, "-") },
        &[],
        &Object::Transaction,
    );
    let mut acting = rule.expressions.iter().filter(|(name, _)| name != "counter");
    let (Some((name, data)), None, Ok(drop)) = (acting.next(), acting.next(), drop) else { return false };
    match name.as_str() {
        "reject" => true,
        "target" => wire::parse(data)
            .and_then(|attrs| wire::find(&attrs, NFTA_TARGET_NAME).map(wire::text))
            .is_some_and(|target| target == "REJECT" || target == "DROP"),
        "immediate" => drop.last().is_some_and(|wanted| {
            same_expressions(&[(name.clone(), data.clone())], std::slice::from_ref(wanted))
        }),
        _ => false,
    }
}

const NFTA_TARGET_NAME: u16 = 1;

/// Puts the missing rules of `chain` at its head, in one transaction.
pub(crate) fn let_pods_through(chain: &ForeignChain, veth_prefix: &str) -> Result<(), NftError> {
    let missing = [(Direction::In, chain.accepts_from_pods), (Direction::Out, chain.accepts_to_pods)];
    let mut messages = Vec::new();
    for (direction, _) in missing.into_iter().filter(|(_, has)| !has) {
        let rule = accept(direction, veth_prefix);
        let object = Object::Rule {
            table: chain.table.clone(),
            chain: chain.chain.clone(),
            index: 0,
            comment: COMMENT.to_owned(),
        };
        let expressions = expressions(&rule, &[], &object)?;
        // Without APPEND the kernel puts it first.
        messages.push(rule_message(&object, chain.family, &expressions, &rule, None, flag::CREATE));
    }
    Channel::open(NETLINK_NETFILTER)?.transact(&messages)
}
