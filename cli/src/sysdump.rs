//! `hawser sysdump`: an archive of what somebody needs who helps from afar: objects, agents' evidence, metrics and plans, logs,
//! as far as they can be read. Secrets are not asked for, and what looks like one is taken out ([`redact`]).
//!
//! It is made for clusters that are half dead: everything is asked for beside each other, each answer goes into the archive when it
//! comes ([`archive`]), and when time is up or somebody interrupts it, what is there is kept and the rest named.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use clap::Args;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::ResourceExt as _;
use kube::api::{Api, ApiResource, LogParams};
use mesh_core::evidence::{NodeEvidence, PATH};
use mesh_core::numbers::{ANNOTATION_WIREGUARD, NAMESPACE};
use serde::Serialize;

use crate::agents::{AgentArgs, AgentError, NOT_WAITED, Targets};
use crate::api::{Access, ApiError, Asked, Cluster, OPERATOR};
use crate::output::{self, EXIT_CODES, Form, Progress, Verdict, line, moment, now, section};
use crate::policy;
use crate::status::Known;

mod archive;
mod logs;
mod pieces;
pub mod redact;

use archive::Archive;
use logs::LogOf;
use pieces::{Content, Dump, End, Piece, Stop};
use redact::Redactor;

/// What the index is, and its version: another one where a field changes its meaning or goes.
pub const FORMAT: &str = "hawser.dev/sysdump/v1";
/// Longest log of one container, in bytes: a day of an agent that is in trouble.
const LOG_MAX: i64 = 8 << 20;
/// What agents serve, with the name of the file.
const OF_AGENTS: [(&str, &str); 3] =
    [(PATH, "audit.json"), ("/metrics", "metrics.txt"), ("/debug/plan", "plan.json")];
/// Who of us writes Events: about Nodes, which are in the namespace `default`, about policies and Services, which are in theirs.
const REPORTERS: [(&str, &str); 2] =
    [("hawser.dev/mesh-agent", "mesh-agent"), ("hawser.dev/clustermesh", "clustermesh")];

/// What to collect.
#[derive(Args, Debug)]
#[command(after_help = EXIT_CODES)]
pub struct SysdumpArgs {
    /// The archive; without it hawser-sysdump-TIME.tar.gz here. What is there is not replaced.
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// No logs.
    #[arg(long)]
    no_logs: bool,
    /// Lines of each log, the last ones.
    #[arg(long, default_value_t = 5000, value_parser = clap::value_parser!(i64).range(1..=1_000_000))]
    log_lines: i64,
    /// Seconds for all of it. When they are over, or at Ctrl-C, what is there is written and the rest named.
    #[arg(long, default_value_t = 900, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    deadline: u64,
    #[command(flatten)]
    access: Access,
    #[command(flatten)]
    agents: AgentArgs,
    /// Form of the output, which says what the archive has.
    #[arg(short, long, value_enum, default_value_t)]
    output: Form,
}

/// Why there is no archive.
#[derive(Debug, thiserror::Error)]
pub enum SysdumpError {
    /// The API gives nothing.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// An agent's address cannot be used.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// The archive cannot be written.
    #[error("{path}: {source}; give another one with --file", path = path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It ended before anything was there.
    #[error("{0} before the list of Nodes was there: there is no archive")]
    Early(End),
    /// The output cannot be written, or signals not be waited for.
    #[error("could not write: {0}")]
    Output(#[from] io::Error),
}

/// What an archive has: its file `index.json`, the last one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// [`FORMAT`].
    pub format: &'static str,
    /// When, RFC 3339.
    pub generated_at: String,
    /// By which program.
    pub generated_by: String,
    /// Whether all could be read.
    pub verdict: Verdict,
    /// Why no more was asked for.
    pub ended: End,
    /// Files with their sizes in bytes.
    pub files: BTreeMap<String, usize>,
    /// What could not be read, and why.
    pub missing: BTreeMap<String, String>,
}

