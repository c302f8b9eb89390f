//! Firewall and host environment, once per turn: puts them right where that is allowed and says what it found.

use std::collections::BTreeSet;

use ipnet::IpNet;
use mesh_core::host::HostTraffic;
use mesh_core::numbers::{POD_VETH_PREFIX, SLOT_PORTS};
use mesh_core::plan::{self, Desired};
use mesh_core::prefix::Family;
use mesh_core::slot::Slot;

use crate::config::{Config, DataPath};
use crate::host::{Host, HostFinding, HostFix, HostWant, Severity, judge};
use crate::kernel::Kernel;
use crate::metrics::Metrics;
use crate::nft::model::{Chain, Rule, Table};
use crate::nft::{Difference, HostGuard, Nft, NftInput, counter, diff, ruleset};

/// Holds the firewall's connection.
#[derive(Debug)]
pub struct Guard {
    nft: Option<Nft>,
    counted: std::collections::BTreeMap<String, u64>,
    /// They are those of the last turn.
    counters_read: bool,
    was_right: bool,
    generation: Option<u32>,
    // What was in force after the last turn: if that was different from it now, somebody else changed it.
    ensured: Option<Table>,
}

/// What one turn found.
#[derive(Clone, Debug, Default)]
pub struct Turn {
    /// The firewall is in force: what carries may be set up.
    pub closed: bool,
    /// It is exactly as wanted; else the next turn comes soon.
    pub firewall: bool,
    /// Code and sentence of each finding.
    pub findings: Vec<(String, String)>,
    /// Findings without whose remedy no pod can be connected.
    pub obstacles: Vec<String>,
    /// Why there is no data path.
    pub no_data_path: Option<String>,
}

impl Default for Guard {
    fn default() -> Self {
        Self::new()
    }
}

impl Guard {
    /// Nothing is touched yet.
    pub fn new() -> Self {
        Self {
            nft: Some(Nft::new()),
            counted: std::collections::BTreeMap::new(),
            counters_read: false,
            was_right: false,
            generation: None,
            ensured: None,
        }
    }

    /// Puts the firewall and the host right.
    pub async fn turn(
        &mut self,
        config: &Config,
        desired: &Desired,
        synced: bool,
        metrics: &Metrics,
    ) -> Turn {
        let input = nft_input(config, desired);
        let mut turn = Turn::default();
        for conflict in crate::nft::conflicts(&input) {
            turn.findings.push(("node-address-guarded".to_owned(), conflict.to_string()));
        }
        // The handle goes to a blocking thread and comes back; should that thread panic, a new one is as good.
        let mut nft = self.nft.take().unwrap_or_default();
        let table = ruleset(&input);
        // Before the first snapshot nothing was made exactly so.
        let wanted = synced.then(|| table.clone());
        let work = move || {
            let result = if synced { nft.ensure(&table) } else { keep_or_make(&mut nft, &table) };
            let counters = nft.counters();
            (nft, result, counters)
        };
        match tokio::task::spawn_blocking(work).await {
            Ok((nft, result, counters)) => {
                self.nft = Some(nft);
                self.judge(result, wanted, metrics, &mut turn);
                self.counters_read = counters.is_ok();
                match counters {
                    Ok(counters) => self.count(counters, metrics),
                    Err(error) => tracing::warn!(err = %error, "Could not read the firewall's counters"),
                }
            }
            Err(error) => turn.obstacles.push(format!("the firewall could not be set: {error}")),
        }
        self.host(config, desired, &mut turn).await;
        turn
    }

    fn judge(
        &mut self,
        result: Result<Vec<Difference>, crate::nft::NftError>,
        wanted: Option<Table>,
        metrics: &Metrics,
        turn: &mut Turn,
    ) {
        match result {
            Ok(differences) => {
                (turn.closed, turn.firewall) = (true, true);
                if !differences.is_empty() && self.was_right {
                    let what: Vec<String> = differences.iter().map(ToString::to_string).collect();
                    if wanted.is_some() && self.ensured == wanted {
                        tracing::warn!(differences = what.join("; "), "Repaired the nf_tables table");
                        metrics.firewall_repaired();
                    } else {
                        tracing::info!(differences = what.join("; "), "Replaced the nf_tables table");
                    }
                }
                self.was_right |= wanted.is_some();
                self.ensured = wanted;
            }
            Err(error) => {
                metrics.operation("firewall", false, true);
                tracing::error!(err = %error, "Could not set the nf_tables table");
                // Nobody knows whether the table is still there, so nothing that carries is set up until it is.
                turn.findings
                    .push(("firewall-refused".to_owned(), format!("nf_tables table inet hawser: {error}")));
                if !self.was_right {
                    turn.obstacles.push(format!("the firewall is not in force: {error}"));
                }
            }
        }
    }

