//! A cluster: the lab's API server and a controller with the rights that it is to have, and no others.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clustermesh::Told;
use clustermesh::dns::Names;
use clustermesh::mcs::{Controller, Inputs, Metrics, Settings};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use kubeapi::{Patch, Server, User, Verb};
use mesh_core::clusters::{Borders, Change, ClusterName, ClusterPeer, OwnCluster, Version};
use mesh_core::mcs::derived_name;
use mesh_core::mcs::names::{Answer, Data, RecordKind};
use mesh_core::prefix::Family;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::definitions::DEFINITIONS;

/// Longer than anything takes on a loaded machine.
const DEADLINE: Duration = Duration::from_secs(60);

/// What `clustermesh::mcs` says that it needs.
pub(crate) const ROLE: &str = r#"
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: clustermesh}
rules:
  - {apiGroups: [""], resources: ["namespaces"], verbs: ["get", "list", "watch"]}
  - {apiGroups: [""], resources: ["services"], verbs: ["get", "list", "watch", "create", "patch", "delete"]}
  - apiGroups: ["discovery.k8s.io"]
    resources: ["endpointslices"]
    verbs: ["get", "list", "watch", "create", "patch", "delete"]
  - {apiGroups: ["multicluster.x-k8s.io"], resources: ["serviceexports"], verbs: ["get", "list", "watch"]}
  - apiGroups: ["multicluster.x-k8s.io"]
    resources: ["serviceimports"]
    verbs: ["get", "list", "watch", "create", "patch", "delete"]
  - apiGroups: ["multicluster.x-k8s.io"]
    resources: ["serviceexports/status", "serviceimports/status"]
    verbs: ["patch"]
  - {apiGroups: ["events.k8s.io"], resources: ["events"], verbs: ["create", "patch"]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: clustermesh}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: clustermesh}
subjects: [{kind: ServiceAccount, name: clustermesh, namespace: hawser-system}]
"#;

pub(crate) fn cluster(name: &str) -> ClusterName {
    name.parse().unwrap()
}

/// Number of a cluster in its addresses: `10.N.0.0/16`, `fd00:N::/32`.
fn number(name: &str) -> u8 {
    match name {
        "east" => 1,
        "west" => 2,
        _ => 3,
    }
}

fn cidrs(name: &str) -> Vec<ipnet::IpNet> {
    let number = number(name);
    [format!("10.{number}.0.0/16"), format!("fd00:{number}::/32")].map(|cidr| cidr.parse().unwrap()).to_vec()
}

pub(crate) fn borders(own: &str, peers: &[&str]) -> Arc<Borders> {
    let own = OwnCluster {
        name: cluster(own),
        pod_cidrs: cidrs(own),
        keys: BTreeMap::new(),
        addresses: BTreeMap::new(),
    };
    let peer = |name: &&str| ClusterPeer {
        name: cluster(name),
        created: 1,
        pod_cidrs: cidrs(name),
        addresses: Vec::new(),
        trust_bundle: None,
    };
    let peers: Vec<ClusterPeer> = peers.iter().map(peer).collect();
    Arc::new(Borders::judge(&own, &peers).0)
}

/// How a cluster begins.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) name: &'static str,
    pub(crate) peers: Vec<&'static str>,
    pub(crate) lease: Duration,
    pub(crate) definitions: bool,
    pub(crate) leads: bool,
    /// What its API server has for Services; its pods always have both families.
    pub(crate) service_cidrs: Vec<&'static str>,
}

pub(crate) fn options(name: &'static str, peers: &[&'static str]) -> Options {
    let service_cidrs = vec!["10.96.0.0/16", "fd00:96::/112"];
    Options { name, peers: peers.to_vec(), lease: DEADLINE, definitions: true, leads: true, service_cidrs }
}

pub(crate) struct Lab {
    pub(crate) options: Options,
    pub(crate) server: Server,
    pub(crate) names: Arc<Names>,
    pub(crate) told: mpsc::Sender<Told>,
    pub(crate) leads: watch::Sender<bool>,
    published: Option<mpsc::UnboundedReceiver<Vec<Change>>>,
    controller: JoinHandle<()>,
    borders: watch::Sender<Option<Arc<Borders>>>,
    // Held, or the controller would hear that nobody has anything to say any more.
    _serving: watch::Sender<bool>,
}