/// Runs the command; its exit code.
///
/// # Errors
/// See [`SysdumpError`].
pub async fn run(args: &SysdumpArgs, out: &mut (dyn Write + Send)) -> Result<u8, SysdumpError> {
    let cluster = args.access.cluster(OPERATOR, args.agents.deadline()).await?;
    let at = moment(now());
    let path =
        args.file.clone().unwrap_or_else(|| format!("hawser-sysdump-{}.tar.gz", at.replace(':', "")).into());
    // Before anything is asked for, so that nobody waits for an archive that cannot be written.
    let failed = |source| SysdumpError::File { path: path.clone(), source };
    let archive = Archive::create(&path).map_err(failed)?;
    let stop = Stop::after(Duration::from_secs(args.deadline))?;
    let (dump, ended) = collect(args, &cluster, archive, &stop).await?;
    let index = dump.finish(at, ended).map_err(failed)?;
    output::write(out, args.output, &index, || text(&index, &path.display().to_string()))?;
    Ok(index.verdict.exit_code())
}

fn text(index: &Index, path: &str) -> String {
    let mut text = String::new();
    let size: usize = index.files.values().sum();
    line(&mut text, &format!("{path}: {} files, {size} bytes before compression", index.files.len()));
    if index.ended != End::Complete {
        line(&mut text, &format!("Not all was waited for: {}. What was read by then is in it.", index.ended));
    }
    line(
        &mut text,
        "Secrets were not asked for, and what looks like one was taken out; read it before you give it away.",
    );
    if !index.missing.is_empty() {
        let lines = index.missing.iter().map(|(what, why)| format!("{what}: {why}"));
        section(&mut text, "Not there", lines.collect());
    }
    text
}

/// Asks for everything. Only the list of Nodes has to be there: without it nothing else would be.
async fn collect(
    args: &SysdumpArgs,
    cluster: &Cluster,
    archive: Archive,
    stop: &Stop,
) -> Result<(Dump, End), SysdumpError> {
    let progress = Progress::on_terminal();
    let nodes: Vec<Node> =
        stop.within(cluster.all_of_cluster("nodes")).await.map_err(SysdumpError::Early)??;
    let dead = |node: &&Node| Known::of(node).ready == Some(false);
    let not_ready: BTreeSet<String> = nodes.iter().filter(dead).map(|node| node.name_any()).collect();
    let mut targets = Targets::named_by_hand(&args.agents.agents)?;
    targets.nodes = Some(nodes.iter().map(kube::ResourceExt::name_any).collect());
    targets.not_ready.clone_from(&not_ready);
    let pods = async {
        targets.find(cluster, args.agents.agent_port).await;
        cluster.all::<Pod>(("pods", Some(NAMESPACE)), None).await.map_err(|why| why.to_string())
    };
    let pods = stop.within(pods).await.unwrap_or_else(|end| Err(end.to_string()));
    // What the API has comes first: it is quick, and whoever interrupts has it.
    let mut dump = Dump::new(archive, Redactor::new(public_keys(&nodes, &[])));
    dump.take("objects/hawser-system/pods.json".to_owned(), pods.clone().and_then(pieces::values))?;
    dump.take("objects/nodes.json".to_owned(), pieces::values(nodes.clone()))?;
    progress.say("reading objects");
    let ended = dump.gather(objects(cluster), stop, |_| {}).await?;

    progress.say(&format!("asking {} agents", targets.ways.len() + targets.unnamed.len()));
    // At most half of the time: without their answers there is still the rest.
    let heard = targets.first_look_until(args.agents.deadline(), stop.half()).await;
    let cut = heard.nodes.values().any(|reply| reply.answer.as_ref().is_err_and(|why| why == NOT_WAITED));
    let answers: Vec<&NodeEvidence> =
        heard.nodes.values().filter_map(|reply| reply.answer.as_deref().ok()).collect();
    dump.redactor = Redactor::new(public_keys(&nodes, &answers));
    let mut all = Vec::new();
    for (node, reply) in &heard.nodes {
        match (&reply.answer, targets.ways.get(node)) {
            (Err(why), _) => dump.take(format!("agents/{node}"), Err(why.clone()))?,
            (Ok(_), None) => {}
            (Ok(_), Some(way)) => all.extend(OF_AGENTS.map(|(path, file)| {
                Piece::new(format!("agents/{node}/{file}"), async move {
                    let said = way.get(path, args.agents.deadline()).await?;
                    Ok(Content::Text(String::from_utf8_lossy(&said).into_owned()))
                })
            })),
        }
    }
    if let (Ok(pods), false) = (&pods, args.no_logs) {
        let (logs, unasked) = logs::wanted(pods, &not_ready);
        for (path, why) in unasked {
            dump.take(path, Err(why))?;
        }
        all.extend(
            logs.into_iter().map(|log| {
                Piece::new(log.path(), async move { read_log(cluster, &log, args.log_lines).await })
            }),
        );
    }
    let count = all.len();
    let say = |left: usize| progress.say(&format!("{} of {count} files read", count - left));
    let ended = match dump.gather(all, stop, say).await? {
        End::Complete if ended == End::Complete && cut => End::Deadline,
        End::Complete => ended,
        early @ (End::Deadline | End::Interrupted) => early,
    };
    Ok((dump, ended))
}