    /// What each rule has counted, as of the last turn; a former agent's counts included. Nothing where that turn could not read
    /// it: old numbers would look like new ones.
    pub fn counted(&self) -> std::collections::BTreeMap<String, u64> {
        if self.counters_read { self.counted.clone() } else { std::collections::BTreeMap::new() }
    }

    /// Has anybody changed nf_tables since the last turn? Unknown is no.
    pub async fn changed_by_others(&mut self) -> bool {
        let seen = tokio::task::spawn_blocking(crate::nft::generation).await;
        let Ok(Ok(generation)) = seen else { return false };
        self.generation.replace(generation).is_some_and(|before| before != generation)
    }

    /// Sets what may be set, and reports the rest.
    async fn host(&self, config: &Config, desired: &Desired, turn: &mut Turn) {
        let own = &desired.own_pod_cidrs;
        let on = config.settings.host_traffic.on;
        let want = HostWant {
            slots: Slot::ALL.map(|slot| slot.device().to_owned()),
            pod_veth_prefix: POD_VETH_PREFIX.to_owned(),
            tunnel_ports: SLOT_PORTS,
            ipv4: own.iter().any(|cidr| cidr.addr().is_ipv4()),
            ipv6: own.iter().any(|cidr| cidr.addr().is_ipv6()),
            ipv6_guarded: config.settings.pod_cidrs.iter().any(|cidr| cidr.addr().is_ipv6()),
            loose: desired.own_node_ips.iter().copied().filter(|_| on).collect(),
        };
        let state_dir = config.state_dir.clone();
        let work = move || {
            let host = Host::default();
            let facts = host.observe(&want)?;
            let (fixes, findings) = judge(&facts, &want);
            crate::host::before::remember(&state_dir, &facts, &want, &fixes);
            let failed: Vec<String> = fixes.iter().filter_map(|fix| set(&host, fix)).collect();
            Ok((findings, failed))
        };
        let result: Result<Judged, _> = tokio::task::spawn_blocking(work).await;
        match result {
            Ok(Ok((findings, failed))) => {
                for finding in findings {
                    let text = finding.to_string();
                    if finding.severity == Severity::Error {
                        turn.obstacles.push(text.clone());
                    }
                    turn.findings.push((finding.code.to_owned(), text));
                }
                for text in failed {
                    turn.obstacles.push(text.clone());
                    turn.findings.push(("setting-refused".to_owned(), text));
                }
            }
            Ok(Err(error)) => turn.findings.push(("host-unreadable".to_owned(), error.to_string())),
            Err(error) => turn.findings.push(("host-unreadable".to_owned(), error.to_string())),
        }
    }

    fn count(
        &mut self,
        counters: std::collections::BTreeMap<String, crate::nft::Counter>,
        metrics: &Metrics,
    ) {
        for (name, counter) in counters {
            let before = self.counted.insert(name.clone(), counter.packets).unwrap_or(0);
            metrics.firewall(&name, counter.packets.saturating_sub(before));
        }
    }
}

/// Findings, and the settings that could not be made.
type Judged = Result<(Vec<HostFinding>, Vec<String>), crate::host::HostError>;

/// Sets one thing; the error's text if it could not be.
fn set(host: &Host, fix: &HostFix) -> Option<String> {
    match host.apply(fix) {
        Ok(()) => {
            tracing::info!(fix = %fix, "Set up the host");
            None
        }
        Err(error) => Some(error.to_string()),
    }
}

/// Of what is guarded, what a kernel can have. One without IPv6 refuses such routes, and no packet of that family comes or leaves
/// there: an agent that insisted would guard nothing at all.
pub fn possible(mut guarded: Vec<IpNet>, has_ipv6: bool) -> Vec<IpNet> {
    guarded.retain(|cidr| has_ipv6 || cidr.addr().is_ipv4());
    guarded
}

/// Routes and rules that are in force before anybody is asked for anything.
fn first(
    guarded: &[IpNet],
    host_traffic: &HostTraffic,
    has_ipv6: bool,
) -> (BTreeSet<plan::Route>, BTreeSet<plan::Rule>) {
    let (routes, mut rules) = plan::closing(guarded);
    rules.extend(mesh_core::host::exemptions(host_traffic));
    rules.retain(|rule| has_ipv6 || rule.family == Family::V4);
    (routes, rules)
}

