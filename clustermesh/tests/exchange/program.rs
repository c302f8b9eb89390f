//! The program itself.

use std::net::SocketAddr;
use std::process::Stdio;

use clustermesh::follow::{AUDIENCE, Target};
use clustermesh::session::Scope;
use clustermesh::tls::{Roots, agent_config};
use kubeapi::User;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::world::*;

/// Ports of the loopback address that nobody has at the moment.
fn free() -> [SocketAddr; 3] {
    let listeners: [std::net::TcpListener; 3] =
        std::array::from_fn(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.each_ref().map(|listener| listener.local_addr().unwrap())
}

async fn get(address: SocketAddr, path: &str) -> String {
    let Ok(mut tcp) = TcpStream::connect(address).await else { return String::new() };
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    let mut answer = String::new();
    drop(tcp.write_all(request.as_bytes()).await);
    drop(tcp.read_to_string(&mut answer).await);
    answer
}

/// A replica of a cluster's `clustermesh` in a process of its own.
struct Replica {
    process: tokio::process::Child,
    listen: SocketAddr,
    health: SocketAddr,
    metrics: SocketAddr,
    _directory: tempfile::TempDir,
}

impl Replica {
    fn start(of: &Cluster, identity: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = directory.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let text = format!("clusterName: {}\npodCIDRs: [10.{}.0.0/16]\nmtu: null\n", of.name, of.net);
        let config = file("config.yaml", &text);
        let kubeconfig = file("kubeconfig", &of.api.kubeconfig(&User::admin()));
        let [listen, health, metrics] = free();
        let process = tokio::process::Command::new(env!("CARGO_BIN_EXE_clustermesh"))
            .arg("--config")
            .arg(config)
            .arg("--kubeconfig")
            .arg(kubeconfig)
            .args(["--identity", identity, "--log", "json", "--pod-ips", "127.0.0.1,fd00::1"])
            .arg("--listen-address")
            .arg(listen.to_string())
            .arg("--health-address")
            .arg(health.to_string())
            .arg("--metrics-address")
            .arg(metrics.to_string())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        Self { process, listen, health, metrics, _directory: directory }
    }

    /// Until a metric is that.
    async fn shows(&self, metric: &str) {
        let shown = async {
            while !get(self.metrics, "/metrics").await.contains(metric) {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        };
        assert!(tokio::time::timeout(DEADLINE, shown).await.is_ok(), "{metric} is not shown");
    }
}

/// To which pod the Service `clustermesh` leads.
fn front(of: &Cluster) -> Option<String> {
    let slice =
        of.api.store().find("endpointslices.discovery.k8s.io", Some("hawser-system"), "clustermesh-ipv4")?;
    Some(slice["endpoints"][0]["targetRef"]["name"].as_str()?.to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_leader_is_killed_the_other_replica_goes_on_where_it_was() {
    let (east, mut west) = (Cluster::start("east", 1).await, Cluster::start("west", 2).await);
    west.stop().await;
    let mut first = Replica::start(&west, "pod-1");
    first.shows("hawser_clustermesh_leader 1").await;
    let second = Replica::start(&west, "pod-2");
    second.shows("hawser_clustermesh_leader 0").await;
    eventually("the Service leads to who leads", || front(&west).as_deref() == Some("pod-1")).await;
    // A roll-out waits for it; the Service is not its way.
    assert!(get(second.health, "/readyz").await.starts_with("HTTP/1.1 200"), "who waits is ready");
    west.join_with(&east);
    east.join("west", &["10.2.0.0/16"], &[second.listen, first.listen], &west.bundle());
    let agent = east.agent();
    let tls = agent_config(cluster("west"), Roots::parse(&west.bundle()).unwrap()).unwrap();
    let addresses = vec![address(second.listen), address(first.listen)];
    let token = Some(west.token(AUDIENCE, "mesh-agent"));
    let neighbour = Agent::start(Target { addresses, tls, token, renewed: None }, Scope::All);
    eventually("all is known", || {
        agent.pods("west") == ["10.2.1.2 web"] && neighbour.pods("east") == ["10.1.1.2 web"]
    })
    .await;
    eventually("complete", || neighbour.read(|heard| heard.complete > 0)).await;
    let changes = [&agent, &neighbour].map(|one| one.read(|heard| heard.changes));
    first.process.kill().await.unwrap();
    second.shows("hawser_clustermesh_leader 1").await;
    eventually("the Service leads to who leads now", || front(&west).as_deref() == Some("pod-2")).await;
    west.pod(3, "new");
    east.pod(3, "new");
    eventually("the agents of both hear what is new", || {
        agent.pods("west").len() == 2 && neighbour.pods("east").len() == 2
    })
    .await;
    eventually("and of their own", || agent.pods("east").len() == 2 && neighbour.pods("west").len() == 2)
        .await;
    // Two pods with a label set each, and nothing else: nothing was torn down.
    for (one, before) in [&agent, &neighbour].into_iter().zip(changes) {
        one.read(|heard| assert_eq!((heard.changes - before, heard.gone.as_slice()), (4, [].as_slice())));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_program_serves_says_how_it_is_and_ends_in_order() {
    let mut east = Cluster::start("east", 1).await;
    east.stop().await;
    let mut replica = Replica::start(&east, "pod-1");
    let Replica { process: program, listen, health, metrics, .. } = &mut replica;
    let (listen, health, metrics) = (*listen, *health, *metrics);
    let ready = async {
        while !get(health, "/readyz").await.starts_with("HTTP/1.1 200") {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(DEADLINE, ready).await.unwrap();
    assert!(get(health, "/healthz").await.ends_with("ok\n"));
    let tls = agent_config(cluster("east"), Roots::parse(&east.bundle()).unwrap()).unwrap();
    let token = Some(east.token(AUDIENCE, "mesh-agent"));
    let agent =
        Agent::start(Target { addresses: vec![address(listen)], tls, token, renewed: None }, Scope::All);
    eventually("an agent hears it", || agent.pods("east") == ["10.1.1.2 web"]).await;
    let shown = get(metrics, "/metrics").await;
    for metric in ["hawser_clustermesh_leader 1", "hawser_clustermesh_streams{kind=\"agent\"} 1"] {
        assert!(shown.contains(metric), "{metric} in {shown}");
    }
    let lease = || {
        east.api
            .store()
            .find("leases.coordination.k8s.io", Some("hawser-system"), "hawser-clustermesh")
            .unwrap()
    };
    assert_eq!(lease()["spec"]["holderIdentity"], "pod-1");
    eventually("the Service leads to it", || front(&east).as_deref() == Some("pod-1")).await;
    let pid = rustix::process::Pid::from_raw(i32::try_from(program.id().unwrap()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let ended = tokio::time::timeout(DEADLINE, program.wait()).await.unwrap().unwrap();
    assert!(ended.success(), "{ended}");
    eventually("its stream ended with a word", || agent.read(|heard| !heard.ended.is_empty())).await;
    assert_eq!(lease()["spec"]["holderIdentity"], serde_json::Value::Null, "given back");
    assert_eq!(front(&east), None, "nobody is called where it was");
    let mut log = String::new();
    program.stderr.take().unwrap().read_to_string(&mut log).await.unwrap();
    assert!(log.lines().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()), "{log}");
}