/// Objects of the API, kind by kind.
fn objects(cluster: &Cluster) -> Vec<Piece<'_>> {
    let here = Some(NAMESPACE);
    let peers = ApiResource {
        group: "hawser.dev".to_owned(),
        version: "v1alpha1".to_owned(),
        api_version: "hawser.dev/v1alpha1".to_owned(),
        kind: "ClusterPeer".to_owned(),
        plural: "clusterpeers".to_owned(),
    };
    let peers = async move {
        match cluster.all_dynamic(&peers, ("clusterpeers", None)).await {
            // Who joins no clusters may do without the kind.
            Err(ApiError::Absent { .. }) => Ok(Vec::new()),
            listed => listed,
        }
    };
    let mut all = vec![
        Piece::objects("hawser-system/configmaps", cluster.all::<ConfigMap>(("configmaps", here), None)),
        Piece::objects("hawser-system/daemonsets", cluster.all::<DaemonSet>(("daemonsets", here), None)),
        Piece::objects("hawser-system/deployments", cluster.all::<Deployment>(("deployments", here), None)),
        Piece::objects("hawser-system/leases", cluster.all::<Lease>(("leases", here), None)),
        Piece::objects("hawser-system/events", cluster.all::<Event>(("events", here), None)),
        Piece::objects("namespaces", cluster.all_metadata::<Namespace>("namespaces")),
        // Of others' pods what policy sees: their metadata.
        Piece::objects("pods", cluster.all_metadata::<Pod>("pods")),
        Piece::objects("services", cluster.all::<Service>(("services", None), None)),
        Piece::objects("endpointslices", cluster.all::<EndpointSlice>(("endpointslices", None), None)),
        Piece::objects("networkpolicies", cluster.all::<NetworkPolicy>(("networkpolicies", None), None)),
        Piece::objects("clusternetworkpolicies", policy::cluster_policies(cluster)),
        Piece::objects("clusterpeers", peers),
    ];
    all.extend(REPORTERS.map(|(reporter, name)| {
        let events = async move {
            let fields = format!("reportingController={reporter}");
            cluster.all_of_fields::<Event>("events", &fields).await
        };
        Piece::objects(&format!("events-of-{name}"), events)
    }));
    all
}

/// Public keys that the cluster shows: they are no secrets.
fn public_keys(nodes: &[Node], answers: &[&NodeEvidence]) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for node in nodes {
        let announced =
            node.annotations().get(ANNOTATION_WIREGUARD).and_then(|text| keyring::decode(text).ok());
        if let Some(announcement) = announced {
            all.extend(announcement.slots.iter().map(|slot| slot.public_key.to_string()));
            all.extend(announcement.kem.map(|hash| BASE64_STANDARD.encode(hash)));
        }
    }
    for evidence in answers {
        all.extend(
            evidence
                .slots
                .iter()
                .flat_map(|slot| [Some(slot.key), slot.device_key])
                .flatten()
                .map(|key| key.to_string()),
        );
        all.extend(evidence.peers.values().flat_map(|peer| &peer.slots).map(|slot| slot.key.to_string()));
    }
    all
}

async fn read_log(cluster: &Cluster, log: &LogOf, lines: i64) -> Result<Content, String> {
    let api: Api<Pod> = Api::namespaced(cluster.proxy.clone(), NAMESPACE);
    let params = LogParams {
        container: Some(log.container.clone()),
        previous: log.previous,
        tail_lines: Some(lines),
        limit_bytes: Some(LOG_MAX),
        timestamps: true,
        ..LogParams::default()
    };
    let asked = Asked { verb: "get", resource: "pods/log", namespace: Some(NAMESPACE) };
    let read = cluster.within(asked, api.logs(&log.pod, &params)).await;
    read.map(Content::Text).map_err(|why| why.to_string())
}