/// Puts in force what refuses, from files alone and before anybody is asked for anything: from the boot of a node on, nothing
/// of a pod finds the uplink. `guarded` are the cluster's pod CIDRs, and those of clusters that were joined to it when this
/// node last heard of them; what is [`possible`] of them.
///
/// # Errors
/// The kernel refused a route, a rule or the table.
pub async fn close(
    config: &Config,
    guarded: &[IpNet],
    has_ipv6: bool,
    kernel: &Kernel,
) -> anyhow::Result<()> {
    let (routes, rules) = first(guarded, &config.settings.host_traffic, has_ipv6);
    for route in &routes {
        kernel.put_route(route).await?;
    }
    for rule in &rules {
        kernel.put_rule(rule).await?;
    }
    let input = NftInput {
        guarded: guarded.to_vec(),
        own_pod_cidrs: Vec::new(),
        own_node_ips: Vec::new(),
        peer_node_ips: Vec::new(),
        mesh: Vec::new(),
        non_masquerade: config.settings.non_masquerade.clone(),
        service_cidrs: config.settings.service_cidrs.clone(),
        translates: config.data_path == DataPath::Enforce,
        slots: Slot::ALL.map(|slot| slot.device().to_owned()),
        pod_veth_prefix: POD_VETH_PREFIX.to_owned(),
        tunnel_ports: SLOT_PORTS,
        hosts: HostGuard::default(),
    };
    tokio::task::spawn_blocking(move || keep_or_make(&mut Nft::new(), &ruleset(&input))).await??;
    Ok(())
}

/// Before the first snapshot a table of our former life knows more than we do; a dormant or empty one knows nothing. One with other
/// exemptions than the configuration has would keep this node from an API server that is one of them now.
fn keep_or_make(nft: &mut Nft, table: &Table) -> Result<Vec<Difference>, crate::nft::NftError> {
    let observed = nft.observe()?;
    match &observed.table {
        Some(kept)
            if kept.flags == 0
                && !kept.chains.is_empty()
                && !exempts_others(table, &diff(table, &observed)?) =>
        {
            Ok(Vec::new())
        }
        Some(_) | None => nft.ensure(table),
    }
}

/// Does a chain in the kernel differ from this table's in what it exempts, which stands first?
fn exempts_others(table: &Table, differences: &[Difference]) -> bool {
    let exempt = |rule: &&Rule| rule.comment == counter::HOST_EXEMPT;
    let count = |chain: &Chain| chain.rules.iter().take_while(exempt).count();
    let among = |name: &str, index: usize| {
        table.chains.iter().any(|chain| chain.name == name && index < count(chain))
    };
    differences
        .iter()
        .any(|difference| matches!(difference, Difference::Rules(chain, index) if among(chain, *index)))
}

/// What firewall and data path guard.
pub(crate) fn nft_input(config: &Config, desired: &Desired) -> NftInput {
    NftInput {
        guarded: desired.guarded.clone(),
        own_pod_cidrs: desired.own_pod_cidrs.clone(),
        own_node_ips: desired.own_node_ips.iter().copied().collect(),
        peer_node_ips: desired.peer_node_ips.iter().copied().collect(),
        mesh: desired.mesh.iter().copied().collect(),
        non_masquerade: config.settings.non_masquerade.clone(),
        service_cidrs: desired.service_cidrs.clone(),
        translates: config.data_path == DataPath::Enforce,
        slots: Slot::ALL.map(|slot| slot.device().to_owned()),
        pod_veth_prefix: POD_VETH_PREFIX.to_owned(),
        tunnel_ports: SLOT_PORTS,
        hosts: HostGuard {
            closed: desired.closed_hosts.iter().copied().collect(),
            sources: desired.host_sources.iter().copied().collect(),
            require: config.settings.host_traffic.require,
            exempt_tcp: config.settings.host_traffic.exempt_tcp.clone(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_without_ipv6_closes_what_it_can_have_of_both_families() {
        let host_traffic = HostTraffic { on: true, exempt_tcp: [6443].into(), ..HostTraffic::default() };
        let both: Vec<IpNet> =
            ["10.1.0.0/16", "fd01::/48"].iter().map(|cidr| cidr.parse().unwrap()).collect();
        let closed = |has_ipv6| first(&possible(both.clone(), has_ipv6), &host_traffic, has_ipv6);
        let (all_routes, all_rules) = closed(true);
        let (routes, rules) = closed(false);
        // In the pods' table and in main, for each family.
        assert_eq!((all_routes.len(), routes.len()), (4, 2));
        assert!(routes.iter().all(|route| route.prefix == both[0]) && routes.is_subset(&all_routes));
        let of_four: BTreeSet<plan::Rule> =
            all_rules.iter().filter(|rule| rule.family == Family::V4).cloned().collect();
        assert_eq!(rules, of_four);
        assert!(all_rules.iter().any(|rule| rule.family == Family::V6));
    }
}