struct Running {
    names: Arc<Names>,
    told: mpsc::Sender<Told>,
    leads: watch::Sender<bool>,
    published: mpsc::UnboundedReceiver<Vec<Change>>,
    controller: JoinHandle<()>,
    borders: watch::Sender<Option<Arc<Borders>>>,
    serving: watch::Sender<bool>,
}

async fn start(server: &Server, options: &Options) -> Running {
    let user = User::service_account("hawser-system", "clustermesh");
    let kubeconfig = Kubeconfig::from_yaml(&server.kubeconfig(&user)).unwrap();
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    let (told, heard) = mpsc::channel(64);
    let (borders, border) = watch::channel(Some(borders(options.name, &options.peers)));
    let (leads, lead) = watch::channel(options.leads);
    let (serving, serves) = watch::channel(true);
    let (publish, published) = mpsc::unbounded_channel();
    let names = Arc::new(Names::new());
    let controller = Controller {
        client: Client::try_from(config).unwrap(),
        settings: Settings {
            cluster: cluster(options.name),
            families: Family::BOTH.into(),
            pod_cidrs: cidrs(options.name),
            lease: u64::try_from(options.lease.as_millis()).unwrap(),
        },
        inputs: Inputs { told: heard, borders: border, leads: lead, serving: serves },
        publish: move |changes| drop(publish.send(changes)),
        names: Arc::clone(&names),
        metrics: Metrics::default(),
        instance: "clustermesh-0".into(),
    };
    let controller = tokio::spawn(controller.run());
    Running { names, told, leads, published, controller, borders, serving }
}

impl Lab {
    pub(crate) async fn new(options: Options) -> Self {
        let cidrs = options.service_cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect();
        let server = Server::builder().service_cidrs(cidrs).start().await.unwrap();
        server.store().apply_manifests(ROLE).unwrap();
        for name in ["hawser-system", "demo"] {
            let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
            server.store().create(&namespace).unwrap();
        }
        if options.definitions {
            define(&server);
        }
        let running = start(&server, &options).await;
        Self::with(server, options, running)
    }

    fn with(server: Server, options: Options, running: Running) -> Self {
        Self {
            options,
            server,
            names: running.names,
            told: running.told,
            leads: running.leads,
            published: Some(running.published),
            controller: running.controller,
            borders: running.borders,
            _serving: running.serving,
        }
    }

    /// Another controller, that knows nothing, in the place of this one.
    pub(crate) async fn restart(&mut self) {
        self.controller.abort();
        assert!((&mut self.controller).await.unwrap_err().is_cancelled());
        let Running { names, told, leads, published, controller, borders, serving } =
            start(&self.server, &self.options).await;
        (self.names, self.told, self.leads, self.published) = (names, told, leads, Some(published));
        (self.controller, self.borders, self._serving) = (controller, borders, serving);
    }

    pub(crate) fn published(&mut self) -> mpsc::UnboundedReceiver<Vec<Change>> {
        self.published.take().expect("asked for once")
    }

    /// `kubectl apply`.
    pub(crate) fn apply(&self, object: Value) {
        self.server.store().apply_manifests(&object.to_string()).unwrap();
    }

    pub(crate) fn delete(&self, resource: &str, name: &str) {
        self.server.store().delete(resource, Some("demo"), name).unwrap();
    }

    pub(crate) fn patch(&self, resource: &str, name: &str, body: Value) {
        self.server.store().patch(resource, Some("demo"), name, &Patch::Merge(body)).unwrap();
    }

    pub(crate) fn export(&self, name: &str, spec: Value) {
        self.apply(json!({"apiVersion": "multicluster.x-k8s.io/v1beta1", "kind": "ServiceExport",
            "metadata": {"name": name, "namespace": "demo"}, "spec": spec}));
    }

