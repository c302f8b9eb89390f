//! `hawser sysdump`: an archive of what somebody needs who helps from afar: objects, agents' evidence, metrics and plans, logs,
//! as far as they can be read. Secrets are not asked for, and what looks like one is taken out ([`redact`]).

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use clap::Args;
use flate2::Compression;
use flate2::write::GzEncoder;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::ResourceExt as _;
use kube::api::{Api, LogParams};
use mesh_core::evidence::{NodeEvidence, PATH};
use mesh_core::numbers::{ANNOTATION_WIREGUARD, NAMESPACE};
use serde::Serialize;
use serde_json::Value;

use crate::agents::{self, AgentArgs, AgentError, Targets};
use crate::api::{Access, ApiError, Asked, Cluster, OPERATOR};
use crate::output::{self, EXIT_CODES, Form, Progress, Verdict, line, moment, now, section};
use crate::policy;

pub mod redact;

use redact::Redactor;

/// What the index is, and its version: another one where a field changes its meaning or goes.
pub const FORMAT: &str = "hawser.dev/sysdump/v1";
/// Longest log of one container, in bytes: a day of an agent that is in trouble.
const LOG_MAX: i64 = 8 << 20;
/// What agents serve, with the name of the file.
const OF_AGENTS: [(&str, &str); 3] =
    [(PATH, "audit.json"), ("/metrics", "metrics.txt"), ("/debug/plan", "plan.json")];

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
    /// The output cannot be written.
    #[error("could not write: {0}")]
    Output(#[from] io::Error),
}

/// What an archive has: its file `index.json`.
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
    /// Files with their sizes in bytes.
    pub files: BTreeMap<String, usize>,
    /// What could not be read, and why.
    pub missing: BTreeMap<String, String>,
}

/// What was collected, cleaned.
#[derive(Debug, Default)]
struct Collected {
    files: BTreeMap<String, Vec<u8>>,
    missing: BTreeMap<String, String>,
}

impl Collected {
    /// Text, or why there is none.
    fn text(&mut self, redactor: &Redactor, path: String, text: Result<String, String>) {
        match text {
            Ok(text) => {
                // What is JSON stays JSON.
                let clean = match serde_json::from_str::<Value>(&text) {
                    Ok(mut value) => {
                        redactor.value(&mut value);
                        value.to_string()
                    }
                    Err(_) => redactor.text(&text),
                };
                self.files.insert(path, clean.into_bytes());
            }
            Err(why) => drop(self.missing.insert(path, redactor.text(&why))),
        }
    }

    /// Objects of one kind, or why there are none.
    fn objects<T: Serialize>(&mut self, redactor: &Redactor, name: &str, objects: Result<Vec<T>, ApiError>) {
        let path = format!("objects/{name}.json");
        let clean = |objects: Vec<T>| -> serde_json::Result<Vec<u8>> {
            let mut values =
                objects.iter().map(serde_json::to_value).collect::<serde_json::Result<Vec<Value>>>()?;
            values.iter_mut().for_each(|value| redactor.object(value));
            serde_json::to_vec_pretty(&values)
        };
        match objects.map_err(|why| why.to_string()).and_then(|all| clean(all).map_err(|why| why.to_string()))
        {
            Ok(bytes) => drop(self.files.insert(path, bytes)),
            Err(why) => drop(self.missing.insert(path, redactor.text(&why))),
        }
    }
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
    // Whoever else is on this machine has no business with it.
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map_err(failed)?;
    let collected = match collect(args, &cluster).await {
        Ok(collected) => collected,
        Err(error) => {
            // Nothing is in it.
            let _ = std::fs::remove_file(&path);
            return Err(error);
        }
    };
    let verdict = if collected.missing.is_empty() { Verdict::Holds } else { Verdict::Incomplete };
    let index = Index {
        format: FORMAT,
        generated_at: at,
        generated_by: format!("hawser {}", env!("CARGO_PKG_VERSION")),
        verdict,
        files: collected.files.iter().map(|(path, bytes)| (path.clone(), bytes.len())).collect(),
        missing: collected.missing,
    };
    archive(file, &index, &collected.files).map_err(failed)?;
    output::write(out, args.output, &index, || {
        let mut text = String::new();
        let size: usize = index.files.values().sum();
        line(
            &mut text,
            &format!("{}: {} files, {size} bytes before compression", path.display(), index.files.len()),
        );
        line(
            &mut text,
            "Secrets were not asked for, and what looks like one was taken out; read it before you give it away.",
        );
        if !index.missing.is_empty() {
            let lines = index.missing.iter().map(|(what, why)| format!("{what}: {why}"));
            section(&mut text, "Not there", lines.collect());
        }
        text
    })?;
    Ok(verdict.exit_code())
}

