//! `hawser policy explain`: which rule of which object decides about a flow, on both sides. The API's objects are read as
//! agents read them ([`facts`]); `mesh_core::policy` decides, by the compiler that agents use and by the oracle, and nothing is
//! said where the two do not agree.

use std::collections::BTreeSet;
use std::fmt;
use std::io::Write;
use std::net::IpAddr;
use std::str::FromStr;

use clap::{Args, Subcommand};
use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Namespace, Node as NodeObject, Pod, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::api::ApiResource;
use mesh_core::policy::compile::Compiler;
use mesh_core::policy::eval::eval_pod;
use mesh_core::policy::explain::Explanation;
use mesh_core::policy::model::{Direction, Flow, ObjectName, Protocol, Verdict as PolicyVerdict};
use serde::Serialize;

use crate::agents::{AgentArgs, AgentError, Targets};
use crate::api::{Access, ApiError, Cluster, OPERATOR};
use crate::output::{self, Form, Verdict, line, section};

pub mod facts;

use facts::{Objects, World};

/// What the document is, and its version: another one where a field changes its meaning or goes.
pub const FORMAT: &str = "hawser.dev/policy-explanation/v1";
/// Agents that are asked for the pod CIDRs before the Nodes have to do: all have the same configuration.
const AGENTS: usize = 3;

/// What to do with policy.
#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    /// Which rule of which object decides about a flow, at its source and at its destination.
    Explain(ExplainArgs),
}

/// Which flow.
#[derive(Args, Debug)]
#[command(
    after_help = "Ask for what policy sees: for a Service one of its pods, since policy is judged on the real backend.\n\nExit codes: 0 it may pass; 1 it could not be explained; 2 the command line is wrong; 3 it is denied; 4 it may pass as far as is known, and what is not known is named."
)]
pub struct ExplainArgs {
    /// Who opens it.
    #[arg(value_name = "NAMESPACE/POD|node:NAME|ADDRESS")]
    from: Party,
    /// To whom.
    #[arg(value_name = "NAMESPACE/POD|node:NAME|ADDRESS")]
    to: Party,
    /// The destination's port.
    #[arg(short, long, value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
    /// The protocol: tcp, udp, sctp, icmp (of the family of the addresses), or a number of IANA's.
    #[arg(long, default_value = "tcp")]
    protocol: Transport,
    /// A pod CIDR of the cluster; without any an agent is asked for its configuration.
    #[arg(long, value_name = "CIDR")]
    pod_cidr: Vec<IpNet>,
    #[command(flatten)]
    access: Access,
    #[command(flatten)]
    agents: AgentArgs,
    /// Form of the output.
    #[arg(short, long, value_enum, default_value_t)]
    output: Form,
}

/// One end of a flow, as it is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Party {
    /// A pod.
    Pod(ObjectName),
    /// A node.
    Node(String),
    /// Whoever has the address.
    Address(IpAddr),
}

/// Why a text is no end of a flow.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is neither NAMESPACE/POD (default/web), nor node:NAME, nor an address")]
pub struct PartyError(String);

impl FromStr for Party {
    type Err = PartyError;

    fn from_str(text: &str) -> Result<Self, PartyError> {
        let wrong = || PartyError(text.chars().take(120).collect());
        if let Ok(address) = text.parse() {
            return Ok(Self::Address(address));
        }
        if let Some(name) = text.strip_prefix("node:").filter(|name| !name.is_empty()) {
            return Ok(Self::Node(name.to_owned()));
        }
        match text.split_once('/') {
            Some((namespace, name)) if is_name(namespace, "-") && is_name(name, "-.") => {
                Ok(Self::Pod(ObjectName { namespace: namespace.to_owned(), name: name.to_owned() }))
            }
            _ => Err(wrong()),
        }
    }
}

/// Could this be a name of the API, with these letters besides?
fn is_name(text: &str, besides: &str) -> bool {
    let letter =
        |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit() || besides.contains(letter);
    !text.is_empty() && text.chars().all(letter)
}

impl fmt::Display for Party {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod(name) => write!(f, "{}/{}", name.namespace, name.name),
            Self::Node(name) => write!(f, "node:{name}"),
            Self::Address(address) => write!(f, "{address}"),
        }
    }
}

/// A protocol as it is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// With ports.
    Ports(Protocol),
    /// ICMP or ICMPv6.
    Icmp,
    /// By its number.
    Number(u8),
}

/// Why a text is no protocol.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is none of tcp, udp, sctp, icmp and the numbers 0 to 255")]
pub struct TransportError(String);

impl FromStr for Transport {
    type Err = TransportError;

    fn from_str(text: &str) -> Result<Self, TransportError> {
        let ports = Protocol::ALL.into_iter().find(|known| known.name().eq_ignore_ascii_case(text));
        match (ports, text.parse::<u8>()) {
            (Some(protocol), _) => Ok(Self::Ports(protocol)),
            (None, _) if text.eq_ignore_ascii_case("icmp") => Ok(Self::Icmp),
            (None, Ok(number)) => Ok(Protocol::ALL
                .into_iter()
                .find(|known| known.number() == number)
                .map_or(Self::Number(number), Self::Ports)),
            (None, Err(_)) => Err(TransportError(text.chars().take(120).collect())),
        }
    }
}

