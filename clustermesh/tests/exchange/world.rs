//! What every test needs: clusters, lines between them that can be cut, agents.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use clustermesh::Told;
use clustermesh::daemon::authority::{CERTIFICATE, SECRET, TRUST};
use clustermesh::daemon::metrics::Metrics;
use clustermesh::daemon::{Settings, Standing, run};
use clustermesh::follow::{AUDIENCE, Event, Events, Target, follow};
use clustermesh::session::{Scope, Session};
use clustermesh::tls::{Roots, agent_config};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use kubeapi::{Server, User};
use mesh_core::announcement::{Announcement, Epoch, SlotAnnouncement};
use mesh_core::clusters::{ClusterName, ClusterState, ServerAddress, Version};
use mesh_core::key::PublicKey;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

pub(crate) use super::line::Line;
pub(crate) use super::log::Log;

/// Longer than anything takes on a loaded machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// Polls until `probe` holds.
pub(crate) async fn eventually(what: &str, probe: impl FnMut() -> bool) {
    within(DEADLINE, what, probe).await;
}

/// As [`eventually`], for what takes its time on any machine.
pub(crate) async fn within(deadline: Duration, what: &str, mut probe: impl FnMut() -> bool) {
    let polled = tokio::time::timeout(deadline, async {
        while !probe() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    assert!(polled.await.is_ok(), "{what} did not happen within {deadline:?}");
}

pub(crate) fn cluster(name: &str) -> ClusterName {
    name.parse().unwrap()
}

/// A running daemon.
struct Daemon {
    stop: watch::Sender<bool>,
    standing: watch::Receiver<Standing>,
    task: JoinHandle<()>,
}

/// One cluster with its API server.
pub(crate) struct Cluster {
    pub(crate) name: &'static str,
    /// `10.<net>.0.0/16`.
    pub(crate) net: u8,
    pub(crate) api: Server,
    pub(crate) client: Client,
    pub(crate) metrics: Metrics,
    /// Where others reach it.
    pub(crate) line: Line,
    daemon: Option<Daemon>,
    directory: tempfile::TempDir,
}

pub(crate) fn announcement(key: u8) -> Announcement {
    let slot = |number: u8, port| SlotAnnouncement {
        epoch: Epoch(u64::from(number)),
        public_key: PublicKey::from_bytes([number; 32]),
        port,
        draining: false,
    };
    Announcement {
        slots: [slot(2 * key + 11, 51880), slot(2 * key + 12, 51881)],
        endpoints: Vec::new(),
        kem: None,
        kem_required: false,
        host_traffic: false,
    }
}

/// Of whom a kubeconfig is.
pub(crate) async fn client(kubeconfig: &str) -> Client {
    let kubeconfig = Kubeconfig::from_yaml(kubeconfig).unwrap();
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    Client::try_from(config).unwrap()
}

pub(crate) const CRD: &str = include_str!("../../../deploy/crds/clusterpeers.yaml");

impl Cluster {
    /// A cluster with one node and one pod, and the daemon serving it.
    pub(crate) async fn start(name: &'static str, net: u8) -> Self {
        let api = Server::builder().start().await.unwrap();
        let client = client(&api.kubeconfig(&User::admin())).await;
        api.store().apply_manifests(CRD).unwrap();
        let mut made = Self {
            name,
            net,
            api,
            client,
            metrics: Metrics::new(),
            line: Line::new().await,
            daemon: None,
            directory: tempfile::tempdir().unwrap(),
        };
        made.create(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "labels": {"of": name}}}));
        if made.api.store().find("namespaces", None, "hawser-system").is_none() {
            made.create(
                json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "hawser-system"}}),
            );
        }
        made.node(1);
        made.pod(2, "web");
        made.serve().await;
        made
    }

    pub(crate) fn create(&self, object: Value) -> Value {
        self.api.store().create(&object).unwrap()
    }

    pub(crate) fn node(&self, number: u8) {
        let text = keyring::codec::encode(&announcement(self.net.wrapping_mul(8).wrapping_add(number) % 50));
        self.create(json!({"apiVersion": "v1", "kind": "Node",
            "metadata": {"name": format!("{}-n{number}", self.name), "annotations": {"hawser.dev/wireguard": text}},
            "spec": {"podCIDRs": [format!("10.{}.{number}.0/24", self.net)]},
            "status": {"addresses": [{"type": "InternalIP", "address": format!("192.0.{}.{number}", self.net)}]}}));
    }

    /// A pod on node 1.
    pub(crate) fn pod(&self, host: u8, app: &str) {
        self.create(json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": format!("p{host}"), "namespace": "shop", "labels": {"app": app},
                "annotations": {"hawser.dev/ips": format!("10.{}.1.{host}", self.net)}},
            "spec": {"containers": [{"name": "c", "image": "i"}]}}));
    }

    pub(crate) fn delete_pod(&self, host: u8) {
        self.api.store().delete_now("pods", Some("shop"), &format!("p{host}")).unwrap();
    }

    /// Of its daemon.
    pub(crate) fn settings(&self) -> Settings {
        Settings {
            cluster: cluster(self.name),
            pod_cidrs: vec![format!("10.{}.0.0/16", self.net).parse().unwrap()],
            listen: "127.0.0.1:0".parse().unwrap(),
            identity: "replica".to_owned(),
            agents: vec!["system:serviceaccount:hawser-system:mesh-agent".to_owned()],
        }
    }

    /// Starts the daemon and waits until it serves.
    pub(crate) async fn serve(&mut self) {
        let (standing_tx, standing) = watch::channel(Standing::default());
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(run(
            self.settings(),
            self.client.clone(),
            Vec::new(),
            self.metrics.clone(),
            standing_tx,
            stopped,
        ));
        eventually("serving", || standing.borrow().serves.is_some()).await;
        self.line.lead_to(standing.borrow().serves.unwrap());
        self.daemon = Some(Daemon { stop, standing, task });
    }

    /// Where the server itself is.
    pub(crate) fn serves(&self) -> SocketAddr {
        self.daemon.as_ref().unwrap().standing.borrow().serves.unwrap()
    }

    pub(crate) async fn stop(&mut self) {
        let daemon = self.daemon.take().unwrap();
        daemon.stop.send_replace(true);
        tokio::time::timeout(DEADLINE, daemon.task).await.unwrap().unwrap();
    }

    pub(crate) fn incarnation(&self) -> u64 {
        self.daemon.as_ref().unwrap().standing.borrow().leads.unwrap()
    }

    /// What others trust.
    pub(crate) fn bundle(&self) -> String {
        let map = self.api.store().find("configmaps", Some("hawser-system"), TRUST).unwrap();
        map["data"][CERTIFICATE].as_str().unwrap().to_owned()
    }

    /// Certificate and key of the authority.
    pub(crate) fn authority(&self) -> clustermesh::daemon::authority::Authority {
        use base64::Engine as _;
        let secret = self.api.store().find("secrets", Some("hawser-system"), SECRET).unwrap();
        let text = |key: &str| {
            let bytes =
                base64::engine::general_purpose::STANDARD.decode(secret["data"][key].as_str().unwrap());
            String::from_utf8(bytes.unwrap()).unwrap()
        };
        clustermesh::daemon::authority::Authority::load(&cluster(self.name), text("ca.crt"), &text("ca.key"))
            .unwrap()
    }

    /// Makes a ClusterPeer here.
    pub(crate) fn join(&self, name: &str, cidrs: &[&str], addresses: &[SocketAddr], bundle: &str) {
        let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        self.create(
            json!({"apiVersion": "hawser.dev/v1alpha1", "kind": "ClusterPeer", "metadata": {"name": name},
            "spec": {"podCIDRs": cidrs, "addresses": addresses, "trustBundle": bundle}}),
        );
    }

    pub(crate) fn join_with(&self, other: &Self) {
        let cidr = format!("10.{}.0.0/16", other.net);
        // Of two replicas the first does not lead.
        let nobody = "127.0.0.1:1".parse().unwrap();
        self.join(other.name, &[&cidr], &[nobody, other.line.address], &other.bundle());
    }

    /// Writes another trust bundle into a ClusterPeer.
    pub(crate) fn trust(&self, peer: &str, bundle: &str) {
        let patch = kubeapi::Patch::Merge(json!({"spec": {"trustBundle": bundle}}));
        self.api.store().patch("clusterpeers.hawser.dev", None, peer, &patch).unwrap();
    }

    /// `True Reason message` of a condition of a ClusterPeer.
    pub(crate) fn condition(&self, peer: &str, kind: &str) -> String {
        let Some(object) = self.api.store().find("clusterpeers.hawser.dev", None, peer) else {
            return String::new();
        };
        let all = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let found = all.iter().find(|one| one["type"] == kind).cloned().unwrap_or_default();
        let text = |field: &str| found[field].as_str().unwrap_or_default().to_owned();
        format!("{} {} {}", text("status"), text("reason"), text("message"))
    }

    /// An agent's token.
    pub(crate) fn token(&self, audience: &str, account: &str) -> PathBuf {
        let user = User::service_account("hawser-system", account);
        let token = self.api.tokens().issue_for(audience, user);
        let path = self.directory.path().join(format!("token-{audience}-{account}"));
        std::fs::write(&path, token).unwrap();
        path
    }

    /// The token of the agent on a node.
    pub(crate) fn token_of_node(&self, node: &str) -> PathBuf {
        let token = self.api.tokens().issue_for(AUDIENCE, User::agent_of_node(node, "uid"));
        let path = self.directory.path().join(format!("token-of-{node}"));
        std::fs::write(&path, token).unwrap();
        path
    }

    /// An agent of this cluster that follows its clustermesh.
    pub(crate) fn agent(&self) -> Agent {
        self.agent_with(Some(self.token(AUDIENCE, "mesh-agent")))
    }

    pub(crate) fn agent_with(&self, token: Option<PathBuf>) -> Agent {
        let tls = agent_config(cluster(self.name), Roots::parse(&self.bundle()).unwrap()).unwrap();
        Agent::start(
            Target { addresses: vec![address(self.line.address)], tls, token, renewed: None },
            Scope::All,
        )
    }
}

