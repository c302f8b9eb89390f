//! From answers to a report, each failure with its remedy: pure.

use std::collections::BTreeMap;

use serde::Serialize;

use super::plan::{Asker, Check, Family, Kind, Lacking, Plan, Role, Unfit};
use super::question::{Answer, Ask, Fault, PORT, Question, Times};
use super::text;
use crate::output::Verdict;

/// What the document is, and its version: another one where a field changes its meaning or goes.
pub const FORMAT: &str = "hawser.dev/connectivity/v1";

/// What a pod said, or why it said nothing.
pub type Said = Result<Vec<Answer>, String>;

/// How one thing stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    /// As it should be.
    Passed,
    /// This cluster does not have it.
    Skipped,
    /// It could not be found out.
    Unknown,
    /// Not as it should be.
    Failed,
}

/// What was found, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// A word for it.
    pub code: String,
    /// What.
    pub text: String,
    /// What to do.
    pub remedy: String,
}

/// Round trips, for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RoundTrips {
    /// Half of them were shorter, in µs.
    pub p50_microseconds: u32,
    /// 99 of 100 were shorter, in µs.
    pub p99_microseconds: u32,
    /// Those that did not come back.
    pub lost: u32,
}

impl From<Times> for RoundTrips {
    fn from(times: Times) -> Self {
        Self { p50_microseconds: times.p50_us, p99_microseconds: times.p99_us, lost: times.lost }
    }
}

/// What was measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Measured {
    /// On a connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp: Option<RoundTrips>,
    /// Of datagrams.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub udp: Option<RoundTrips>,
    /// Of one connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_per_second: Option<u64>,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Checked {
    /// What.
    pub kind: Kind,
    /// Who asked: a pod.
    pub from: String,
    /// Its node.
    pub from_node: String,
    /// Who was asked: a pod or Service.
    pub to: String,
    /// The node of that pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to_node: Option<String>,
    /// By which family.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub family: Option<Family>,
    /// How it stands.
    pub outcome: Outcome,
    /// What was measured.
    pub measured: Measured,
    /// What is wrong, or not known.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub findings: Vec<Finding>,
}

/// The document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// [`FORMAT`].
    pub format: &'static str,
    /// When, RFC 3339.
    pub generated_at: String,
    /// The worst of all.
    pub verdict: Verdict,
    /// Where the pods were.
    pub namespace: String,
    /// What ran in them.
    pub image: String,
    /// The nodes.
    pub nodes: Vec<String>,
    /// Whether the pods are still there.
    pub kept: bool,
    /// What could not be started.
    pub pods: Vec<Finding>,
    /// What should have been tested, and could not be.
    pub not_tested: Vec<Finding>,
    /// What there is not in this cluster.
    pub skipped: Vec<String>,
    /// What was looked at.
    pub checks: Vec<Checked>,
}

/// Of what a report tells besides its checks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frame {
    /// When, RFC 3339.
    pub generated_at: String,
    /// Where the pods were.
    pub namespace: String,
    /// What ran in them.
    pub image: String,
    /// The nodes.
    pub nodes: Vec<String>,
    /// What could not be started.
    pub pods: Vec<Finding>,
    /// Nodes that were asked for, and cannot run pods.
    pub unfit: Vec<Unfit>,
}

/// Judges what was said; `said` by the names of the pods that asked.
pub fn judge(frame: Frame, plan: &Plan, said: &BTreeMap<String, Said>) -> Report {
    let mut taken: BTreeMap<usize, usize> = BTreeMap::new();
    let mut checks: Vec<Checked> = Vec::new();
    let nobody: Said = Err("it was not started".to_owned());
    for check in &plan.checks {
        let asker = &plan.askers[check.asker];
        let from = taken.entry(check.asker).or_insert(0);
        let of_asker = said.get(&asker.name).unwrap_or(&nobody);
        let answers =
            of_asker.as_ref().map(|all| all.iter().copied().skip(*from).take(check.questions.len()));
        *from += check.questions.len();
        checks.push(match answers {
            Ok(answers) => judged(&frame.namespace, check, asker, &answers.collect::<Vec<_>>()),
            Err(why) => unknown(check, asker, why),
        });
    }
    // Where nothing passes silence proves nothing.
    for (at, check) in plan.checks.iter().enumerate() {
        let control = check.control.and_then(|control| checks.get(control)).map(|control| control.outcome);
        if control.is_some_and(|outcome| outcome != Outcome::Passed) && checks[at].outcome == Outcome::Passed
        {
            checks[at].outcome = Outcome::Unknown;
            checks[at].findings.push(Finding {
                code: "no-control".to_owned(),
                text: "nobody answered, but nobody answers there who is allowed to, either".to_owned(),
                remedy: "mend that first, then run this again".to_owned(),
            });
        }
    }
    let mut skipped = plan.skipped.clone();
    if checks.iter().any(|check| check.kind == Kind::Name && check.outcome == Outcome::Skipped) {
        skipped.push("names: kubelets give pods no DNS of the cluster".to_owned());
    }
    let Frame { generated_at, namespace, image, nodes, pods, unfit } = frame;
    let not_tested: Vec<Finding> =
        unfit.iter().map(node_unfit).chain(plan.lacking.iter().map(family_missing)).collect();
    let worst = checks.iter().map(|check| check.outcome).max().unwrap_or(Outcome::Unknown);
    let verdict = match worst {
        _ if !pods.is_empty() => Verdict::DoesNotHold,
        Outcome::Failed => Verdict::DoesNotHold,
        Outcome::Unknown => Verdict::Incomplete,
        Outcome::Passed | Outcome::Skipped if !not_tested.is_empty() => Verdict::Incomplete,
        Outcome::Passed | Outcome::Skipped => Verdict::Holds,
    };
    Report {
        format: FORMAT,
        generated_at,
        verdict,
        namespace,
        image,
        nodes,
        kept: false,
        pods,
        not_tested,
        skipped,
        checks,
    }
}

