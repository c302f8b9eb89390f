//! `hawser policy explain`: which rule of which object decides about a flow, on both sides. The API's objects are read as
//! agents read them ([`facts`]); `mesh_core::policy` decides, by the compiler that agents use and by the oracle, and nothing is
//! said where the two do not agree.

use std::collections::BTreeSet;
use std::io::Write;
use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use ipnet::IpNet;
use kube::api::ApiResource;
use mesh_core::policy::compile::Compiler;
use mesh_core::policy::eval::eval_pod;
use mesh_core::policy::explain::Explanation;
use mesh_core::policy::model::{Direction, Flow, ObjectName, Verdict as PolicyVerdict};
use mesh_core::psk::ClusterName;
use serde::Serialize;

use crate::agents::{AgentArgs, AgentError, Targets};
use crate::api::{Access, ApiError, Cluster};
use crate::output::{self, Form, Verdict, line, section};

pub mod clusters;
pub mod enforcement;
pub mod facts;
mod party;

use clusters::Worlds;
use enforcement::Enforcement;
use facts::World;
pub use party::{End, EndError, Party, PartyError, Transport, TransportError};

/// What the document is, and its version: another one where a field changes its meaning or goes.
pub const FORMAT: &str = "hawser.dev/policy-explanation/v1";
/// What to do with policy.
#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    /// Which rule of which object decides about a flow, at its source and at its destination.
    Explain(ExplainArgs),
}

/// Which flow.
#[derive(Args, Debug)]
#[command(
    after_help = "Ask for what policy sees: for a Service one of its pods, since policy is judged on the real backend. Each end is judged by the policies of its own cluster: of a joined one they are read with --remote-context. Whether they are in force is asked of the agents of both ends' nodes: what nothing enforces denies nothing.\n\nExit codes: 0 it may pass; 1 it could not be explained; 2 the command line is wrong; 3 it is denied; 4 it may pass as far as is known, and what is not known is named."
)]
pub struct ExplainArgs {
    /// Who opens it; of a joined cluster with @CLUSTER behind it.
    #[arg(value_name = "NAMESPACE/POD|node:NAME|ADDRESS")]
    from: End,
    /// To whom.
    #[arg(value_name = "NAMESPACE/POD|node:NAME|ADDRESS")]
    to: End,
    /// The destination's port.
    #[arg(short, long, value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
    /// The protocol: tcp, udp, sctp, icmp (of the family of the addresses), or a number of IANA's.
    #[arg(long, default_value = "tcp")]
    protocol: Transport,
    /// A pod CIDR of the cluster; without any an agent is asked for its configuration.
    #[arg(long, value_name = "CIDR")]
    pod_cidr: Vec<IpNet>,
    /// A kubeconfig of a joined cluster, for flows from it or to it.
    #[arg(long, value_name = "FILE")]
    remote_kubeconfig: Option<PathBuf>,
    /// A context of it; without --remote-kubeconfig of the same kubeconfig as the first cluster's.
    #[arg(long, value_name = "NAME")]
    remote_context: Option<String>,
    #[command(flatten)]
    access: Access,
    #[command(flatten)]
    agents: AgentArgs,
    /// Form of the output.
    #[arg(short, long, value_enum, default_value_t)]
    output: Form,
}