pub(crate) fn address(address: SocketAddr) -> ServerAddress {
    address.to_string().parse().unwrap()
}

/// Two and two.
pub(crate) fn mesh(clusters: &[&Cluster]) {
    for one in clusters {
        for other in clusters.iter().filter(|other| other.name != one.name) {
            one.join_with(other);
        }
    }
}

/// What a follower has heard.
#[derive(Default)]
pub(crate) struct Heard {
    pub(crate) states: BTreeMap<ClusterName, ClusterState>,
    pub(crate) versions: BTreeMap<ClusterName, Version>,
    pub(crate) heard: BTreeMap<ClusterName, usize>,
    /// When each was heard last, and the longest time between two such moments.
    pub(crate) silence: BTreeMap<ClusterName, (Instant, Duration)>,
    pub(crate) gone: Vec<ClusterName>,
    pub(crate) complete: usize,
    pub(crate) changes: usize,
    pub(crate) ended: Vec<String>,
    pub(crate) connected: usize,
}

/// A follower.
pub(crate) struct Agent {
    pub(crate) heard: Arc<Mutex<Heard>>,
    tasks: [JoinHandle<()>; 2],
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Agent {
    pub(crate) fn start(target: Target, scope: Scope) -> Self {
        let heard: Arc<Mutex<Heard>> = Arc::default();
        let (tell, mut told) = mpsc::channel(16);
        let noted = Arc::clone(&heard);
        let events: Events = Arc::new(move |event| match event {
            Event::Connected { .. } => noted.lock().unwrap().connected += 1,
            Event::Ended { why, .. } => noted.lock().unwrap().ended.push(why.reason().to_owned()),
            Event::Speaks | Event::Missing(_) => {}
            Event::LeftOut(left_out) => panic!("{left_out}"),
        });
        let following = tokio::spawn(follow(watch::channel(target).1, Session::new(scope), tell, events));
        let hears = Arc::clone(&heard);
        let hearing = tokio::spawn(async move {
            while let Some(told) = told.recv().await {
                let mut heard = hears.lock().unwrap();
                match told {
                    Told::Changed { cluster, version, changes } => {
                        heard.changes += changes.len();
                        heard.versions.insert(cluster.clone(), version);
                        let state = heard.states.entry(cluster).or_default();
                        for change in changes {
                            assert!(state.apply(change), "touches what is equal");
                        }
                    }
                    Told::Heard { cluster } => {
                        let now = Instant::now();
                        let (last, longest) =
                            heard.silence.entry(cluster.clone()).or_insert((now, Duration::ZERO));
                        *longest = (*longest).max(now - *last);
                        *last = now;
                        *heard.heard.entry(cluster).or_default() += 1;
                    }
                    Told::Gone { cluster } => {
                        heard.states.remove(&cluster);
                        heard.gone.push(cluster);
                    }
                    Told::Complete => heard.complete += 1,
                }
            }
        });
        Self { heard, tasks: [following, hearing] }
    }

    pub(crate) fn read<T>(&self, read: impl FnOnce(&Heard) -> T) -> T {
        read(&self.heard.lock().unwrap())
    }

    /// Addresses of pods that are known of a cluster, with the value of their label `app`.
    pub(crate) fn pods(&self, of: &str) -> Vec<String> {
        self.read(|heard| {
            let Some(state) = heard.states.get(&cluster(of)) else { return vec!["unknown".to_owned()] };
            let pods = state.endpoints.iter();
            pods.map(|(address, endpoint)| {
                format!("{address} {}", state.label_sets[&endpoint.labels].labels["app"])
            })
            .collect()
        })
    }
}
