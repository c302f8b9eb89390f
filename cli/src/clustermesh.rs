//! `hawser clustermesh join`: makes two clusters known to each other, from two kubeconfigs.

use std::fmt;
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use k8s_openapi::api::core::v1::{ConfigMap, Node, Service};
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams};
use mesh_core::clusters::ServerAddress;
use mesh_core::numbers::NAMESPACE;
use serde::Serialize;
use serde_json::{Value, json};

use crate::api::{Access, ApiError, Asked, Cluster, JOINER};
use crate::output::{self, EXIT_CODES, Form, Progress, Verdict, line, section};

mod sides;

pub(crate) use sides::configured;
pub use sides::{JoinProblem, Side, peers};

/// For each answer of an API.
const ANSWER: Duration = Duration::from_secs(20);
/// Pause between two looks.
const LOOK: Duration = Duration::from_secs(1);
/// Who writes ClusterPeers, for `managedFields`.
const MANAGER: &str = "hawser-clustermesh-join";

/// What to do with clusters.
#[derive(Debug, Subcommand)]
pub enum ClustermeshCommand {
    /// Makes two clusters known to each other: a ClusterPeer in each. Both run clustermesh already.
    Join(JoinArgs),
}

/// Which clusters, and where they are reached.
#[derive(Args, Debug)]
#[command(after_help = EXIT_CODES)]
pub struct JoinArgs {
    /// A kubeconfig of the other cluster.
    #[arg(long, value_name = "FILE")]
    remote_kubeconfig: Option<PathBuf>,
    /// A context of it; without --remote-kubeconfig of the same kubeconfig as the first cluster's.
    #[arg(long, value_name = "NAME", required_unless_present = "remote_kubeconfig")]
    remote_context: Option<String>,
    /// Where the other cluster reaches this one's clustermesh, host:port, best first; without it by its Service: the load
    /// balancer, else the node port on nodes that are Ready.
    #[arg(long = "address", value_name = "HOST:PORT")]
    addresses: Vec<ServerAddress>,
    /// The same of the other cluster.
    #[arg(long = "remote-address", value_name = "HOST:PORT")]
    remote_addresses: Vec<ServerAddress>,
    /// Print both ClusterPeers, write nothing.
    #[arg(long)]
    dry_run: bool,
    /// Seconds to wait until both are connected; 0: not at all. Exit code 4 where they are not by then.
    #[arg(long, default_value_t = 60)]
    timeout: u64,
    #[command(flatten)]
    access: Access,
    /// Form of the output.
    #[arg(short, long, value_enum, default_value_t)]
    output: Form,
}

/// Why clusters are not joined.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// An API gives nothing.
    #[error("{place}: {source}")]
    Api {
        /// Which cluster.
        place: Place,
        /// Why.
        source: Box<ApiError>,
    },
    /// They do not fit together, or one is not ready for it.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Problems(Vec<JoinProblem>),
    /// One was written, and the other could not be.
    #[error(
        "{source}; ClusterPeer {written} in this cluster is written already; join again when that is mended"
    )]
    Half {
        /// The one that was.
        written: String,
        /// Why.
        source: Box<JoinError>,
    },
    /// The output cannot be written.
    #[error("could not write: {0}")]
    Output(#[from] std::io::Error),
}

/// One of the two clusters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// That of `--kubeconfig` and `--context`.
    Here,
    /// That of `--remote-kubeconfig` and `--remote-context`.
    Remote,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Here => "this cluster",
            Self::Remote => "the other cluster",
        })
    }
}

/// What was done.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Joined {
    format: &'static str,
    written: bool,
    connected: bool,
    /// Why they are not connected, where that was waited for in vain.
    waiting: Vec<String>,
    /// The ClusterPeer in each cluster, by the name of the cluster that it is in.
    cluster_peers: std::collections::BTreeMap<String, Value>,
}

pub(crate) fn resource() -> ApiResource {
    ApiResource {
        group: "hawser.dev".to_owned(),
        version: "v1alpha1".to_owned(),
        api_version: "hawser.dev/v1alpha1".to_owned(),
        kind: "ClusterPeer".to_owned(),
        plural: "clusterpeers".to_owned(),
    }
}

const fn asked(verb: &'static str, resource: &'static str, namespaced: bool) -> Asked {
    Asked { verb, resource, namespace: if namespaced { Some(NAMESPACE) } else { None } }
}

struct Way {
    place: Place,
    cluster: Cluster,
}

impl Way {
    async fn to(place: Place, access: &Access) -> Result<Self, JoinError> {
        let cluster = access.cluster(JOINER, ANSWER).await;
        let cluster = cluster.map_err(|source| JoinError::Api { place, source: Box::new(source) })?;
        Ok(Self { place, cluster })
    }

