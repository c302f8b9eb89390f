//! `hawser connectivity test`: makes a namespace and pods of its own, has them ask each other, measures, judges, and takes
//! everything away again.
//!
//! - [`plan`] says who asks whom what, [`judge`] what the answers mean, [`pods`] what a kubelet says: pure.
//! - In the pods runs this very program, since the image has no other: [`serve`] and [`ask`], hidden verbs.
//! - What a pod found out travels as its termination message ([`question`]).
//!
//! Nothing is touched but the namespace that this run has made, which it knows by its mark, and that is deleted by its UID, whatever
//! happens: on failure, at a deadline, on SIGINT, SIGTERM and SIGHUP. Where this program is killed, pods end by themselves
//! (`activeDeadlineSeconds`).

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use futures::future::join_all;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::ResourceExt as _;
use kube::api::{Api, DeleteParams, ListParams, PostParams, Preconditions};
use mesh_core::numbers::{ANNOTATION_WIREGUARD, NAMESPACE};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep, timeout_at};

use crate::api::{Access, ApiError, Asked, Cluster, OPERATOR};
use crate::output::{self, EXIT_CODES, Form, Progress};
use crate::policy::facts::cidrs_of;
use crate::signals::Interrupts;

pub mod ask;
pub mod judge;
mod names;
pub mod objects;
pub mod plan;
pub mod pods;
pub mod question;
pub mod serve;
pub mod text;

use judge::{Frame, Report, Said, measures};
use objects::{LABEL, Mould, Owner};
use plan::{ChooseError, Chosen, Family, NodeFacts, Role, Served, Stage};
use pods::State;
use question::{MESSAGE_MAX, Message, Question, VERSION};

/// Where a kubelet takes a container's last words from, by default.
pub const MESSAGE_FILE: &str = "/dev/termination-log";
/// For each answer of the API.
const ANSWER: Duration = Duration::from_secs(20);
/// Between two looks at pods.
const LOOK: Duration = Duration::from_millis(300);
/// For pods to run: a kubelet that has to pull the image first.
const START: Duration = Duration::from_secs(120);
/// For a new namespace to get its ServiceAccount, without which no pod is let in.
const ACCOUNT: Duration = Duration::from_secs(15);
/// For a namespace to be gone: its pods end within a second or two.
const GONE: Duration = Duration::from_secs(90);
/// Measuring of a way besides its throughput takes that long at most.
const WAY: Duration = Duration::from_secs(15);

/// What to do.
#[derive(Debug, Subcommand)]
pub enum ConnectivityCommand {
    /// Makes pods on some nodes, has them ask each other, Services, names and what policy forbids, measures, and takes them away.
    Test(TestArgs),
    /// What runs in a pod that is asked.
    #[command(hide = true)]
    Serve(ServeArgs),
    /// What runs in a pod that asks.
    #[command(hide = true)]
    Ask(AskArgs),
}

/// Where to test, and how.
#[derive(Args, Debug)]
#[command(after_help = EXIT_CODES)]
pub struct TestArgs {
    /// A node to test on; may be given up to eight times. Without it some are taken.
    #[arg(long = "node", value_name = "NAME", conflicts_with = "nodes")]
    named: Vec<String>,
    /// How many nodes are tested, where none is named: the first by name that can run pods. Exit code 4 where fewer can, and others are
    /// there.
    #[arg(long, default_value_t = 2, value_name = "COUNT", value_parser = clap::value_parser!(u8).range(1..=8))]
    nodes: u8,
    /// An image with /hawser of this release; without it that of the DaemonSet mesh-agent, which every node has.
    #[arg(long, value_name = "IMAGE")]
    image: Option<String>,
    /// Name of the namespace that is made, and deleted at the end. It must not be there.
    #[arg(long, default_value = LABEL.1, value_name = "NAME")]
    namespace: String,
    /// No pods in their node's network, where something forbids them.
    #[arg(long)]
    no_host: bool,
    /// For how long the throughput of each way is measured; 0: it is not.
    #[arg(long, default_value_t = 1.0, value_name = "SECONDS", value_parser = seconds)]
    throughput_seconds: f64,
    /// Seconds until a first answer has to come.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=120))]
    patience: u64,
    /// Seconds for all of it, but for taking it away.
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u64).range(10..=3600))]
    timeout: u64,
    /// Leave the namespace with its pods, to look around. They end when twice the timeout is over.
    #[arg(long)]
    keep: bool,
    #[command(flatten)]
    access: Access,
    /// Form of the output.
    #[arg(short, long, value_enum, default_value_t)]
    output: Form,
}