fn node_unfit(Unfit { node, why }: &Unfit) -> Finding {
    Finding {
        code: "node-unfit".to_owned(),
        text: format!("node {node} {why}"),
        remedy: format!(
            "kubectl describe node {node} and hawser status say more; where it shall stay so, ask for fewer nodes with --nodes"
        ),
    }
}

fn family_missing(Lacking { node, pods, family }: &Lacking) -> Finding {
    let (pods, family) = (pods.join(", "), family.word());
    Finding {
        code: "family-missing".to_owned(),
        text: format!("{pods} on {node}: no {family} address, though the Node has an {family} pod CIDR"),
        remedy: format!(
            "podCIDRs of the configuration has to contain all of the Node's (kubectl get node {node} -o yaml); see the Events of the Node, \
             and the log of mesh-agent there"
        ),
    }
}

fn checked(check: &Check, asker: &Asker) -> Checked {
    Checked {
        kind: check.kind,
        from: asker.name.clone(),
        from_node: asker.node.clone(),
        to: check.to.clone(),
        to_node: check.to_node.clone(),
        family: check.family,
        outcome: Outcome::Passed,
        measured: Measured::default(),
        findings: Vec::new(),
    }
}

fn unknown(check: &Check, asker: &Asker, why: &str) -> Checked {
    let finding = Finding {
        code: "pod-silent".to_owned(),
        text: format!("pod {}: {why}", asker.name),
        remedy: format!(
            "run it again with --keep, then: kubectl describe pod {} (in the run's namespace), kubectl logs {}; an image of \
             another release is given with --image",
            asker.name, asker.name
        ),
    };
    Checked { outcome: Outcome::Unknown, findings: vec![finding], ..checked(check, asker) }
}

fn judged(namespace: &str, check: &Check, asker: &Asker, answers: &[Answer]) -> Checked {
    let (mut all, mut faults) = (checked(check, asker), BTreeMap::<Fault, Vec<&str>>::new());
    for (question, answer) in check.questions.iter().zip(answers) {
        let ask = match question {
            Question::Server { ask, .. } => Some(*ask),
            Question::Name { .. } => None,
        };
        let outcome = match (answer, ask) {
            (Answer::Times(times), Some(Ask::Tcp)) => {
                all.measured.tcp = Some((*times).into());
                Outcome::Passed
            }
            (Answer::Times(times), Some(Ask::Udp)) => {
                all.measured.udp = Some((*times).into());
                Outcome::Passed
            }
            (Answer::Rate(rate), Some(Ask::Rate)) => {
                all.measured.bytes_per_second = Some(*rate);
                Outcome::Passed
            }
            (Answer::Quiet, Some(Ask::NoTcp | Ask::NoUdp)) | (Answer::Named, None) => Outcome::Passed,
            (Answer::NoDns, None) => Outcome::Skipped,
            (Answer::Fault(fault), ask) => {
                let protocols: &mut Vec<_> = faults.entry(*fault).or_default();
                protocols.push(ask.map_or("DNS", text::protocol));
                // What was not asked, or could not be, is not known.
                if matches!(fault, Fault::Late | Fault::Local) { Outcome::Unknown } else { Outcome::Failed }
            }
            (answer, ask) => {
                all.findings.push(Finding {
                    code: "answer-unfit".to_owned(),
                    text: format!("{answer:?} is no answer to {ask:?}"),
                    remedy: "the image is of another release: give one of this release with --image"
                        .to_owned(),
                });
                Outcome::Unknown
            }
        };
        all.outcome = all.outcome.max(outcome);
    }
    // One of each kind, by whatever protocols.
    all.findings.extend(faults.into_iter().map(|(fault, protocols)| {
        let (code, what) = words(fault);
        let text = format!("{}: {what}", protocols.join(", "));
        Finding { code: code.to_owned(), text, remedy: remedy(namespace, check, asker, fault) }
    }));
    all
}