/// Asks for everything. Only the list of Nodes has to be there: without it nothing else would be.
async fn collect(args: &SysdumpArgs, cluster: &Cluster) -> Result<Collected, SysdumpError> {
    let progress = Progress::on_terminal();
    let nodes: Vec<Node> = cluster.all_of_cluster("nodes").await?;
    let mut targets = Targets::named_by_hand(&args.agents.agents)?;
    targets.nodes = Some(nodes.iter().map(kube::ResourceExt::name_any).collect());
    targets.find(cluster, args.agents.agent_port).await;
    progress.say(&format!("asking {} agents", targets.ways.len() + targets.unnamed.len()));
    let heard = targets.first_look(args.agents.deadline()).await;
    let answers: Vec<&NodeEvidence> =
        heard.nodes.values().filter_map(|answer| answer.as_deref().ok()).collect();
    let redactor = Redactor::new(public_keys(&nodes, &answers));
    let mut all = Collected::default();
    of_agents(args, &targets, &heard, &redactor, &mut all).await;
    progress.say("reading objects");
    all.objects(&redactor, "nodes", Ok(nodes));
    objects(cluster, &redactor, &mut all).await;
    let pods = cluster.all::<Pod>(("pods", Some(NAMESPACE)), None).await;
    if let (Ok(pods), false) = (&pods, args.no_logs) {
        progress.say(&format!("reading logs of {} pods", pods.len()));
        for pod in pods {
            logs(args, cluster, &redactor, &mut all, pod).await;
        }
    }
    all.objects(&redactor, "hawser-system/pods", pods);
    Ok(all)
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

async fn of_agents(
    args: &SysdumpArgs,
    targets: &Targets,
    heard: &agents::Heard,
    redactor: &Redactor,
    all: &mut Collected,
) {
    for (node, answer) in &heard.nodes {
        if let Err(why) = answer {
            all.missing.insert(format!("agents/{node}"), redactor.text(why));
            continue;
        }
        let Some(way) = targets.ways.get(node) else { continue };
        for (path, file) in OF_AGENTS {
            let said = way.get(path, args.agents.deadline()).await;
            let text = said.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
            all.text(redactor, format!("agents/{node}/{file}"), text);
        }
    }
}

async fn objects(cluster: &Cluster, redactor: &Redactor, all: &mut Collected) {
    let here = Some(NAMESPACE);
    all.objects(
        redactor,
        "hawser-system/configmaps",
        cluster.all::<ConfigMap>(("configmaps", here), None).await,
    );
    all.objects(
        redactor,
        "hawser-system/daemonsets",
        cluster.all::<DaemonSet>(("daemonsets", here), None).await,
    );
    all.objects(redactor, "hawser-system/events", cluster.all::<Event>(("events", here), None).await);
    all.objects(redactor, "namespaces", cluster.all_metadata::<Namespace>("namespaces").await);
    // Of others' pods what policy sees: their metadata.
    all.objects(redactor, "pods", cluster.all_metadata::<Pod>("pods").await);
    all.objects(redactor, "services", cluster.all::<Service>(("services", None), None).await);
    all.objects(
        redactor,
        "endpointslices",
        cluster.all::<EndpointSlice>(("endpointslices", None), None).await,
    );
    all.objects(
        redactor,
        "networkpolicies",
        cluster.all::<NetworkPolicy>(("networkpolicies", None), None).await,
    );
    all.objects(redactor, "clusternetworkpolicies", policy::cluster_policies(cluster).await);
}

async fn logs(args: &SysdumpArgs, cluster: &Cluster, redactor: &Redactor, all: &mut Collected, pod: &Pod) {
    let api: Api<Pod> = Api::namespaced(cluster.proxy.clone(), NAMESPACE);
    let name = pod.name_any();
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    for container in containers {
        let params = LogParams {
            container: Some(container.name.clone()),
            tail_lines: Some(args.log_lines),
            limit_bytes: Some(LOG_MAX),
            timestamps: true,
            ..LogParams::default()
        };
        let asked = Asked { verb: "get", resource: "pods/log", namespace: Some(NAMESPACE) };
        let log = cluster.within(asked, api.logs(&name, &params)).await.map_err(|why| why.to_string());
        all.text(redactor, format!("logs/{name}/{}.log", container.name), log);
    }
}

/// Writes the archive. The index comes first.
fn archive(file: File, index: &Index, files: &BTreeMap<String, Vec<u8>>) -> io::Result<()> {
    let mut archive = tar::Builder::new(GzEncoder::new(file, Compression::default()));
    let mut append = |path: &str, bytes: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(u64::try_from(bytes.len()).map_err(io::Error::other)?);
        header.set_mode(0o600);
        header.set_mtime(now());
        archive.append_data(&mut header, format!("hawser-sysdump/{path}"), bytes)
    };
    append("index.json", &serde_json::to_vec_pretty(index)?)?;
    for (path, bytes) in files {
        append(path, bytes)?;
    }
    archive.into_inner()?.finish()?.sync_all()
}
