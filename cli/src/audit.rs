//! `hawser audit`: evidence of what the cluster's nodes encrypt, with which keys, and what they refuse; judged, sealed, and
//! mapped to controls of standards. See [`report`] for the document and [`seal`] for its form.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use ed25519_dalek::SigningKey;

use crate::agents::{self, AgentArgs, AgentError, Reply, Targets};
use crate::api::{AUDITOR, Access, ApiError, Cluster, KEY_MAKER};
use crate::output::{self, EXIT_CODES, Form, Progress};

pub mod canonical;
pub mod collect;
pub mod controls;
#[cfg(test)]
pub(crate) mod fixture;
pub mod judge;
pub mod key;
pub mod namespaces;
pub mod pairs;
pub mod report;
pub mod seal;
pub mod text;

use collect::Nodes;
use judge::{Announced, Collected, Inputs, judge};
use report::Shown;

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
    /// Makes the cluster's key for audits (Secret and ConfigMap hawser-audit-key in hawser-system), once, as an administrator.
    Init(InitArgs),
    /// Checks hash and signature of a report.
    Verify(VerifyArgs),
}

/// Whom to ask, and what to write.
#[derive(Args, Debug)]
#[command(after_help = EXIT_CODES)]
pub struct ReportArgs {
    #[command(flatten)]
    access: Access,
    /// Do not ask the API: what only it knows is named as missing.
    #[arg(long, requires = "agents", conflicts_with_all = ["kubeconfig", "context"])]
    no_api: bool,
    #[command(flatten)]
    agents: AgentArgs,
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
    /// Form of the output. What was signed is JSON: `hawser audit verify` reads that form alone.
    #[arg(short, long, value_enum, default_value_t)]
    output: Form,
    /// Also write the sealed report to this file.
    #[arg(long)]
    file: Option<PathBuf>,
}

/// Where to make the key.
#[derive(Args, Debug)]
pub struct InitArgs {
    #[command(flatten)]
    access: Access,
}

/// What to check, and against which key.
#[derive(Args, Debug)]
pub struct VerifyArgs {
    /// The report, as `hawser audit -o json` wrote it.
    file: PathBuf,
    /// The public key (PEM) that has to have signed it; without it the one of the cluster.
    #[arg(long, conflicts_with_all = ["kubeconfig", "context"])]
    public_key: Option<PathBuf>,
    #[command(flatten)]
    access: Access,
}

/// Why there is no report, or none that can be trusted.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// The API gives nothing.
    #[error(transparent)]
    Api(#[from] ApiError),
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
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// The output cannot be written.
    #[error("could not write: {0}")]
    Output(#[from] std::io::Error),
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

/// For the few small objects of the key.
const KEY_DEADLINE: Duration = Duration::from_secs(20);

async fn init(args: &InitArgs, out: &mut (dyn Write + Send)) -> Result<(), AuditError> {
    let made = key::init(&args.access.cluster(KEY_MAKER, KEY_DEADLINE).await?).await?;
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
        None => key::public_of_cluster(&args.access.cluster(AUDITOR, KEY_DEADLINE).await?).await?,
    };
    let found =
        seal::verify(&file, &trusted).map_err(|source| AuditError::Verify { path: path(), source })?;
    writeln!(out, "verified: SHA-256 {}, signed with key {}", found.sha256, found.key)?;
    writeln!(out, "made at {}, verdict {}", found.generated_at, found.verdict)?;
    Ok(())
}

async fn report(args: &ReportArgs, out: &mut (dyn Write + Send)) -> Result<u8, AuditError> {
    let api =
        if args.no_api { None } else { Some(args.access.cluster(AUDITOR, args.agents.deadline()).await?) };
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
    output::write(out, args.output, &sealed, || text + &text::seal(&sealed["seal"]))?;
    Ok(verdict.exit_code())
}

async fn signing_key(args: &ReportArgs, api: Option<&Cluster>) -> Result<Option<SigningKey>, AuditError> {
    match (&args.key, args.unsigned, api) {
        (Some(path), ..) => Ok(Some(key::from_file(path)?)),
        (None, true, _) => Ok(None),
        (None, false, Some(cluster)) => Ok(Some(key::of_cluster(cluster).await?)),
        (None, false, None) => Err(key::KeyError::Absent.into()),
    }
}

/// What the audit asks for.
async fn collect_all(args: &ReportArgs, api: Option<&Cluster>) -> Result<Inputs, AuditError> {
    let exempt: BTreeSet<String> = args.exempt_namespace.iter().cloned().collect();
    let (nodes, namespaces) = match api {
        Some(cluster) => (
            collect::nodes(cluster).await.map_err(|why| why.to_string()),
            collect::namespaces(cluster, &exempt).await.map_err(|why| why.to_string()),
        ),
        None => (Err(NO_API.to_owned()), Err(NO_API.to_owned())),
    };
    let inputs = gather(&args.agents, api, nodes, LOOKS).await?;
    Ok(Inputs { namespaces, shown: args.pairs, ..inputs })
}

/// Asks every agent; `looks` times in all those that are moving or whose pairs do not agree. `nodes`: what the API says of them, or why
/// that is not known. Namespaces and joined clusters are not asked for.
///
/// # Errors
/// An agent's address cannot be used.
pub async fn gather(
    args: &AgentArgs,
    api: Option<&Cluster>,
    nodes: Result<Nodes, String>,
    looks: usize,
) -> Result<Inputs, AgentError> {
    let deadline = args.deadline();
    let mut targets = Targets::named_by_hand(&args.agents)?;
    let (mut announced, nodes_unread) = match nodes {
        Ok(Nodes { announced, not_ready }) => {
            targets.nodes = Some(announced.keys().cloned().collect());
            targets.not_ready = not_ready;
            (announced, None)
        }
        Err(why) => (BTreeMap::new(), Some(why)),
    };
    if let Some(cluster) = api {
        targets.find(cluster, args.agent_port).await;
    }
    let progress = Progress::on_terminal();
    progress.say(&format!("asking {} agents", targets.ways.len() + targets.unnamed.len()));
    let heard = targets.first_look(deadline).await;
    let collected = |(name, Reply { answer, at }): (String, Reply)| {
        let announced = announced.remove(&name).unwrap_or(Announced::Unread);
        (name, Collected { announced, answer, heard_at: at })
    };
    let mut inputs = Inputs {
        generated_at: String::new(),
        generated_by: format!("hawser {}", env!("CARGO_PKG_VERSION")),
        nodes: heard.nodes.into_iter().map(collected).collect(),
        nodes_unread,
        strangers: heard.strangers,
        clusters: Ok(BTreeMap::new()),
        namespaces: Ok(Vec::new()),
        shown: Shown::Faulty,
    };
    for _ in 1..looks {
        let again = judge::disagreeing(&inputs);
        let mut ways = targets.in_turn(deadline);
        ways.retain(|(node, ..)| again.contains(node));
        if ways.is_empty() {
            break;
        }
        progress
            .say(&format!("{} nodes do not agree yet, or change something: asking them again", ways.len()));
        tokio::time::sleep(LOOK_AGAIN).await;
        for (node, Reply { answer, at }) in agents::ask(ways).await {
            // Who has answered once and does not now keeps its first answer: it was evidence.
            let fits = answer.as_ref().is_ok_and(|evidence| evidence.node.as_str() == node);
            if let Some(collected) = inputs.nodes.get_mut(&node).filter(|_| fits) {
                (collected.answer, collected.heard_at) = (answer, at);
            }
        }
    }
    inputs.generated_at = format!("{:.0}", jiff::Timestamp::now());
    Ok(inputs)
}