/// Why there is no explanation.
#[derive(Debug, thiserror::Error)]
pub enum ExplainError {
    /// The API gives nothing.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// An agent's address cannot be used.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// A port is missing.
    #[error("{0} has ports: give --port")]
    NoPort(&'static str),
    /// A port that there cannot be.
    #[error("the protocol has no ports: leave --port away")]
    Portless,
    /// There is no such pod.
    #[error("there is no pod {namespace}/{name}; `kubectl get pods -n {namespace}` has their names", namespace = .0.namespace, name = .0.name)]
    NoPod(ObjectName),
    /// There is no such node.
    #[error("there is no node {0}, or it has no InternalIP; `kubectl get nodes -o wide` has them")]
    NoNode(String),
    /// The pod has no address.
    #[error(
        "pod {namespace}/{name} has no address (annotation hawser.dev/ips): it is not connected yet, or has ended",
        namespace = .0.namespace, name = .0.name
    )]
    NoAddress(ObjectName),
    /// Not a backend.
    #[error(
        "{address} is an address of Service {service}: policy is judged on the backend that is chosen; ask for one of its pods"
    )]
    Service {
        /// The address.
        address: IpAddr,
        /// Namespace and name.
        service: String,
    },
    /// Not a backend, either.
    #[error(
        "port {port} of {address} is a node port of Service {service}: policy is judged on the backend that is chosen; ask for one of its pods"
    )]
    NodePort {
        /// The node's address.
        address: IpAddr,
        /// The port.
        port: u16,
        /// Namespace and name.
        service: String,
    },
    /// Nothing in common.
    #[error("{from} and {to} have no address of one family")]
    Families {
        /// One end.
        from: String,
        /// The other.
        to: String,
    },
    /// Of the other cluster.
    #[error("the joined cluster: {0}")]
    Remote(Box<ExplainError>),
    /// A cluster that was not read.
    #[error(
        "{end}: the policies of cluster {cluster} were not read ({known}); give --remote-context NAME or --remote-kubeconfig FILE of it"
    )]
    NoCluster {
        /// What was asked for.
        end: String,
        /// Its cluster.
        cluster: ClusterName,
        /// Which were.
        known: String,
    },
    /// Its name cannot be known.
    #[error(
        "the name of the cluster is not known, since none of its agents answers ({0}); see `hawser doctor`"
    )]
    NoName(String),
    /// Twice the same.
    #[error(
        "both kubeconfigs lead to clusters called {0}: --remote-context and --remote-kubeconfig are for another, joined one"
    )]
    SameCluster(ClusterName),
    /// They do not know each other.
    #[error(
        "cluster {cluster} has no ClusterPeer {other} with pod CIDRs: its nodes know no way there, and its policies find no pod there; `hawser clustermesh join` joins them"
    )]
    NotJoined {
        /// One.
        cluster: ClusterName,
        /// The other.
        other: ClusterName,
    },
    /// A fault of ours.
    #[error(
        "compiler and oracle do not agree about {0}: this is a fault of Hawser; please report it with the policies of both namespaces"
    )]
    Disagreement(String),
    /// The output cannot be written.
    #[error("could not write: {0}")]
    Output(#[from] std::io::Error),
}

/// What decides about a flow.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explained {
    /// [`FORMAT`].
    pub format: &'static str,
    /// Who opens it.
    pub from: String,
    /// To whom.
    pub to: String,
    /// May it pass, in all families that both ends have?
    pub verdict: Verdict,
    /// By family.
    pub flows: Vec<ExplainedFlow>,
    /// What is not known, and what follows.
    pub doubts: Vec<String>,
}

/// A flow in one family.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ExplainedFlow {
    /// The flow.
    pub flow: Flow,
    /// It may pass.
    pub passes: bool,
    /// What the source's policy says; none: it has none, since it is no pod.
    pub egress: Option<ExplainedSide>,
    /// What the destination's says.
    pub ingress: Option<ExplainedSide>,
}

/// What one side says.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ExplainedSide {
    /// It lets the flow pass, be it only since its namespace is audited, its own node asks or nothing enforces it.
    pub passes: bool,
    /// In words.
    pub text: String,
    /// Whether that is in force on the pod's node; none: nobody was asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enforcement: Option<Enforcement>,
    /// The verdict and its reason.
    #[serde(flatten)]
    pub explanation: Explanation,
}

impl ExplainedSide {
    /// It denies the flow, but for what lets it pass all the same.
    fn denies(&self) -> bool {
        self.explanation.verdict == PolicyVerdict::Deny && !self.explanation.audit
    }
}