/// Of a pod that is asked.
#[derive(Args, Debug)]
pub struct ServeArgs {
    /// The run's token.
    #[arg(long, value_parser = token)]
    token: Token,
    /// What it answers with.
    #[arg(long)]
    name: String,
}

/// Of a pod that asks.
#[derive(Args, Debug)]
pub struct AskArgs {
    /// The run's token.
    #[arg(long, value_parser = token)]
    token: Token,
    /// Seconds until a first answer has to come.
    #[arg(long)]
    patience: u64,
    /// For how long throughput is measured.
    #[arg(long, value_parser = seconds)]
    throughput_seconds: f64,
    /// Seconds for everything.
    #[arg(long)]
    within: u64,
    /// Where the answers go.
    #[arg(long, default_value = MESSAGE_FILE)]
    to: PathBuf,
    /// What to ask.
    questions: Vec<Question>,
}

/// A run's token.
#[derive(Clone, Copy)]
pub struct Token([u8; serve::TOKEN]);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("…")
    }
}

fn token(text: &str) -> Result<Token, String> {
    let wrong = || format!("wanted {} digits of a hexadecimal number", 2 * serve::TOKEN);
    if text.len() != 2 * serve::TOKEN || !text.is_ascii() {
        return Err(wrong());
    }
    let mut bytes = [0; serve::TOKEN];
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16).map_err(|_| wrong())?;
    }
    Ok(Token(bytes))
}

fn seconds(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| "wanted a number of seconds".to_owned())?;
    if (0.0..=60.0).contains(&seconds) { Ok(seconds) } else { Err("wanted 0 to 60 seconds".to_owned()) }
}

/// Why nothing was found out.
#[derive(Debug, thiserror::Error)]
pub enum ConnectivityError {
    /// The API gives nothing.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// There are no nodes to test on.
    #[error(transparent)]
    Nodes(#[from] ChooseError),
    /// The namespace is there.
    #[error(
        "namespace {0} is there already: another run is under way, or one was killed or kept its pods; look at it with kubectl -n {0} \
         get pods, remove it with kubectl delete namespace {0}, or give another name with --namespace"
    )]
    Exists(String),
    /// Somebody else's.
    #[error(
        "namespace {0} is there already, and is none of this command's: give another name with --namespace"
    )]
    Foreign(String),
    /// No random numbers.
    #[error("the system has no random numbers: {0}")]
    Random(getrandom::Error),
    /// Somebody ended it.
    #[error("interrupted; nothing was found out")]
    Interrupted,
    /// Signals cannot be waited for.
    #[error("signals cannot be waited for: {0}")]
    Signals(std::io::Error),
    /// It could not be taken away.
    #[error(
        "namespace {namespace} could not be removed: {why}; its pods end by themselves; remove it with: kubectl delete namespace \
         {namespace}"
    )]
    Left {
        /// Which.
        namespace: String,
        /// Why.
        why: String,
    },
    /// The same, after something else had failed.
    #[error("{first}\n{left}")]
    FailedAndLeft {
        /// What had failed.
        first: Box<ConnectivityError>,
        /// What is left.
        left: Box<ConnectivityError>,
    },
    /// The output cannot be written.
    #[error("could not write: {0}")]
    Output(#[from] std::io::Error),
}

/// Runs a verb that talks to no API.
///
/// # Errors
/// Ports cannot be had, or the answers cannot be written.
pub fn in_pod(command: &ConnectivityCommand) -> std::io::Result<()> {
    match command {
        ConnectivityCommand::Serve(args) => serve::serve(&args.name, args.token.0),
        ConnectivityCommand::Ask(args) => {
            let manner = ask::Manner {
                patience: Duration::from_secs(args.patience),
                throughput: Duration::from_secs_f64(args.throughput_seconds),
                within: Duration::from_secs(args.within),
            };
            let answers = ask::ask(&args.questions, &args.token.0, manner);
            let message = serde_json::to_string(&Message { v: VERSION, answers })?;
            if message.len() > MESSAGE_MAX {
                return Err(std::io::Error::other("answers are too long for a termination message"));
            }
            // It is there: a kubelet made it.
            std::fs::OpenOptions::new().write(true).open(&args.to)?.write_all(message.as_bytes())
        }
        ConnectivityCommand::Test(_) => Ok(()),
    }
}

