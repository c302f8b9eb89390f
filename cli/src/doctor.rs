//! `hawser doctor`: looks at everything that pods' connections depend on, and names for each thing that is wrong what to do.
//! [`examine`] decides; what agents and API say is collected as for `hawser status`.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::net::IpAddr;

use clap::Args;
use futures::StreamExt as _;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Node as NodeObject, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::ResourceExt as _;
use mesh_core::evidence::TRY_PATHS;
use serde::Serialize;

use crate::agents::{self, AgentArgs, AgentError, Targets};
use crate::api::{Access, ApiError, Cluster, OPERATOR};
use crate::audit::collect::{self, Nodes};
use crate::audit::gather;
use crate::audit::judge::Inputs;
use crate::audit::report::Effect;
use crate::output::{self, EXIT_CODES, Form, Progress, Verdict, line, section, table};
use crate::policy::facts::{cidrs_of, internal_ips};
use crate::status::StatusError;

pub mod examine;

use examine::examine;

/// What the document is, and its version: another one where a field changes its meaning or goes.
pub const FORMAT: &str = "hawser.dev/doctor/v1";
/// Nodes are asked this often in all when pairs do not agree.
const LOOKS: usize = 2;

/// Whom to ask.
#[derive(Args, Debug)]
#[command(after_help = EXIT_CODES)]
pub struct DoctorArgs {
    #[command(flatten)]
    access: Access,
    #[command(flatten)]
    agents: AgentArgs,
    /// Form of the output.
    #[arg(short, long, value_enum, default_value_t)]
    output: Form,
}

/// What was found.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Examination {
    /// [`FORMAT`].
    pub format: &'static str,
    /// When, RFC 3339.
    pub generated_at: String,
    /// The worst of the checks.
    pub verdict: Verdict,
    /// One after the other.
    pub checks: Vec<Check>,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Check {
    /// A word for it.
    pub name: &'static str,
    /// What was looked at, and what was not.
    pub looked: String,
    /// The worst of its findings.
    pub verdict: Verdict,
    /// What was found, the worst first.
    pub findings: Vec<Diagnosis>,
}

/// One thing that was found.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Diagnosis {
    /// What it does.
    pub effect: Effect,
    /// A word for it.
    pub code: String,
    /// What, and where.
    pub text: String,
    /// What to do.
    pub remedy: String,
}

/// What the API says of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeSaid {
    /// Its InternalIPs.
    pub internal_ips: Vec<IpAddr>,
    /// Its pod CIDRs.
    pub pod_cidrs: Vec<IpNet>,
    /// Release of its kernel.
    pub kernel: Option<String>,
}

impl NodeSaid {
    fn of(node: &NodeObject) -> Self {
        let info = node.status.as_ref().and_then(|status| status.node_info.as_ref());
        Self {
            internal_ips: internal_ips(node),
            pod_cidrs: cidrs_of(node),
            kernel: info.map(|info| info.kernel_version.clone()).filter(|release| !release.is_empty()),
        }
    }
}

/// What the API says, or why it does not.
#[derive(Clone, Debug)]
pub struct Said {
    /// By node.
    pub nodes: BTreeMap<String, NodeSaid>,
    /// Addresses of Services, with their names.
    pub services: Result<BTreeMap<IpAddr, String>, String>,
    /// Where the API servers are.
    pub api_servers: Result<BTreeSet<IpAddr>, String>,
}

/// Runs the command; its exit code.
///
/// # Errors
/// See [`StatusError`].
pub async fn run(args: &DoctorArgs, out: &mut (dyn Write + Send)) -> Result<u8, StatusError> {
    let cluster = args.access.cluster(OPERATOR, args.agents.deadline()).await?;
    let nodes: Vec<NodeObject> = cluster.all_of_cluster("nodes").await?;
    let said = Said {
        nodes: nodes.iter().map(|node| (node.name_any(), NodeSaid::of(node))).collect(),
        services: services(&cluster).await.map_err(|why| why.to_string()),
        api_servers: api_servers(&cluster).await.map_err(|why| why.to_string()),
    };
    let clusters = collect::clusters(&cluster).await.map_err(|why| why.to_string());
    let nodes = Nodes::of(&nodes);
    try_paths(&args.agents, &cluster, &nodes).await?;
    let inputs = gather(&args.agents, Some(&cluster), Ok(nodes), LOOKS).await?;
    let examination = examine(&Inputs { clusters, ..inputs }, &said);
    output::write(out, args.output, &examination, || render(&examination))?;
    Ok(examination.verdict.exit_code())
}