/// Runs the command; its exit code.
///
/// # Errors
/// See [`ExplainError`].
pub async fn explain(args: &ExplainArgs, out: &mut (dyn Write + Send)) -> Result<u8, ExplainError> {
    match (args.protocol, args.port) {
        (Transport::Ports(protocol), None) => return Err(ExplainError::NoPort(protocol.name())),
        (Transport::Icmp | Transport::Number(_), Some(_)) => return Err(ExplainError::Portless),
        (Transport::Ports(_), Some(_)) | (Transport::Icmp | Transport::Number(_), None) => {}
    }
    let remote = clusters::remote(args);
    let (here, agents_here) =
        clusters::read(&args.access, args, &args.agents.agents, &args.pod_cidr, remote.is_some()).await?;
    let (there, agents_there) = match &remote {
        None => (None, Targets::default()),
        Some(access) => {
            let read = clusters::read(access, args, &[], &[], true).await;
            let (read, agents) = read.map_err(|error| ExplainError::Remote(Box::new(error)))?;
            (Some(read), agents)
        }
    };
    let mut worlds = Worlds::new(here, there)?;
    let [nodes_here, nodes_there] = worlds.enforcers([&args.from, &args.to])?;
    let deadline = args.agents.deadline();
    let answers = futures::future::join(
        agents_here.of_nodes(nodes_here, deadline),
        agents_there.of_nodes(nodes_there, deadline),
    );
    worlds.told(answers.await.into());
    let explained = explained(&worlds, (&args.from, &args.to), args.protocol, args.port)?;
    output::write(out, args.output, &explained, || render(&explained))?;
    Ok(explained.verdict.exit_code())
}

/// ClusterNetworkPolicies; none where the kind is not installed.
pub(crate) async fn cluster_policies(cluster: &Cluster) -> Result<Vec<kube::api::DynamicObject>, ApiError> {
    let kind = ApiResource {
        group: "policy.networking.k8s.io".to_owned(),
        version: "v1alpha2".to_owned(),
        api_version: "policy.networking.k8s.io/v1alpha2".to_owned(),
        kind: "ClusterNetworkPolicy".to_owned(),
        plural: "clusternetworkpolicies".to_owned(),
    };
    match cluster.all_dynamic(&kind, ("clusternetworkpolicies", None)).await {
        Err(ApiError::Absent { .. }) => Ok(Vec::new()),
        listed => listed,
    }
}

/// Explains a flow between two ends, in each family that they share.
///
/// # Errors
/// See [`ExplainError`].
pub fn explained(
    worlds: &Worlds,
    (from, to): (&End, &End),
    protocol: Transport,
    port: Option<u16>,
) -> Result<Explained, ExplainError> {
    let ends = [worlds.of(from)?, worlds.of(to)?];
    let [home, away] = ends;
    let (sources, destinations) = (home.addresses(&from.party)?, away.addresses(&to.party)?);
    let sides = [Side::new(home, &sources), Side::new(away, &destinations)];
    let mut flows = Vec::new();
    for destination in &destinations {
        if let (Transport::Ports(protocol), Some(port)) = (protocol, port)
            && let Some(service) = away.node_port(*destination, protocol, port)
        {
            return Err(ExplainError::NodePort { address: *destination, port, service: service.clone() });
        }
        let sources = home.sources(&from.party, *destination)?;
        for source in sources.iter().filter(|ip| ip.is_ipv4() == destination.is_ipv4()) {
            let number = protocol.number(source.is_ipv6());
            let flow = Flow { source: *source, destination: *destination, protocol: number, port };
            let egress = sides[0].explain(flow, Direction::Egress)?;
            let ingress = sides[1].explain(flow, Direction::Ingress)?;
            let passes = [&egress, &ingress].into_iter().flatten().all(|side| side.passes);
            flows.push(ExplainedFlow { flow, passes, egress, ingress });
        }
    }
    if flows.is_empty() {
        return Err(ExplainError::Families { from: from.to_string(), to: to.to_string() });
    }
    let doubts = worlds.doubts([from, to]);
    let verdict = match (flows.iter().all(|flow| flow.passes), doubts.is_empty()) {
        (false, _) => Verdict::DoesNotHold,
        (true, false) => Verdict::Incomplete,
        (true, true) => Verdict::Holds,
    };
    let (from, to) = (from.to_string(), to.to_string());
    Ok(Explained { format: FORMAT, from, to, verdict, flows, doubts })
}

fn compiler(world: &World) -> Compiler {
    let facts = &world.facts;
    let mut compiler = Compiler::new(facts.guarded.clone());
    for (name, namespace) in &facts.namespaces {
        compiler.set_namespace(name.clone(), Some(namespace.clone()));
    }
    for (name, node) in &facts.nodes {
        compiler.set_node(name.clone(), Some(node.clone()));
    }
    for (name, pod) in &facts.pods {
        compiler.set_pod(name.clone(), Some(pod.clone()));
    }
    for (name, policy) in &facts.network_policies {
        compiler.set_network_policy(name.clone(), Some(policy.clone()));
    }
    for (name, policy) in &facts.cluster_policies {
        compiler.set_cluster_policy(name.clone(), Some(policy.clone()));
    }
    compiler
}

