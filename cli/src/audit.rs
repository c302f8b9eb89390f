//! `hawser audit`: evidence of what the cluster's nodes encrypt, with which keys, and what they refuse; judged, sealed, and
//! mapped to controls of standards. See [`report`] for the document and [`seal`] for its form.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use ed25519_dalek::SigningKey;
use kube::Client;
use mesh_core::numbers::PORT_METRICS;

pub mod canonical;
pub mod collect;
pub mod controls;
#[cfg(test)]
mod fixture;
pub mod judge;
pub mod key;
pub mod namespaces;
pub mod pairs;
pub mod report;
pub mod seal;
pub mod text;

use collect::{AgentAddress, Targets, Way};
use judge::{Collected, Inputs, judge};
use report::{Shown, Verdict};

/// Nodes are asked this often in all when pairs do not agree: the two sides are not asked in one moment, and a rotation moves
/// pairs one side after the other.
const LOOKS: usize = 3;
/// Why only the API knows something.
const NO_API: &str = "--no-api";
/// Pause before the next look.
const LOOK_AGAIN: Duration = Duration::from_secs(3);

/// Evidence about encryption, keys and policy of the cluster.
#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub struct AuditArgs {
    #[command(subcommand)]
    command: Option<AuditCommand>,
    #[command(flatten)]
    report: ReportArgs,
}

/// What else to do.
#[derive(Debug, Subcommand)]
pub enum AuditCommand {
    /// Makes the cluster's key for audits (Secret and ConfigMap hawser-audit-key in hawser-system), once.
    Init(InitArgs),
    /// Checks hash and signature of a report.
    Verify(VerifyArgs),
}

/// Form of the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Form {
    /// For people.
    Text,
    /// The sealed report.
    Json,
}

/// Whom to ask, and what to write.
#[derive(Args, Debug)]
#[command(
    after_help = "Exit codes: 0 everything holds and all evidence is there; 1 no report; 3 something does not hold; 4 evidence is missing, and nothing else speaks against it."
)]
pub struct ReportArgs {
    /// A kubeconfig; without it KUBECONFIG, ~/.kube/config or the pod's service account.
    #[arg(long)]
    kubeconfig: Option<PathBuf>,
    /// Do not ask the API: what only it knows is named as missing.
    #[arg(long, requires = "agents", conflicts_with = "kubeconfig")]
    no_api: bool,
    /// Ask this agent directly, in place of the API server's proxy to pods; may be given for each node.
    #[arg(long = "agent", value_name = "[NODE=]http://ADDRESS:PORT")]
    agents: Vec<AgentAddress>,
    /// Port of the agents' metrics.
    #[arg(long, default_value_t = PORT_METRICS)]
    agent_port: u16,
    /// Seconds for each answer.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=600))]
    timeout: u64,
    /// A namespace that need not deny by default; the report names it. May be given several times.
    #[arg(long, value_name = "NAMESPACE")]
    exempt_namespace: Vec<String>,
    /// Which pairs the document has one by one; `faulty` for clusters of hundreds of nodes.
    #[arg(long, value_enum, default_value_t = Shown::All)]
    pairs: Shown,
    /// Sign with the key in this file (PKCS#8 in PEM) instead of the cluster's.
    #[arg(long, conflicts_with = "unsigned")]
    key: Option<PathBuf>,
    /// Only a hash, no signature: proves nothing to others.
    #[arg(long)]
    unsigned: bool,
    /// Form of the output.
    #[arg(short, long, value_enum, default_value_t = Form::Text)]
    output: Form,
    /// Also write the sealed report to this file.
    #[arg(long)]
    file: Option<PathBuf>,
}

/// Where to make the key.
#[derive(Args, Debug)]
pub struct InitArgs {
    /// A kubeconfig; without it KUBECONFIG, ~/.kube/config or the pod's service account.
    #[arg(long)]
    kubeconfig: Option<PathBuf>,
}

/// What to check, and against which key.
#[derive(Args, Debug)]
pub struct VerifyArgs {
    /// The report, as `hawser audit -o json` wrote it.
    file: PathBuf,
    /// The public key (PEM) that has to have signed it; without it the one of the cluster.
    #[arg(long, conflicts_with = "kubeconfig")]
    public_key: Option<PathBuf>,
    /// A kubeconfig; without it KUBECONFIG, ~/.kube/config or the pod's service account.
    #[arg(long)]
    kubeconfig: Option<PathBuf>,
}