/// So many random bytes as a token has, in hexadecimal.
fn random() -> Result<String, ConnectivityError> {
    let mut bytes = [0; serve::TOKEN];
    getrandom::fill(&mut bytes).map_err(ConnectivityError::Random)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Runs the command; its exit code.
///
/// # Errors
/// See [`ConnectivityError`].
pub async fn test(args: &TestArgs, out: &mut (dyn Write + Send)) -> Result<u8, ConnectivityError> {
    let mut interrupts = Interrupts::new().map_err(ConnectivityError::Signals)?;
    let Prepared { cluster, chosen, families, image } = tokio::select! {
        prepared = prepare(args) => prepared?,
        () = interrupts.next() => return Err(ConnectivityError::Interrupted),
    };
    let deadline = Instant::now() + Duration::from_secs(args.timeout);
    // Two, since everybody may read a namespace's labels, and whoever has the token is answered by the pods.
    let (token, mark) = (random()?, random()?);
    let mould = Mould { image, token, lifetime: Duration::from_secs(2 * args.timeout) };
    let progress = Progress::on_terminal();
    let run = Run { args, cluster: &cluster, mould, chosen, families, deadline, progress };

    let uid = make_namespace(&cluster, &args.namespace, &mark).await?;
    let found = tokio::select! {
        found = run.measure() => found,
        () = interrupts.next() => Err(ConnectivityError::Interrupted),
    };
    // Whoever asks for everything to be left is asked again only by their own second thoughts.
    let keep = args.keep && !matches!(found, Err(ConnectivityError::Interrupted));
    let removed = if keep {
        Ok(())
    } else {
        run.progress.say("removing it again");
        tokio::select! {
            removed = remove_namespace(&cluster, &args.namespace, uid) => removed,
            () = interrupts.again() => Err("interrupted while it went".to_owned()),
        }
    };
    let left = removed.map_err(|why| ConnectivityError::Left { namespace: args.namespace.clone(), why });
    let mut report = match (found, left) {
        (Ok(report), Ok(())) => report,
        (Ok(report), Err(left)) => {
            write(out, args.output, &report)?;
            return Err(left);
        }
        (Err(first), Ok(())) => return Err(first),
        (Err(first), Err(left)) => {
            return Err(ConnectivityError::FailedAndLeft { first: Box::new(first), left: Box::new(left) });
        }
    };
    report.kept = keep;
    write(out, args.output, &report)?;
    Ok(report.verdict.exit_code())
}

/// What is needed to begin.
struct Prepared {
    cluster: Cluster,
    chosen: Chosen,
    families: BTreeMap<String, BTreeSet<Family>>,
    image: String,
}

/// Reads it.
async fn prepare(args: &TestArgs) -> Result<Prepared, ConnectivityError> {
    let cluster = args.access.cluster(OPERATOR, ANSWER).await?;
    let nodes: Vec<Node> = cluster.all_of_cluster("nodes").await?;
    let facts: Vec<NodeFacts> = nodes.iter().map(facts).collect();
    let chosen = plan::choose(&facts, &args.named, usize::from(args.nodes))?;
    let of_chosen = facts.into_iter().filter(|node| chosen.nodes.contains(&node.name));
    let families = of_chosen.map(|node| (node.name, node.families)).collect();
    let image = match &args.image {
        Some(image) => image.clone(),
        None => image_of_agents(&cluster).await?,
    };
    Ok(Prepared { cluster, chosen, families, image })
}

fn write(out: &mut (dyn Write + Send), form: Form, report: &Report) -> std::io::Result<()> {
    output::write(out, form, report, || text::render(report))
}

fn facts(node: &Node) -> NodeFacts {
    let spec = node.spec.clone().unwrap_or_default();
    let status = node.status.clone().unwrap_or_default();
    let conditions = status.conditions.unwrap_or_default();
    let os = node.labels().get("kubernetes.io/os").map(String::as_str);
    NodeFacts {
        name: node.name_any(),
        ready: conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True"),
        schedulable: !spec.unschedulable.unwrap_or(false),
        linux: os.is_none_or(|os| os == "linux"),
        in_mesh: node.annotations().contains_key(ANNOTATION_WIREGUARD),
        families: cidrs_of(node).iter().map(|cidr| Family::of(cidr.addr())).collect(),
    }
}

async fn image_of_agents(cluster: &Cluster) -> Result<String, ApiError> {
    let sets: Vec<DaemonSet> =
        cluster.all(("daemonsets", Some(NAMESPACE)), Some("app.kubernetes.io/name=mesh-agent")).await?;
    let pods = sets.into_iter().filter_map(|set| set.spec?.template.spec);
    let mut images = pods.flat_map(|pod| pod.containers).filter(|container| container.name == "mesh-agent");
    let image = images.next().and_then(|container| container.image);
    Ok(image.unwrap_or_else(|| concat!("hawser.dev/hawser:", env!("CARGO_PKG_VERSION")).to_owned()))
}

/// Makes the namespace; its UID.
///
/// A request whose answer was lost may have been done. kube's client repeats some by itself (503, 504), and then what was made is what
/// it is refused for. So what is there is looked at before anybody else is blamed for it.
async fn make_namespace(cluster: &Cluster, name: &str, mark: &str) -> Result<String, ConnectivityError> {
    let api: Api<Namespace> = Api::all(cluster.client.clone());
    let asked = |verb| Asked { verb, resource: "namespaces", namespace: None };
    let object = objects::namespace(name, mark);
    let unsure = |why| ConnectivityError::Left { namespace: name.to_owned(), why };
    let made = tokio::time::timeout(ANSWER, api.create(&PostParams::default(), &object)).await;
    let lost = match made {
        Ok(Ok(made)) => return Ok(made.metadata.uid.unwrap_or_default()),
        Ok(Err(kube::Error::Api(status))) if status.reason == "AlreadyExists" => None,
        Ok(Err(error)) => {
            let refused = cluster.error(asked("create"), &error);
            if matches!(refused, ApiError::Forbidden { .. } | ApiError::Unauthenticated { .. }) {
                return Err(refused.into());
            }
            Some(if matches!(refused, ApiError::Unreachable { .. }) {
                unsure(format!("whether it was made is not known: {refused}"))
            } else {
                refused.into()
            })
        }
        Err(_) => Some(unsure(format!(
            "the API server did not say within {} s whether it was made",
            ANSWER.as_secs()
        ))),
    };
    let found = match cluster.within(asked("get"), api.get(name)).await {
        Ok(found) => found,
        Err(why) => return Err(lost.unwrap_or_else(|| why.into())),
    };
    match objects::owner(&found, mark) {
        Owner::ThisRun => Ok(found.metadata.uid.unwrap_or_default()),
        Owner::AnotherRun => Err(ConnectivityError::Exists(name.to_owned())),
        Owner::SomebodyElse => Err(ConnectivityError::Foreign(name.to_owned())),
    }
}

/// Deletes the namespace that this run has made, and no other of its name; waits until it is gone.
async fn remove_namespace(cluster: &Cluster, name: &str, uid: String) -> Result<(), String> {
    let api: Api<Namespace> = Api::all(cluster.client.clone());
    let asked = |verb| Asked { verb, resource: "namespaces", namespace: None };
    let preconditions = Preconditions { uid: Some(uid.clone()), resource_version: None };
    let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
    let end = Instant::now() + GONE;
    // Of the same name and another one, it is not this run's.
    let gone = |found: &Option<Namespace>| {
        found.as_ref().is_none_or(|found| found.metadata.uid.as_ref() != Some(&uid))
    };
    let mut last = match cluster.within(asked("delete"), api.delete(name, &params)).await {
        Ok(_) => "it is still terminating".to_owned(),
        Err(why) => why.to_string(),
    };
    loop {
        match cluster.within(asked("get"), api.get_opt(name)).await {
            Ok(found) if gone(&found) => return Ok(()),
            // The request to delete it was not taken, or somebody has stopped it.
            Ok(Some(found)) if found.metadata.deletion_timestamp.is_none() => {
                if let Err(why) = cluster.within(asked("delete"), api.delete(name, &params)).await {
                    last = why.to_string();
                }
            }
            Ok(_) => {}
            Err(why) => last = why.to_string(),
        }
        if Instant::now() >= end {
            return Err(format!("{last} (waited {} s)", GONE.as_secs()));
        }
        sleep(LOOK).await;
    }
}

/// A run whose namespace is there.
struct Run<'a> {
    args: &'a TestArgs,
    cluster: &'a Cluster,
    mould: Mould,
    chosen: Chosen,
    families: BTreeMap<String, BTreeSet<Family>>,
    deadline: Instant,
    progress: Progress,
}

