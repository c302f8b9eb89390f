//! Two leaders of one cluster: one is cut off from its API server, and another was elected meanwhile.

use clustermesh::daemon::metrics::Metrics;
use clustermesh::daemon::{Settings, Standing, run};
use clustermesh::follow::{AUDIENCE, Target};
use clustermesh::session::Scope;
use clustermesh::tls::{Roots, agent_config};
use kubeapi::User;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::world::*;

/// One of several replicas of a cluster's `clustermesh`, with a line of its own to the API server.
struct Replica {
    /// Where followers reach it.
    line: Line,
    api: Line,
    standing: watch::Receiver<Standing>,
    _stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Replica {
    async fn start(of: &Cluster, identity: &str) -> Self {
        let api = Line::new().await;
        let kubeconfig = of.api.kubeconfig(&User::admin());
        let client = client(&kubeconfig.replace(&server(&kubeconfig), &api.address.to_string())).await;
        api.lead_to(server(&kubeconfig).parse().unwrap());
        let settings = Settings { identity: identity.to_owned(), ..of.settings() };
        let (standing_tx, standing) = watch::channel(Standing::default());
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(run(settings, client, Vec::new(), Metrics::new(), standing_tx, stopped));
        Self { line: Line::new().await, api, standing, _stop: stop, task }
    }

    async fn serves(&self) {
        eventually("a replica serves", || self.standing.borrow().serves.is_some()).await;
        self.line.lead_to(self.standing.borrow().serves.unwrap());
    }
}

/// Address and port of the server in a kubeconfig.
fn server(kubeconfig: &str) -> String {
    let (_, rest) = kubeconfig.split_once("https://").unwrap();
    rest.split(|c: char| c.is_whitespace() || c == '"').next().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_cut_off_from_its_api_server_keeps_no_follower_when_another_leads() {
    let (east, mut west) = (Cluster::start("east", 1).await, Cluster::start("west", 2).await);
    west.stop().await;
    let first = Replica::start(&west, "first").await;
    first.serves().await;
    let second = Replica::start(&west, "second").await;
    let addresses = [first.line.address, second.line.address];
    west.join_with(&east);
    east.join("west", &["10.2.0.0/16"], &addresses, &west.bundle());
    let neighbour = east.agent();
    let tls = agent_config(cluster("west"), Roots::parse(&west.bundle()).unwrap()).unwrap();
    let token = Some(west.token(AUDIENCE, "mesh-agent"));
    let addresses = addresses.map(address).to_vec();
    let own = Agent::start(Target { addresses, tls, token, renewed: None }, Scope::All);
    let both = |wanted: &[&str]| [&neighbour, &own].iter().all(|agent| agent.pods("west") == wanted);
    eventually("all is known", || both(&["10.2.1.2 web"])).await;

    first.api.cut();
    second.serves().await;
    eventually("the first one knows that another may lead", || first.standing.borrow().cut_off).await;
    assert!(first.standing.borrow().serves.is_some(), "it cannot know whether one does, and goes on");
    west.delete_pod(2);
    west.pod(3, "new");
    eventually("followers find the second one", || both(&["10.2.1.3 new"])).await;

    // Whoever knows the second one is not taken in by the first.
    second.line.cut();
    west.pod(4, "newer");
    eventually("it is told so at once", || east.metrics.interruptions("EarlierLeader") > 0).await;
    assert_eq!(east.metrics.interruptions("Silent"), 0);
    second.line.heal();
    eventually("and comes back", || both(&["10.2.1.3 new", "10.2.1.4 newer"])).await;
    first.api.heal();
    eventually("the first one ends", || first.standing.borrow().leads.is_none()).await;
    assert!(!first.standing.borrow().cut_off);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_api_server_is_away_for_all_the_leader_goes_on_and_nobody_loses_anything() {
    let (east, mut west) = (Cluster::start("east", 1).await, Cluster::start("west", 2).await);
    west.stop().await;
    let only = Replica::start(&west, "only").await;
    only.serves().await;
    west.join_with(&east);
    east.join("west", &["10.2.0.0/16"], &[only.line.address], &west.bundle());
    let agent = east.agent();
    eventually("all is known", || agent.pods("west") == ["10.2.1.2 web"]).await;
    let incarnation = only.standing.borrow().leads;
    only.api.cut();
    eventually("it is cut off", || only.standing.borrow().cut_off).await;
    let beats = agent.read(|heard| heard.heard.get(&cluster("west")).copied().unwrap_or_default());
    eventually("it is heard nevertheless", || {
        agent.read(|heard| heard.heard.get(&cluster("west")).copied().unwrap_or_default() >= beats + 12)
    })
    .await;
    only.api.heal();
    eventually("it leads on", || !only.standing.borrow().cut_off).await;
    assert_eq!(only.standing.borrow().leads, incarnation);
    west.pod(3, "new");
    eventually("what is new", || agent.pods("west").len() == 2).await;
    assert_eq!(east.metrics.interruptions("Silent"), 0);
    agent.read(|heard| assert_eq!((heard.gone.len(), heard.ended.len()), (0, 0)));
}