impl Transport {
    /// Its number in the header of a family (IANA Protocol Numbers).
    const fn number(self, v6: bool) -> u8 {
        match self {
            Self::Ports(protocol) => protocol.number(),
            Self::Icmp => {
                if v6 {
                    58
                } else {
                    1
                }
            }
            Self::Number(number) => number,
        }
    }
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
    /// It lets the flow pass, be it only since its namespace is audited or its own node asks.
    pub passes: bool,
    /// In words.
    pub text: String,
    /// The verdict and its reason.
    #[serde(flatten)]
    pub explanation: Explanation,
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
    let cluster = args.access.cluster(OPERATOR, args.agents.deadline()).await?;
    let nodes: Vec<NodeObject> = cluster.all_of_cluster("nodes").await?;
    let (pod_cidrs, doubt) = pod_cidrs(args, &cluster, &nodes).await?;
    let objects = Objects {
        pod_cidrs,
        nodes,
        pods: cluster.all::<Pod>(("pods", None), None).await?,
        namespaces: cluster.all_metadata::<Namespace>("namespaces").await?,
        services: cluster.all::<Service>(("services", None), None).await?,
        policies: cluster
            .all_dynamic(&ApiResource::erase::<NetworkPolicy>(&()), ("networkpolicies", None))
            .await?,
        cluster_policies: cluster_policies(&cluster).await?,
    };
    let mut world = facts::world(&objects);
    world.doubts.extend(doubt);
    let explained = explained(&world, (&args.from, &args.to), args.protocol, args.port)?;
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

/// The pod CIDRs of the cluster, and what follows where they are only those of its nodes.
async fn pod_cidrs(
    args: &ExplainArgs,
    cluster: &Cluster,
    nodes: &[NodeObject],
) -> Result<(Vec<IpNet>, Option<String>), ExplainError> {
    if !args.pod_cidr.is_empty() {
        return Ok((args.pod_cidr.clone(), None));
    }
    let mut targets = Targets::named_by_hand(&args.agents.agents)?;
    targets.find(cluster, args.agents.agent_port).await;
    let mut why = targets.nobody.clone();
    for way in targets.ways.values().chain(&targets.unnamed).take(AGENTS) {
        match way.ask(args.agents.deadline()).await {
            Ok(evidence) => return Ok((evidence.settings.pod_cidrs, None)),
            Err(said) => why = said,
        }
    }
    let doubt = format!(
        "the cluster's pod CIDRs are not known ({why}): an address in none of its nodes' CIDRs is taken for the world's; give --pod-cidr"
    );
    Ok((nodes.iter().flat_map(facts::cidrs_of).collect(), Some(doubt)))
}

/// Explains a flow between two parties, in each family that they share.
///
/// # Errors
/// See [`ExplainError`].
pub fn explained(
    world: &World,
    (from, to): (&Party, &Party),
    protocol: Transport,
    port: Option<u16>,
) -> Result<Explained, ExplainError> {
    let (sources, destinations) = (world.addresses(from)?, world.addresses(to)?);
    let mut compiler = compiler(world);
    let subjects = [world.pod_at(&sources), world.pod_at(&destinations)];
    compiler.set_subjects(subjects.iter().flatten().cloned().collect());
    compiler.commit();
    let mut flows = Vec::new();
    for destination in &destinations {
        if let (Transport::Ports(protocol), Some(port)) = (protocol, port)
            && let Some(service) = world.node_port(*destination, protocol, port)
        {
            return Err(ExplainError::NodePort { address: *destination, port, service: service.clone() });
        }
        let sources = world.sources(from, *destination)?;
        for source in sources.iter().filter(|ip| ip.is_ipv4() == destination.is_ipv4()) {
            let number = protocol.number(source.is_ipv6());
            let flow = Flow { source: *source, destination: *destination, protocol: number, port };
            flows.push(one(world, &compiler, &subjects, flow)?);
        }
    }
    if flows.is_empty() {
        return Err(ExplainError::Families { from: from.to_string(), to: to.to_string() });
    }
    let verdict = match (flows.iter().all(|flow| flow.passes), world.doubts.is_empty()) {
        (false, _) => Verdict::DoesNotHold,
        (true, false) => Verdict::Incomplete,
        (true, true) => Verdict::Holds,
    };
    Ok(Explained {
        format: FORMAT,
        from: from.to_string(),
        to: to.to_string(),
        verdict,
        flows,
        doubts: world.doubts.clone(),
    })
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

fn one(
    world: &World,
    compiler: &Compiler,
    [source, destination]: &[Option<ObjectName>; 2],
    flow: Flow,
) -> Result<ExplainedFlow, ExplainError> {
    let side = |subject: &Option<ObjectName>, direction| -> Result<Option<ExplainedSide>, ExplainError> {
        let Some(subject) = subject else { return Ok(None) };
        let explanation = compiler.explain(subject, direction, flow);
        if explanation.verdict != eval_pod(&world.facts, subject, flow, direction) {
            return Err(ExplainError::Disagreement(explanation.to_string()));
        }
        // What the node of a pod generates itself passes: probes of the kubelet.
        let own_node = direction == Direction::Ingress && world.is_own_node(subject, flow.source);
        let text = if own_node {
            format!("{explanation}; it passes all the same, since it comes from the pod's own node")
        } else {
            explanation.to_string()
        };
        let passes = own_node || explanation.audit || explanation.verdict == PolicyVerdict::Allow;
        Ok(Some(ExplainedSide { passes, text, explanation }))
    };
    let (egress, ingress) = (side(source, Direction::Egress)?, side(destination, Direction::Ingress)?);
    let passes = [&egress, &ingress].into_iter().flatten().all(|side| side.passes);
    Ok(ExplainedFlow { flow, passes, egress, ingress })
}

fn render(explained: &Explained) -> String {
    let mut out = String::new();
    let verdict = match explained.verdict {
        Verdict::Holds => "it may pass",
        Verdict::Incomplete => "it may pass, as far as is known",
        Verdict::DoesNotHold => "it is denied",
    };
    line(&mut out, &format!("{} to {}: {verdict}", explained.from, explained.to));
    for flow in &explained.flows {
        let none = |side: &str| format!("{side}: no pod of this cluster, so no policy of its own");
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
