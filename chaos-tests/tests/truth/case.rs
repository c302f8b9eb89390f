//! Cases as data.

use std::collections::BTreeSet;
use std::net::IpAddr;

use anyhow::{Context, Result};
use mesh_core::policy::fixture::flows;
use mesh_core::policy::model::{PolicyFacts, Verdict};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::probe::{Known, Probe, What};
use crate::world::Objects;

/// One sentence about policy, and how to see whether it is true.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Case {
    /// The sentence.
    pub(crate) name: String,
    /// Rows of the table of corner cases (`standards.md` §2.2); none: a sentence about ClusterNetworkPolicy (§3), or about
    /// malformed objects.
    #[serde(default)]
    pub(crate) rows: Vec<u32>,
    /// It is among those for every day.
    #[serde(default)]
    pub(crate) short: bool,
    /// What is asked between all pods, besides [`ALWAYS`] and what the lines say.
    #[serde(default)]
    pub(crate) ask: Option<String>,
    /// One after the other; of each everything is asked.
    pub(crate) steps: Vec<Step>,
    /// Verdicts by hand are about addresses: what a pod's own node says from one of its own is no matter.
    #[serde(skip)]
    pub(crate) by_address: bool,
}

/// A change, and what is true then.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Step {
    /// What the step is; for people.
    #[serde(default)]
    pub(crate) says: String,
    /// Created or changed, as [`Objects::apply`] says. A pod that is not there is connected.
    #[serde(default)]
    pub(crate) objects: Vec<Value>,
    /// Pods that are told to end, and have not ended, as `x/a`.
    #[serde(default)]
    pub(crate) terminate: Vec<String>,
    /// Deleted, as `Kind namespace/name`. A pod is disconnected.
    #[serde(default)]
    pub(crate) delete: Vec<String>,
    /// Verdicts by hand, as [`flows`] reads them.
    #[serde(default)]
    pub(crate) flows: String,
}

/// What is asked of every pair of pods in every case.
pub(crate) const ALWAYS: &str = "TCP/80,UDP/80,SCTP/80,ICMP";
/// And between pods and what is none.
const BEYOND: &str = "TCP/80,ICMP";

/// A list of anything in YAML 1.2: YAML 1.1 takes `y`, which is a name here, for true.
pub(crate) fn read<T: DeserializeOwned>(text: &str) -> Result<Vec<T>> {
    let options = serde_saphyr::options! { strict_booleans: true };
    Ok(serde_saphyr::from_str_with_options(text, options)?)
}

impl Case {
    /// Everything that is asked between all pods.
    pub(crate) fn asks(&self) -> Result<BTreeSet<What>> {
        let mut asks: BTreeSet<What> = What::read_all(ALWAYS)?.into_iter().collect();
        asks.extend(self.ask.as_deref().map(What::read_all).transpose()?.into_iter().flatten());
        Ok(asks)
    }

    /// Ports that somebody has to answer on.
    pub(crate) fn ports(&self) -> Result<BTreeSet<What>> {
        let mut all = self.asks()?;
        all.extend(What::read_all(BEYOND)?);
        for line in self.steps.iter().flat_map(|step| step.flows.lines()) {
            let what = line.split_whitespace().nth(3).with_context(|| format!("{line:?} asks nothing"))?;
            all.extend(What::read_all(what)?.into_iter().filter(|what| !matches!(what, What::Tcp(0))));
        }
        for service in
            self.steps.iter().flat_map(|step| &step.objects).filter(|o| o["kind"] == "EndpointSlice")
        {
            for port in service["ports"].as_array().into_iter().flatten() {
                let number = port["port"].as_u64().and_then(|number| number.try_into().ok());
                let what =
                    number.and_then(|number| What::of(port["protocol"].as_str().unwrap_or("TCP"), number));
                all.insert(what.context("a slice's port")?);
            }
        }
        Ok(all)
    }
}

