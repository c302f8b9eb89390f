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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_program_serves_says_how_it_is_and_ends_in_order() {
    let mut east = Cluster::start("east", 1).await;
    east.stop().await;
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let config = file("config.yaml", "clusterName: east\npodCIDRs: [10.1.0.0/16]\nmtu: null\n");
    let kubeconfig = file("kubeconfig", &east.api.kubeconfig(&User::admin()));
    let [listen, health, metrics] = free();
    let mut program = tokio::process::Command::new(env!("CARGO_BIN_EXE_clustermesh"))
        .arg("--config")
        .arg(config)
        .arg("--kubeconfig")
        .arg(kubeconfig)
        .args(["--identity", "pod-1", "--log", "json"])
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
    let ready = async {
        while !get(health, "/readyz").await.starts_with("HTTP/1.1 200") {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(DEADLINE, ready).await.unwrap();
    assert!(get(health, "/healthz").await.ends_with("ok\n"));
    let tls = agent_config(cluster("east"), Roots::parse(&east.bundle()).unwrap()).unwrap();
    let token = Some(east.token(AUDIENCE, "mesh-agent"));
    let agent = Agent::start(Target { addresses: vec![address(listen)], tls, token }, Scope::All);
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
    let pid = rustix::process::Pid::from_raw(i32::try_from(program.id().unwrap()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let ended = tokio::time::timeout(DEADLINE, program.wait()).await.unwrap().unwrap();
    assert!(ended.success(), "{ended}");
    eventually("its stream ended with a word", || agent.read(|heard| !heard.ended.is_empty())).await;
    assert_eq!(lease()["spec"]["holderIdentity"], serde_json::Value::Null, "given back");
    let mut log = String::new();
    program.stderr.take().unwrap().read_to_string(&mut log).await.unwrap();
    assert!(log.lines().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()), "{log}");
}