/// Has every agent try the paths to its peers before they are asked what they know. What an agent says to it matters to nobody: one
/// of an older release has nothing at that place, and whoever is silent, or could not try any, is found so afterwards.
async fn try_paths(args: &AgentArgs, cluster: &Cluster, nodes: &Nodes) -> Result<(), AgentError> {
    let mut targets = Targets::named_by_hand(&args.agents)?;
    targets.find(cluster, args.agent_port).await;
    targets.not_ready.clone_from(&nodes.not_ready);
    let deadline = args.deadline();
    let named = targets.in_turn(deadline).into_iter().map(|(_, way, patience)| (way, patience));
    let ways = named.chain(targets.unnamed.into_iter().map(|way| (way, deadline)));
    Progress::on_terminal().say("having agents try what the paths between nodes take");
    futures::stream::iter(ways)
        .for_each_concurrent(agents::AT_ONCE, |(way, patience)| async move {
            drop(way.get(TRY_PATHS, patience).await);
        })
        .await;
    Ok(())
}

async fn services(cluster: &Cluster) -> Result<BTreeMap<IpAddr, String>, ApiError> {
    let services: Vec<Service> = cluster.all(("services", None), None).await?;
    let mut all = BTreeMap::new();
    for service in services {
        let name = format!("{}/{}", service.namespace().unwrap_or_default(), service.name_any());
        let ips = service.spec.as_ref().and_then(|spec| spec.cluster_ips.as_ref()).into_iter().flatten();
        all.extend(ips.filter_map(|ip| Some((ip.parse().ok()?, name.clone()))));
    }
    Ok(all)
}

/// The endpoints of the Service `default/kubernetes`, which API servers write themselves.
async fn api_servers(cluster: &Cluster) -> Result<BTreeSet<IpAddr>, ApiError> {
    let label = Some("kubernetes.io/service-name=kubernetes");
    let slices: Vec<EndpointSlice> = cluster.all(("endpointslices", Some("default")), label).await?;
    let addresses = slices.iter().flat_map(|slice| &slice.endpoints).flat_map(|endpoint| &endpoint.addresses);
    Ok(addresses.filter_map(|address| address.parse().ok()).collect())
}

fn render(examination: &Examination) -> String {
    let mut out = String::new();
    let count = |verdict| examination.checks.iter().filter(|check| check.verdict == verdict).count();
    let (well, wrong) = (count(Verdict::Holds), count(Verdict::DoesNotHold));
    line(
        &mut out,
        &format!(
            "{} checks: {well} well, {wrong} with faults, {} not known",
            examination.checks.len(),
            count(Verdict::Incomplete)
        ),
    );
    for check in &examination.checks {
        let verdict = match check.verdict {
            Verdict::Holds => "well",
            Verdict::Incomplete => "not known",
            Verdict::DoesNotHold => "FAULT",
        };
        let mut lines = vec![check.looked.clone()];
        for finding in &check.findings {
            let word = match finding.effect {
                Effect::Against => "fault",
                Effect::Missing => "not known",
                Effect::Note => "to know",
            };
            let rows = [
                vec![word.to_owned(), finding.code.clone(), finding.text.clone()],
                vec![String::new(), "remedy".to_owned(), finding.remedy.clone()],
            ];
            lines.extend(table(&[], &rows));
        }
        section(&mut out, &format!("{}: {verdict}", check.name), lines);
    }
    out
}

#[cfg(test)]
mod tests;