impl Step {
    /// What its lines say, as far as somebody is there to ask and to answer.
    pub(crate) fn by_hand(
        &self,
        known: &Known<'_>,
        world: &[IpAddr],
    ) -> Result<Vec<(String, Probe, Verdict)>> {
        let mut all = Vec::new();
        for line in self.flows.lines() {
            for (flow, verdict) in flows(known.facts, line)? {
                let Some(what) = What::of_flow(&flow) else { continue };
                let probe = Probe { source: flow.source, to: flow.destination, what };
                // A flow without ports looks the same from both ends, so it is asked from one alone.
                if matches!(what, What::Other(_)) && probe.source < probe.to {
                    continue;
                }
                if known.can_be_asked(&probe, world) {
                    all.push((line.to_owned(), probe, verdict));
                }
            }
        }
        Ok(all)
    }
}

impl Known<'_> {
    fn can_be_asked(&self, probe: &Probe, world: &[IpAddr]) -> bool {
        let there = self.places.contains_key(&probe.to)
            || self.services.contains_key(&(probe.to, probe.what))
            || world.contains(&probe.to);
        there && self.places.contains_key(&probe.source)
    }

    /// All pairs of pods, every pod and every node, every pod and the world, every pod and every Service, in both families.
    pub(crate) fn matrix(&self, asks: &BTreeSet<What>, world: &[IpAddr]) -> Result<BTreeSet<Probe>> {
        let pods = || self.places.iter().filter(|(_, place)| place.pod).map(|(ip, _)| *ip);
        let beyond = What::read_all(BEYOND)?;
        let mut all = BTreeSet::new();
        let mut ask = |source: IpAddr, to: IpAddr, asks: &mut dyn Iterator<Item = What>| {
            if source.is_ipv4() == to.is_ipv4() {
                all.extend(asks.map(|what| Probe { source, to, what }));
            }
        };
        for source in pods() {
            for to in pods() {
                ask(source, to, &mut asks.iter().copied());
            }
            for to in self.nodes(false).chain(world.iter().copied()) {
                ask(source, to, &mut beyond.iter().copied());
            }
            for node in self.nodes(true) {
                ask(node, source, &mut beyond.iter().copied());
            }
            // Row 32: whether policy keeps a pod from itself by its Service is nowhere said.
            for ((to, what), _) in self.services.iter().filter(|(_, backend)| backend.ip() != source) {
                ask(source, *to, &mut std::iter::once(*what));
            }
        }
        Ok(all)
    }

    /// Addresses of nodes: those that they speak to pods from (in the mesh), or those that they are known by.
    fn nodes(&self, mesh: bool) -> impl Iterator<Item = IpAddr> + '_ {
        let guarded = move |ip: &IpAddr| self.facts.guarded.iter().any(|cidr| cidr.contains(ip));
        let nodes = self.places.iter().filter(|(_, place)| !place.pod).map(|(ip, _)| *ip);
        nodes.filter(move |ip| guarded(ip) == mesh)
    }
}

/// The oracle and a hand about one probe.
pub(crate) fn hand_agrees(case: &Case, known: &Known<'_>, probe: &Probe, verdict: Verdict) -> bool {
    let expected = known.expected(probe);
    (case.by_address && expected.host) || expected.allowed == (verdict == Verdict::Allow)
}

/// Facts and who is where, of one moment.
#[derive(Debug)]
pub(crate) struct Moment {
    pub(crate) facts: PolicyFacts,
    pub(crate) places: std::collections::BTreeMap<IpAddr, crate::world::Place>,
    pub(crate) services: std::collections::BTreeMap<(IpAddr, What), std::net::SocketAddr>,
}

impl Moment {
    pub(crate) fn of(objects: &Objects) -> Result<Self> {
        Ok(Self { facts: objects.facts()?, places: objects.parties(), services: objects.services()? })
    }

    pub(crate) fn known(&self) -> Known<'_> {
        Known { facts: &self.facts, places: &self.places, services: &self.services }
    }
}