const fn words(fault: Fault) -> (&'static str, &'static str) {
    match fault {
        Fault::Silent => ("silent", "no answer"),
        Fault::Refused => ("refused", "refused"),
        Fault::NoRoute => ("no-route", "no way there, says the node or a router"),
        Fault::Stranger => ("stranger", "another pod than the one that has this address answered"),
        Fault::SomeSilent => ("some-silent", "some of the pods behind it answered, others never"),
        Fault::Broken => ("broken", "a connection came about and broke off"),
        Fault::Lossy => ("lossy", "more than one of twenty datagrams did not come back"),
        Fault::Answered => ("answered", "it was answered, though a NetworkPolicy denies it"),
        Fault::NamesSilent => ("names-silent", "no server of names answered"),
        Fault::NameUnknown => ("name-unknown", "the Service's name is not known"),
        Fault::NameWrong => {
            ("name-wrong", "the Service's name stands for other addresses than the Service has")
        }
        Fault::Local => ("local", "the pod could not ask"),
        Fault::Late => ("late", "there was no time left to ask"),
    }
}

fn remedy(namespace: &str, check: &Check, asker: &Asker, fault: Fault) -> String {
    let (from, to) = (&asker.name, &check.to);
    let (here, there) = (&asker.node, check.to_node.as_deref().unwrap_or("another node"));
    let nodes = if here == there { here.clone() } else { format!("{here} and {there}") };
    let explain = format!(
        "hawser policy explain {namespace}/{from} {namespace}/{to} --port {PORT} (while it runs, or with --keep)"
    );
    match fault {
        Fault::Answered => format!(
            "hawser status: the data path of {nodes} has to be enforced (dataPath: enforce); {explain}; the annotation \
             hawser.dev/policy=audit on the namespace, or a ClusterNetworkPolicy that accepts, lets it through, too"
        ),
        Fault::Stranger => {
            "two pods have one address: hawser doctor names claims of nodes to the same prefix; look for another CNI's leftovers".to_owned()
        }
        Fault::NamesSilent => {
            "kubectl -n kube-system get pods,endpointslices -l k8s-app=kube-dns: do they run, and on a node that this one reaches?".to_owned()
        }
        Fault::NameUnknown | Fault::NameWrong => {
            "see the log of the cluster's DNS (kubectl -n kube-system logs -l k8s-app=kube-dns): does it reach the API server?".to_owned()
        }
        Fault::Lossy => format!("hawser doctor names losses and MTUs of {nodes}; look for a full link or CPU"),
        Fault::Local => format!("something keeps programs of {here} from using sockets: see the audit log of seccomp, SELinux or AppArmor there"),
        Fault::Late => "give it more time with --timeout, fewer nodes, or less --throughput-seconds".to_owned(),
        Fault::Silent | Fault::Refused | Fault::NoRoute | Fault::SomeSilent | Fault::Broken => match check.kind {
            Kind::AcrossNodes | Kind::HostAcrossNodes => format!(
                "let UDP 51880 and 51881 pass between {here} and {there}, both ways; hawser doctor says whether the two have shaken hands, \
                 and names MTUs that do not fit"
            ),
            Kind::OneNode => format!("see the log of mesh-agent on {here}, and hawser doctor; {explain}"),
            Kind::HostOneNode => format!(
                "look for a firewall of {here} in its chains input and output (nft list ruleset), and see the log of mesh-agent there"
            ),
            Kind::Service | Kind::Name => format!(
                "kubectl -n {namespace} get endpointslices (with --keep): are all servers in it? If they are, see the log of mesh-agent on \
                 {here}; where the servers themselves are silent, mend that first"
            ),
            Kind::PolicyAllows => format!("{explain}: another policy denies it, or it is not in force yet: hawser status"),
            Kind::PolicyDeniesPod | Kind::PolicyDeniesPort | Kind::PolicyDeniesEgress => {
                format!("this pod reaches nobody: see the log of mesh-agent on {here}")
            }
        },
    }
}

/// Whether a pod of this role measures, and so runs alone.
pub const fn measures(role: Role) -> bool {
    matches!(role, Role::Asker | Role::Host)
}

#[cfg(test)]
mod tests;