/// Why there is no report, or none that can be trusted.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// No configuration of the API.
    #[error("no way to the API server: {0}; give --kubeconfig, or --no-api with --agent for every node")]
    Kubeconfig(String),
    /// No key.
    #[error(transparent)]
    Key(#[from] key::KeyError),
    /// No canonical form.
    #[error("the report cannot be sealed: {0}")]
    Seal(#[from] canonical::NumberError),
    /// No JSON.
    #[error("the report cannot be written as JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// A file that cannot be read or written.
    #[error("{path}: {source}", path = path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A report that is not what its seal says.
    #[error("{path}: not verified: {source}", path = path.display())]
    Verify {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: seal::VerifyError,
    },
    /// An agent's address of which no client can be made.
    #[error("--agent {address}: {why}")]
    Agent {
        /// Which.
        address: String,
        /// Why.
        why: String,
    },
    /// The output cannot be written.
    #[error("could not write: {0}")]
    Output(#[from] std::io::Error),
}

/// Exit code of a report.
pub const fn exit_code(verdict: Verdict) -> u8 {
    match verdict {
        Verdict::Holds => 0,
        Verdict::DoesNotHold => 3,
        Verdict::Incomplete => 4,
    }
}

/// Runs the command; its exit code.
///
/// # Errors
/// See [`AuditError`].
pub async fn run(args: &AuditArgs, out: &mut (dyn Write + Send)) -> Result<u8, AuditError> {
    match &args.command {
        None => report(&args.report, out).await,
        Some(AuditCommand::Init(args)) => init(args, out).await.map(|()| 0),
        Some(AuditCommand::Verify(args)) => verify(args, out).await.map(|()| 0),
    }
}

async fn client(kubeconfig: Option<&PathBuf>) -> Result<Client, AuditError> {
    crate::api::client(kubeconfig.map(PathBuf::as_path)).await.map_err(AuditError::Kubeconfig)
}

async fn init(args: &InitArgs, out: &mut (dyn Write + Send)) -> Result<(), AuditError> {
    let made = key::init(&client(args.kubeconfig.as_ref()).await?).await?;
    let what = if made.fresh { "made" } else { "was there already" };
    writeln!(
        out,
        "key {} {what}; keep its public half where reports are checked:",
        seal::name(&made.public)
    )?;
    write!(out, "{}", key::pem(&made.public))?;
    Ok(())
}

async fn verify(args: &VerifyArgs, out: &mut (dyn Write + Send)) -> Result<(), AuditError> {
    let path = || args.file.clone();
    let file = std::fs::read(&args.file).map_err(|source| AuditError::File { path: path(), source })?;
    let trusted = match &args.public_key {
        Some(file) => key::public_from_file(file)?,
        None => key::public_of_cluster(&client(args.kubeconfig.as_ref()).await?).await?,
    };
    let found =
        seal::verify(&file, &trusted).map_err(|source| AuditError::Verify { path: path(), source })?;
    writeln!(out, "verified: SHA-256 {}, signed with key {}", found.sha256, found.key)?;
    writeln!(out, "made at {}, verdict {}", found.generated_at, found.verdict)?;
    Ok(())
}

async fn report(args: &ReportArgs, out: &mut (dyn Write + Send)) -> Result<u8, AuditError> {
    let api = if args.no_api { None } else { Some(client(args.kubeconfig.as_ref()).await?) };
    // Before anything is asked for, so that nobody waits for a report that cannot be sealed.
    let key = signing_key(args, api.as_ref()).await?;
    let report = judge(collect_all(args, api.as_ref()).await?);
    let verdict = report.verdict;
    let text = text::render(&report);
    let sealed = seal::seal(serde_json::to_value(report)?, key.as_ref())?;
    if let Some(path) = &args.file {
        let mut json = serde_json::to_vec_pretty(&sealed)?;
        json.push(b'\n');
        std::fs::write(path, json).map_err(|source| AuditError::File { path: path.clone(), source })?;
    }
    match args.output {
        Form::Json => {
            serde_json::to_writer_pretty(&mut *out, &sealed)?;
            writeln!(out)?;
        }
        Form::Text => {
            out.write_all(text.as_bytes())?;
            write!(out, "{}", text::seal(&sealed["seal"]))?;
        }
    }
    Ok(exit_code(verdict))
}

async fn signing_key(args: &ReportArgs, api: Option<&Client>) -> Result<Option<SigningKey>, AuditError> {
    match (&args.key, args.unsigned, api) {
        (Some(path), ..) => Ok(Some(key::from_file(path)?)),
        (None, true, _) => Ok(None),
        (None, false, Some(client)) => Ok(Some(key::of_cluster(client).await?)),
        (None, false, None) => Err(key::KeyError::Absent.into()),
    }
}

/// Asks everybody; again those that are moving or whose pairs do not agree.
async fn collect_all(args: &ReportArgs, api: Option<&Client>) -> Result<Inputs, AuditError> {
    let deadline = Duration::from_secs(args.timeout);
    let exempt: BTreeSet<String> = args.exempt_namespace.iter().cloned().collect();
    let mut targets = named_by_hand(&args.agents)?;
    let mut nobody = "no agent was named for it with --agent".to_owned();
    let (mut nodes_unread, mut namespaces) = (Some(NO_API.to_owned()), Err(NO_API.to_owned()));
    if let Some(client) = api {
        nodes_unread = match within(deadline, collect::nodes(client)).await {
            Ok(nodes) => {
                targets.nodes = Some(nodes);
                None
            }
            Err(why) => Some(format!("{why}; listing Nodes must be allowed to you")),
        };
        namespaces = within(deadline, collect::namespaces(client, &exempt)).await;
        if args.agents.is_empty() {
            nobody =
                "no pod of mesh-agent in hawser-system is on it; see the DaemonSet mesh-agent".to_owned();
            let kubeconfig = args.kubeconfig.as_deref();
            let proxy =
                crate::api::client_that_asks_once(kubeconfig).await.map_err(AuditError::Kubeconfig)?;
            match within(deadline, collect::agents(client, &proxy, args.agent_port)).await {
                Ok(ways) => targets.ways = ways,
                Err(why) => nobody = format!("the pods of mesh-agent could not be listed: {why}"),
            }
        }
    }
    let (nodes, strangers) = first_look(&mut targets, deadline, &nobody).await;
    let mut inputs = Inputs {
        generated_at: String::new(),
        now: 0,
        generated_by: format!("hawser {}", env!("CARGO_PKG_VERSION")),
        nodes,
        nodes_unread,
        strangers,
        namespaces,
        shown: args.pairs,
    };
    for _ in 1..LOOKS {
        let again = judge::disagreeing(&inputs);
        let ways = targets.ways.iter().filter(|(node, _)| again.contains(*node));
        let ways: Vec<(String, Way)> = ways.map(|(node, way)| (node.clone(), way.clone())).collect();
        if ways.is_empty() {
            break;
        }
        tokio::time::sleep(LOOK_AGAIN).await;
        for (node, answer) in collect::ask(ways, deadline).await {
            // Who has answered once and does not now keeps its first answer: it was evidence.
            let fits = answer.as_ref().is_ok_and(|evidence| evidence.node.as_str() == node);
            if let Some(collected) = inputs.nodes.get_mut(&node).filter(|_| fits) {
                collected.answer = answer;
            }
        }
    }
    let now = jiff::Timestamp::now();
    inputs.generated_at = format!("{now:.0}");
    inputs.now = u64::try_from(now.as_second()).unwrap_or(0);
    Ok(inputs)
}

/// Agents that were given by their addresses.
fn named_by_hand(agents: &[AgentAddress]) -> Result<Targets, AuditError> {
    let mut targets = Targets::default();
    for address in agents {
        let way =
            Way::direct(address).map_err(|why| AuditError::Agent { address: address.to_string(), why })?;
        let Some(node) = &address.node else {
            targets.unnamed.push(way);
            continue;
        };
        if targets.ways.insert(node.clone(), way).is_some() {
            targets.strangers.push(format!("--agent is given twice for node {node}; the last one was asked"));
        }
    }
    Ok(targets)
}

/// Asks everybody once, and learns whose the agents are that were named without a node.
async fn first_look(
    targets: &mut Targets,
    deadline: Duration,
    nobody: &str,
) -> (BTreeMap<String, Collected>, Vec<String>) {
    let named = targets.ways.iter().map(|(node, way)| (node.clone(), way.clone())).collect();
    let unnamed = targets.unnamed.iter().map(|way| (way.clone(), way.clone())).collect();
    let named = collect::ask(named, deadline).await;
    let mut answers = Vec::new();
    for (way, answer) in collect::ask(unnamed, deadline).await {
        let by = format!("{way:?}");
        if let Ok(evidence) = &answer {
            targets.ways.entry(evidence.node.to_string()).or_insert(way);
        }
        answers.push((by, answer));
    }
    collect::assign(targets, named, answers, nobody)
}

async fn within<T>(deadline: Duration, work: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    // A list of thousands comes in pages, each of which may take its time.
    let whole = deadline * 10;
    tokio::time::timeout(whole, work)
        .await
        .unwrap_or_else(|_| Err(format!("no answer in {} s", whole.as_secs())))
}