/// One end of the flow, judged in its own cluster; without a pod there is nothing to judge.
struct Side<'a> {
    world: &'a World,
    subject: Option<(ObjectName, Compiler)>,
    /// Its node, and whether policy is in force there.
    enforced: Option<(&'a str, Enforcement)>,
}

impl<'a> Side<'a> {
    fn new(world: &'a World, addresses: &Addresses) -> Self {
        let subject = world.pod_at(addresses).map(|pod| {
            let mut compiler = compiler(world);
            compiler.set_subjects([pod.clone()].into());
            compiler.commit();
            (pod, compiler)
        });
        let node = subject.as_ref().and_then(|(pod, _)| world.node_of.get(pod));
        let enforced = node.and_then(|node| Some((node.as_str(), *world.enforcement.get(node)?)));
        Self { world, subject, enforced }
    }

    fn explain(&self, flow: Flow, direction: Direction) -> Result<Option<ExplainedSide>, ExplainError> {
        let Some((subject, compiler)) = &self.subject else { return Ok(None) };
        let explanation = compiler.explain(subject, direction, flow);
        if explanation.verdict != eval_pod(&self.world.facts, subject, flow, direction) {
            return Err(ExplainError::Disagreement(explanation.to_string()));
        }
        // What the node of a pod generates itself passes: probes of the kubelet.
        let own_node = direction == Direction::Ingress && self.world.is_own_node(subject, flow.source);
        let mut side = ExplainedSide {
            passes: true,
            text: explanation.to_string(),
            enforcement: self.enforced.map(|(_, enforcement)| enforcement),
            explanation,
        };
        let besides = match self.enforced {
            _ if own_node => "it passes all the same, since it comes from the pod's own node".to_owned(),
            _ if !side.denies() => return Ok(Some(side)),
            Some((node, Enforcement::Nothing)) => {
                format!("it passes all the same, since nothing enforces that on node {node}")
            }
            Some((node, Enforcement::NotKnown)) => {
                side.passes = false;
                format!("whether that is in force on node {node} is not known")
            }
            Some((_, Enforcement::InForce)) | None => {
                side.passes = false;
                return Ok(Some(side));
            }
        };
        side.text = format!("{}; {besides}", side.text);
        Ok(Some(side))
    }
}

fn render(explained: &Explained) -> String {
    let mut out = String::new();
    let all = explained.flows.iter().flat_map(|flow| [&flow.egress, &flow.ingress]).flatten();
    let denying: Vec<&ExplainedSide> = all.filter(|side| side.denies()).collect();
    let unenforced = denying.iter().any(|side| side.enforcement == Some(Enforcement::Nothing));
    let unsure = denying.iter().all(|side| side.passes || side.enforcement == Some(Enforcement::NotKnown));
    let verdict = match explained.verdict {
        Verdict::Holds => "it may pass",
        Verdict::Incomplete if unenforced => {
            "policy denies it, and nothing enforces that: it may pass, as far as is known"
        }
        Verdict::Incomplete => "it may pass, as far as is known",
        Verdict::DoesNotHold if unsure => "policy denies it, and whether that is in force is not known",
        Verdict::DoesNotHold => "it is denied",
    };
    line(&mut out, &format!("{} to {}: {verdict}", explained.from, explained.to));
    for flow in &explained.flows {
        let none = |side: &str| format!("{side}: no pod that is known, so no policy of its own");
        let text = |side: &Option<ExplainedSide>, name| {
            side.as_ref().map_or_else(|| none(name), |side| side.text.clone())
        };
        let title = format!("{} to {}", flow.flow.source, flow.flow.destination);
        section(&mut out, &title, vec![text(&flow.egress, "source"), text(&flow.ingress, "destination")]);
    }
    if !explained.doubts.is_empty() {
        section(&mut out, "Not known", explained.doubts.clone());
    }
    out
}

/// Addresses of one owner, each once.
pub(crate) type Addresses = BTreeSet<IpAddr>;

#[cfg(test)]
mod tests;
