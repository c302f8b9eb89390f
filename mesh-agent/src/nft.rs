//! nf_tables, spoken over netlink: one table `inet hawser` that translates sources and guards the uplinks.
//!
//! [`ruleset`] decides (pure), [`Nft`] does. The table is only ever replaced as a whole, in one transaction, so no packet
//! meets half a ruleset. Everything blocks for at most seconds: call it from a thread that may.

use std::collections::{BTreeMap, BTreeSet};

pub(crate) mod conntrack;
pub(crate) mod encode;
mod ledger;
pub mod model;
mod observe;
mod ports;
mod ruleset;
mod sets;
mod socket;
pub(crate) mod wire;

pub use encode::{EncodeError, Object};
pub use observe::{
    Counter, Difference, Key, Observed, ObservedChain, ObservedRule, ObservedSet, ObservedTable, diff, lacks,
};
pub use ruleset::{
    HostGuard, KUBE_MASQUERADE_MARK, NftInput, NodeAddressGuarded, TABLE, conflicts, counter, ruleset,
};
pub use sets::SetShape;
pub use socket::NftError;

pub(crate) use encode::{Message, expressions, rule_message};
pub(crate) use observe::{ListedChain, chains, rules, same_expressions, steady};
pub(crate) use socket::{Channel, parse_error};
pub(crate) use wire::{NETLINK_NETFILTER, NFPROTO_INET, NFPROTO_IPV4, NFPROTO_IPV6, flag, msg};

use ledger::Ledger;
use model::Table;

/// Number of the ruleset's present state: it grows with every transaction of anybody.
///
/// # Errors
/// Netlink failed.
pub fn generation() -> Result<u32, NftError> {
    Channel::open(NETLINK_NETFILTER)?.generation()
}

/// Names of all tables of the family `inet`.
///
/// # Errors
/// Netlink failed, or the ruleset changed during every attempt to read it.
pub fn tables() -> Result<BTreeSet<String>, NftError> {
    observe::tables(&mut Channel::open(NETLINK_NETFILTER)?)
}

/// Our table in the kernel, with the memory of its counters. Each call opens a socket of its own, in the network
/// namespace of the calling thread.
#[derive(Debug)]
pub struct Nft {
    table: String,
    ledger: Ledger,
}

impl Default for Nft {
    fn default() -> Self {
        Self::new()
    }
}

impl Nft {
    /// Of the table [`TABLE`]. Nothing is touched yet.
    #[must_use]
    pub fn new() -> Self {
        Self::of(TABLE)
    }

    /// Of the table `name`. Nothing is touched yet.
    #[must_use]
    pub fn of(name: &str) -> Self {
        Self { table: name.to_owned(), ledger: Ledger::default() }
    }

    /// What the kernel has.
    ///
    /// # Errors
    /// Netlink failed, or the ruleset changed during every attempt to read it.
    pub fn observe(&mut self) -> Result<Observed, NftError> {
        self.read(&mut Channel::open(NETLINK_NETFILTER)?)
    }

    /// Makes the kernel's table exactly `table`, in one transaction. Counters go on from where they were; what is
    /// counted in the instant between reading them and the transaction is lost.
    ///
    /// # Errors
    /// `table` has another name than this handle's, cannot be encoded, or the kernel refused it; then all is as before.
    /// After [`NftError::Timeout`] it is not known: observe again.
    pub fn apply(&mut self, table: &Table) -> Result<(), NftError> {
        debug_assert_eq!(table.name, self.table, "one handle, one table");
        // Encode before anything else: what cannot be sent shall not be half done.
        encode::replace(table, &BTreeMap::new())?;
        let mut channel = Channel::open(NETLINK_NETFILTER)?;
        self.read(&mut channel)?;
        channel.transact(&encode::replace(table, &self.ledger.totals())?)?;
        let rules = || table.chains.iter().flat_map(|chain| &chain.rules);
        self.ledger.seeded(|name| rules().any(|rule| rule.counter && rule.comment == name));
        Ok(())
    }

    /// Repairs the table if it is not exactly `table`, and says what was different (nothing: it was right).
    ///
    /// # Errors
    /// As [`Self::observe`] and [`Self::apply`].
    pub fn ensure(&mut self, table: &Table) -> Result<Vec<Difference>, NftError> {
        let differences = diff(table, &self.observe()?)?;
        if !differences.is_empty() {
            self.apply(table)?;
        }
        Ok(differences)
    }

    /// Sums by name ([`counter`]), which never shrink while this handle lives, and go on in the next agent as long as
    /// the table stays. A name appears with the first ruleset that has it.
    ///
    /// # Errors
    /// As [`Self::observe`].
    pub fn counters(&mut self) -> Result<BTreeMap<String, Counter>, NftError> {
        self.observe()?;
        Ok(self.totals())
    }

    /// As [`Self::counters`], of the last look.
    pub fn totals(&self) -> BTreeMap<String, Counter> {
        self.ledger.totals()
    }

    /// Removes the table. That it does not exist is no error.
    ///
    /// # Errors
    /// Netlink failed or the kernel refused.
    pub fn remove(&mut self) -> Result<(), NftError> {
        let mut channel = Channel::open(NETLINK_NETFILTER)?;
        self.read(&mut channel)?;
        channel.transact(&encode::remove(&self.table))?;
        self.ledger.seeded(|_| false);
        Ok(())
    }

    fn read(&mut self, channel: &mut Channel) -> Result<Observed, NftError> {
        let observed = observe::observe(channel, &self.table)?;
        self.ledger.read(&observe::sums(&observed));
        Ok(observed)
    }
}