    pub(crate) fn service(&self, name: &str, spec: Value) {
        let mut all = json!({"selector": {"app": name}, "ports": [{"name": "tcp", "port": 42}], "ipFamilies": ["IPv4"]});
        merge(&mut all, spec);
        self.apply(json!({"apiVersion": "v1", "kind": "Service",
            "metadata": {"name": name, "namespace": "demo"}, "spec": all}));
    }

    /// Slice of own pods of a service, as Kubernetes' controller would make it.
    pub(crate) fn slice(&self, service: &str, hosts: &[(u8, Option<&str>)]) {
        let net = number(self.options.name);
        let endpoints: Vec<Value> = hosts
            .iter()
            .map(|(host, hostname)| {
                json!({"addresses": [format!("10.{net}.0.{host}")], "conditions": {"ready": true}, "hostname": hostname})
            })
            .collect();
        self.apply(json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": format!("{service}-x"), "namespace": "demo", "labels": {
                "kubernetes.io/service-name": service,
                "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io"}},
            "addressType": "IPv4", "ports": [{"name": "tcp", "port": 8042, "protocol": "TCP"}], "endpoints": endpoints}));
    }

    pub(crate) fn find(&self, resource: &str, name: &str) -> Option<Value> {
        self.server.store().find(resource, Some("demo"), name)
    }

    pub(crate) fn import(&self, name: &str) -> Option<Value> {
        self.find("serviceimports", name)
    }

    pub(crate) fn derived(&self, name: &str) -> Option<Value> {
        self.find("services", &derived_name(name))
    }

    /// Slices of an import whose endpoints are in `cluster`.
    pub(crate) fn slices(&self, import: &str, cluster: &str) -> Vec<Value> {
        let all: Vec<Value> = self.server.store().list("endpointslices", Some("demo")).unwrap();
        let is = |slice: &Value, label: &str, value: &str| slice["metadata"]["labels"][label] == value;
        all.into_iter()
            .filter(|slice| {
                is(slice, "multicluster.kubernetes.io/service-name", import)
                    && is(slice, "multicluster.kubernetes.io/source-cluster", cluster)
            })
            .collect()
    }

    /// Status and reason of a condition of an export or import.
    pub(crate) fn condition(&self, resource: &str, name: &str, kind: &str) -> Option<(String, String)> {
        let object = self.find(resource, name)?;
        let all = object["status"]["conditions"].as_array()?;
        let one = all.iter().find(|one| one["type"] == kind)?;
        Some((one["status"].as_str()?.to_owned(), one["reason"].as_str()?.to_owned()))
    }

    pub(crate) fn is(&self, name: &str, kind: &str, status: &str, reason: &str) -> bool {
        self.condition("serviceexports", name, kind) == Some((status.to_owned(), reason.to_owned()))
    }

    /// What is answered about addresses of a name; none: it is too early to say.
    pub(crate) fn ask_of(&self, names: &Names, name: &str) -> Option<Answer> {
        let labels: Vec<&[u8]> = name.split('.').map(str::as_bytes).collect();
        names.answer(&labels, RecordKind::A)
    }

    /// What a name has, as text; none: there is no such name.
    pub(crate) fn ask(&self, name: &str, kind: RecordKind) -> Option<Vec<String>> {
        let labels: Vec<&[u8]> = name.split('.').map(str::as_bytes).collect();
        let text = |data: &Data| match data {
            Data::A(ip) => ip.to_string(),
            Data::Aaaa(ip) => ip.to_string(),
            Data::Srv { port, target, .. } => format!("{port} {target}"),
            Data::Txt(text) => text.clone(),
            Data::Soa { .. } => "soa".to_owned(),
        };
        match self.names.answer(&labels, kind)? {
            Answer::Found { answers, .. } => Some(answers.iter().map(|one| text(&one.data)).collect()),
            Answer::NoData(_) => Some(Vec::new()),
            Answer::NxDomain(_) | Answer::Refused => None,
        }
    }

    /// Writes that somebody did, Events left out.
    pub(crate) fn writes(&self) -> u64 {
        let all = self.server.faults().all_requests();
        let wrote = |verb: &Verb| matches!(verb, Verb::Create | Verb::Update | Verb::Patch | Verb::Delete);
        all.iter().filter(|((verb, what), _)| wrote(verb) && what != "events").map(|(_, count)| count).sum()
    }

    /// These are the ClusterPeers now.
    pub(crate) fn joined(&self, peers: &[&str]) {
        self.borders.send_replace(Some(borders(self.options.name, peers)));
    }

    /// The administrator deletes a ClusterPeer.
    pub(crate) async fn gone(&self, from: &str) {
        let peers: Vec<&str> = self.options.peers.iter().copied().filter(|peer| *peer != from).collect();
        self.joined(&peers);
        self.tell(Told::Gone { cluster: cluster(from) }).await;
    }

    pub(crate) async fn tell(&self, told: Told) {
        self.told.send(told).await.unwrap();
    }

    pub(crate) async fn changed(&self, from: &str, changes: Vec<Change>) {
        self.tell(Told::Changed { cluster: cluster(from), version: Version::default(), changes }).await;
    }
}