impl Run<'_> {
    async fn measure(&self) -> Result<Report, ConnectivityError> {
        for policy in objects::policies() {
            self.create::<NetworkPolicy>("networkpolicies", &policy).await?;
        }
        let service = match self.create::<Service>("services", &objects::service()).await? {
            Some(made) => made,
            None => {
                let asked = Asked { verb: "get", resource: "services", namespace: None };
                self.cluster.within(asked, self.api::<Service>().get(plan::SERVICE)).await?
            }
        };
        let ips = service.spec.and_then(|spec| spec.cluster_ips).unwrap_or_default();
        let (stage, findings) = self.stage(ips.iter().filter_map(|ip| ip.parse().ok()).collect()).await?;
        let plan = plan::plan(&stage);
        let mut said = BTreeMap::new();
        let alone = plan.askers.iter().enumerate().filter(|(_, asker)| measures(asker.role));
        for (at, asker) in alone {
            self.progress.say(&format!("{} of {} asks", asker.name, asker.node));
            said.insert(asker.name.clone(), self.ask(asker, plan.questions(at)).await);
        }
        // These are kept from speaking, and disturb nobody.
        let others = plan.askers.iter().enumerate().filter(|(_, asker)| !measures(asker.role));
        self.progress.say("asking what policy forbids");
        let all = others.map(|(at, asker)| {
            let questions = plan.questions(at);
            async move { (asker.name.clone(), self.ask(asker, questions).await) }
        });
        said.extend(join_all(all).await);
        let frame = Frame {
            generated_at: output::moment(output::now()),
            namespace: self.args.namespace.clone(),
            image: self.mould.image.clone(),
            nodes: self.chosen.nodes.clone(),
            pods: findings,
            unfit: self.chosen.unfit.clone(),
        };
        Ok(judge::judge(frame, &plan, &said))
    }

    fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        Api::namespaced(self.cluster.client.clone(), &self.args.namespace)
    }

    /// Makes an object in the run's namespace. `None`: it is there already, so it was made by a request that was repeated
    /// ([`make_namespace`]).
    async fn create<K>(&self, resource: &'static str, object: &K) -> Result<Option<K>, ApiError>
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
            + Clone
            + std::fmt::Debug
            + Serialize
            + DeserializeOwned,
    {
        let api = self.api::<K>();
        let work = async {
            match api.create(&PostParams::default(), object).await {
                // Of a quota that has just changed it says 409, too.
                Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => Ok(None),
                made => made.map(Some),
            }
        };
        self.cluster.within(Asked { verb: "create", resource, namespace: None }, work).await
    }

    /// Makes a pod. In a namespace that is new none is let in before its ServiceAccount is there.
    async fn create_pod(&self, role: Role, name: &str, node: &str, args: &[String]) -> Result<(), ApiError> {
        let pod = self.mould.pod(role, name, node, args);
        let end = Instant::now() + ACCOUNT;
        loop {
            match self.create::<Pod>("pods", &pod).await {
                Err(ApiError::Forbidden { why, .. })
                    if why.contains("serviceaccount") && Instant::now() < end =>
                {
                    sleep(LOOK).await;
                }
                other => return other.map(drop),
            }
        }
    }

    async fn states(&self) -> Result<BTreeMap<String, State>, ApiError> {
        let asked = Asked { verb: "list", resource: "pods", namespace: None };
        let params = ListParams::default().labels(&format!("{}={}", LABEL.0, LABEL.1));
        let pods = self.cluster.within(asked, self.api::<Pod>().list(&params)).await?;
        Ok(pods.iter().map(|pod| (pod.name_any(), pods::state(pod))).collect())
    }

    /// Starts those who serve, and waits for them; what is there, and why not all of it.
    async fn stage(
        &self,
        service: Vec<std::net::IpAddr>,
    ) -> Result<(Stage, Vec<judge::Finding>), ConnectivityError> {
        let roles = [Role::Server, Role::Guarded];
        self.progress.say(&format!(
            "starting {} pods from {}",
            2 * self.chosen.nodes.len(),
            self.mould.image
        ));
        for (place, node) in self.chosen.nodes.iter().enumerate() {
            for role in roles {
                let name = role.pod(place);
                self.create_pod(role, &name, node, &[format!("--name={name}")]).await?;
            }
        }
        let end = self.deadline.min(Instant::now() + START);
        let states = loop {
            let states = self.states().await?;
            let waits = states.values().any(|state| matches!(state, State::Starting(_)));
            if !waits || Instant::now() >= end {
                break states;
            }
            sleep(LOOK).await;
        };
        let mut stage = Stage {
            namespace: self.args.namespace.clone(),
            service,
            families: self.families.clone(),
            throughput: self.args.throughput_seconds > 0.0,
            host: !self.args.no_host,
            ..Stage::default()
        };
        let mut findings = Vec::new();
        for (place, node) in self.chosen.nodes.iter().enumerate() {
            let absent = State::Starting("the API does not have it".to_owned());
            let of = |role: Role| {
                let name = role.pod(place);
                let state = states.get(&name).unwrap_or(&absent);
                match (state, pods::obstacle(&name, node, &self.args.namespace, state)) {
                    (State::Running(ips), _) => Ok(Served { name, node: node.clone(), ips: ips.clone() }),
                    (_, finding) => Err(finding),
                }
            };
            match (of(Role::Server), of(Role::Guarded)) {
                (Ok(server), Ok(guarded)) => {
                    stage.servers.push(server);
                    stage.guarded.push(guarded);
                }
                (server, guarded) => {
                    findings.extend([server.err(), guarded.err()].into_iter().flatten().flatten());
                }
            }
        }
        Ok((stage, findings))
    }

    /// Starts one that asks, and waits for what it says.
    async fn ask(&self, asker: &plan::Asker, questions: Vec<Question>) -> Said {
        let left = self.deadline.saturating_duration_since(Instant::now());
        let args = &self.args;
        let mut words = vec![
            format!("--patience={}", args.patience),
            format!("--throughput-seconds={}", args.throughput_seconds),
            format!("--within={}", left.as_secs()),
        ];
        words.extend(questions.iter().map(ToString::to_string));
        self.create_pod(asker.role, &asker.name, &asker.node, &words).await.map_err(|why| why.to_string())?;
        let ways = u32::try_from(questions.len()).unwrap_or(u32::MAX);
        let each = WAY + Duration::from_secs_f64(args.throughput_seconds);
        let longest = START + Duration::from_secs(args.patience) + each.saturating_mul(ways);
        let end = self.deadline.min(Instant::now() + longest);
        let mut last = "the API does not have it".to_owned();
        let answer = async {
            loop {
                match self.states().await.map(|mut states| states.remove(&asker.name)) {
                    Ok(Some(state)) => match pods::said(&state, questions.len()) {
                        Some(said) => return said,
                        None => last = format!("{state:?}"),
                    },
                    Ok(None) => {}
                    // Asked again until the deadline.
                    Err(why) => last = why.to_string(),
                }
                sleep(LOOK).await;
            }
        };
        let ended = timeout_at(end, answer).await;
        ended.unwrap_or_else(|_| Err(format!("it was not done in time: {last}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_and_seconds_are_read_and_nothing_like_them() {
        assert_eq!(token("000102030405060708090a0b0c0d0e0f").unwrap().0[15], 15);
        for text in ["", "00", "000102030405060708090a0b0c0d0e0g", "ü00102030405060708090a0b0c0d0e0"] {
            assert!(token(text).is_err(), "{text}");
        }
        assert_eq!(seconds("0.5"), Ok(0.5));
        for text in ["-1", "61", "x", "NaN", "inf"] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }
}