    async fn within<T>(
        &self,
        asked: Asked,
        work: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, JoinError> {
        self.said(self.cluster.within(asked, work).await)
    }

    fn said<T>(&self, answer: Result<T, ApiError>) -> Result<T, JoinError> {
        answer.map_err(|source| JoinError::Api { place: self.place, source: Box::new(source) })
    }

    /// Everything that concerns a ClusterPeer of this cluster elsewhere.
    async fn read(&self, addresses: &[ServerAddress]) -> Result<Side, JoinError> {
        let maps: Api<ConfigMap> = Api::namespaced(self.cluster.client.clone(), NAMESPACE);
        let services: Api<Service> = Api::namespaced(self.cluster.client.clone(), NAMESPACE);
        let config = self.within(asked("get", "configmaps", true), maps.get_opt("hawser-config")).await?;
        let trust =
            self.within(asked("get", "configmaps", true), maps.get_opt("hawser-clustermesh-trust")).await?;
        let service = self.within(asked("get", "services", true), services.get_opt("clustermesh")).await?;
        let nodes: Vec<Node> = self.said(self.cluster.all_of_cluster("nodes").await)?;
        let peers = self.cluster.all_dynamic(&resource(), ("clusterpeers.hawser.dev", None)).await;
        Ok(Side::read(
            self.place,
            config.as_ref(),
            trust.as_ref(),
            service.as_ref(),
            &nodes,
            &self.said(peers)?,
            addresses,
        ))
    }

    async fn write(&self, object: &Value) -> Result<(), JoinError> {
        let api: Api<DynamicObject> = Api::all_with(self.cluster.client.clone(), &resource());
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        let parameters = PatchParams::apply(MANAGER).force();
        let patch = Patch::Apply(object);
        self.within(asked("patch", "clusterpeers.hawser.dev", false), api.patch(name, &parameters, &patch))
            .await?;
        Ok(())
    }

    /// What its conditions say if they are not true, or of an earlier spec.
    async fn waiting(&self, name: &str) -> Result<Option<String>, JoinError> {
        let api: Api<DynamicObject> = Api::all_with(self.cluster.client.clone(), &resource());
        let object = self.within(asked("get", "clusterpeers.hawser.dev", false), api.get(name)).await?;
        Ok(unconnected(&object).map(|why| format!("{}, ClusterPeer {name}: {why}", self.place)))
    }
}

/// Why a ClusterPeer is not connected; none: it is.
pub(crate) fn unconnected(peer: &DynamicObject) -> Option<String> {
    let conditions = peer.data["status"]["conditions"].as_array().cloned().unwrap_or_default();
    waiting(&conditions, peer.metadata.generation)
}

/// Why a ClusterPeer of this generation is not connected, by its conditions; none: it is.
fn waiting(conditions: &[Value], generation: Option<i64>) -> Option<String> {
    ["Accepted", "Connected"].into_iter().find_map(|kind| {
        let of_now = |condition: &&Value| {
            condition["type"] == kind && condition["observedGeneration"].as_i64() == generation
        };
        let Some(condition) = conditions.iter().find(of_now) else {
            return Some("clustermesh has not looked at it yet".to_owned());
        };
        let text = |field: &str| condition[field].as_str().unwrap_or_default();
        (condition["status"] != "True").then(|| format!("{}: {}", text("reason"), text("message")))
    })
}

/// Why two clusters are not connected, as far as it is known; empty: they are. An API that does not answer for a moment has taken nothing
/// back of what was written.
fn not_yet(looked: [Result<Option<String>, JoinError>; 2]) -> Vec<String> {
    let why = |looked: Result<Option<String>, JoinError>| {
        looked.unwrap_or_else(|error| Some(format!("{error}; how far it is there is not known")))
    };
    looked.into_iter().filter_map(why).collect()
}

/// Joins two clusters. 0: both are connected, or nothing was to be waited for; 4: both know each other, and are not connected in time.
///
/// # Errors
/// See [`JoinError`].
pub async fn join(args: &JoinArgs, out: &mut (dyn Write + Send)) -> Result<u8, JoinError> {
    let remote = Access {
        kubeconfig: args.remote_kubeconfig.clone().or_else(|| args.access.kubeconfig.clone()),
        context: args.remote_context.clone(),
    };
    let here = Way::to(Place::Here, &args.access).await?;
    let there = Way::to(Place::Remote, &remote).await?;
    let (a, b) = (here.read(&args.addresses).await?, there.read(&args.remote_addresses).await?);
    let [for_here, for_there] = peers(&a, &b).map_err(JoinError::Problems)?;
    let mut joined = Joined {
        format: "hawser.dev/join/v1",
        written: false,
        connected: false,
        waiting: Vec::new(),
        cluster_peers: [(a.name(), for_here.clone()), (b.name(), for_there.clone())].into(),
    };
    let names = [&for_here, &for_there]
        .map(|object| object["metadata"]["name"].as_str().unwrap_or_default().to_owned());
    if !args.dry_run {
        here.write(&for_here).await?;
        there
            .write(&for_there)
            .await
            .map_err(|error| JoinError::Half { written: names[0].clone(), source: Box::new(error) })?;
        joined.written = true;
    }
    if joined.written && args.timeout > 0 {
        let begun = Instant::now();
        let progress = Progress::on_terminal();
        loop {
            let looked = futures::future::join(here.waiting(&names[0]), there.waiting(&names[1])).await;
            joined.waiting = not_yet(looked.into());
            joined.connected = joined.waiting.is_empty();
            if joined.connected || begun.elapsed() >= Duration::from_secs(args.timeout) {
                break;
            }
            progress.say(&joined.waiting.join("; "));
            tokio::time::sleep(LOOK).await;
        }
    }
    output::write(out, args.output, &joined, || render(&joined, [&a.name(), &b.name()], args.timeout))?;
    let verdict = if joined.waiting.is_empty() { Verdict::Holds } else { Verdict::Incomplete };
    Ok(verdict.exit_code())
}

/// What was done, for people; `seconds`: for so long it was waited.
fn render(joined: &Joined, [a, b]: [&str; 2], seconds: u64) -> String {
    if !joined.written {
        return joined.cluster_peers.iter().map(|(cluster, object)| manifest(cluster, object)).collect();
    }
    let mut out = String::new();
    let state = if joined.connected { "are joined and connected" } else { "know each other" };
    line(&mut out, &format!("Clusters {a} and {b} {state}."));
    if !joined.waiting.is_empty() {
        let title = format!("Not connected after {seconds} s");
        section(&mut out, &title, joined.waiting.clone());
        line(&mut out, "");
        line(
            &mut out,
            "Both ClusterPeers are written, and clustermesh goes on trying; see kubectl describe clusterpeer.",
        );
    }
    out
}

/// For `kubectl apply` in that cluster.
fn manifest(cluster: &str, object: &Value) -> String {
    let yaml = serde_saphyr::to_string(object).unwrap_or_default();
    format!("# In cluster {cluster}:\n{}\n---\n", yaml.trim_end())
}

/// A ClusterPeer for the cluster `of`.
fn object(of: &Side) -> Value {
    json!({
        "apiVersion": "hawser.dev/v1alpha1",
        "kind": "ClusterPeer",
        "metadata": {"name": of.name()},
        "spec": of.spec(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_is_connected_by_the_conditions_of_its_present_spec_alone() {
        let condition = |kind: &str, status: &str, generation: i64| json!({"type": kind, "status": status, "reason": "R", "message": "m", "observedGeneration": generation});
        let not_looked = Some("clustermesh has not looked at it yet".to_owned());
        let refused = Some("R: m".to_owned());
        let cases = [
            (vec![], &not_looked),
            (vec![condition("Accepted", "True", 2), condition("Connected", "True", 2)], &None),
            (vec![condition("Accepted", "True", 1), condition("Connected", "True", 1)], &not_looked),
            (vec![condition("Accepted", "True", 2), condition("Connected", "True", 1)], &not_looked),
            (vec![condition("Accepted", "False", 2), condition("Connected", "True", 2)], &refused),
            (vec![condition("Accepted", "True", 2), condition("Connected", "False", 2)], &refused),
        ];
        for (conditions, expected) in cases {
            assert_eq!(waiting(&conditions, Some(2)), *expected, "{conditions:?}");
        }
    }

    #[test]
    fn an_api_that_hiccups_while_it_is_waited_is_not_known_yet_and_no_failure() {
        let hiccup = || {
            let asked = asked("get", "clusterpeers.hawser.dev", false);
            let source = ApiError::Refused { asked, why: "etcd leader changed".to_owned() };
            JoinError::Api { place: Place::Remote, source: Box::new(source) }
        };
        assert!(not_yet([Ok(None), Ok(None)]).is_empty());
        assert_eq!(not_yet([Ok(Some("R: m".to_owned())), Ok(None)]), ["R: m"]);
        assert_eq!(
            not_yet([Ok(None), Err(hiccup())]),
            [
                "the other cluster: could not get clusterpeers.hawser.dev: etcd leader changed; how far it is there is not known"
            ]
        );
    }

    #[test]
    fn what_is_written_is_told_whether_it_is_connected_or_not() {
        let mut joined = Joined {
            format: "f",
            written: true,
            connected: true,
            waiting: Vec::new(),
            cluster_peers: [("west".to_owned(), json!({"kind": "ClusterPeer"}))].into(),
        };
        let shown = |joined: &Joined| render(joined, ["west", "east"], 60);
        assert_eq!(shown(&joined), "Clusters west and east are joined and connected.\n");
        joined.connected = false;
        assert_eq!(shown(&joined), "Clusters west and east know each other.\n");
        joined.waiting = vec!["this cluster, ClusterPeer east: R: m".to_owned()];
        let text = shown(&joined);
        for words in ["know each other.", "Not connected after 60 s", "ClusterPeer east: R: m", "are written"]
        {
            assert!(text.contains(words), "no {words:?} in {text}");
        }
        joined.written = false;
        assert!(shown(&joined).starts_with("# In cluster west:\nkind: ClusterPeer"), "{}", shown(&joined));
    }
}