pub(crate) fn define(server: &Server) {
    for definition in DEFINITIONS {
        server.store().apply_manifests(definition).unwrap();
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.controller.abort();
    }
}

fn merge(target: &mut Value, patch: Value) {
    json_patch::merge(target, &patch);
}

/// Waits until it holds, and panics with `what` when it takes too long.
pub(crate) async fn eventually(what: &str, mut probe: impl FnMut() -> bool) {
    let until = async {
        while !probe() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(tokio::time::timeout(DEADLINE, until).await.is_ok(), "{what}: not within {DEADLINE:?}");
}

/// Two clusters that tell each other, as long as the line holds.
pub(crate) struct Pair {
    pub(crate) east: Lab,
    pub(crate) west: Lab,
    line: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<()>>,
}

impl Pair {
    pub(crate) async fn new(lease: Duration) -> Self {
        let [east, west] = [options("east", &["west"]), options("west", &["east"])];
        Self::of(Options { lease, ..east }, Options { lease, ..west }).await
    }

    pub(crate) async fn of(east: Options, west: Options) -> Self {
        let lease = east.lease;
        let (mut east, mut west) = (Lab::new(east).await, Lab::new(west).await);
        let line = Arc::new(AtomicBool::new(true));
        let tasks = vec![
            tokio::spawn(carry("east", east.published(), west.told.clone(), Arc::clone(&line), lease / 4)),
            tokio::spawn(carry("west", west.published(), east.told.clone(), Arc::clone(&line), lease / 4)),
        ];
        Self { east, west, line, tasks }
    }

    pub(crate) fn both(&self) -> [&Lab; 2] {
        [&self.east, &self.west]
    }

    /// Cuts the line, or joins it again.
    pub(crate) fn line(&self, holds: bool) {
        self.line.store(holds, Ordering::SeqCst);
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// What the exchange does: carries changes in order, and says every now and then that the cluster is there.
async fn carry(
    from: &'static str,
    mut published: mpsc::UnboundedReceiver<Vec<Change>>,
    to: mpsc::Sender<Told>,
    line: Arc<AtomicBool>,
    interval: Duration,
) {
    let mut heard = tokio::time::interval(interval);
    let mut backlog = Vec::new();
    let mut complete = false;
    loop {
        let word = tokio::select! {
            changes = published.recv() => {
                let Some(changes) = changes else { return };
                backlog.extend(changes);
                complete = true;
                false
            }
            _ = heard.tick() => true,
        };
        if !line.load(Ordering::SeqCst) || !complete {
            continue;
        }
        let cluster = cluster(from);
        if !word || !backlog.is_empty() {
            let changes = std::mem::take(&mut backlog);
            let told = Told::Changed { cluster: cluster.clone(), version: Version::default(), changes };
            if to.send(told).await.is_err() {
                return;
            }
        }
        if word && to.send(Told::Heard { cluster }).await.is_err() {
            return;
        }
    }
}
