use super::world::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_clusters_tell_each_other_and_their_agents_and_say_so_in_the_status() {
    let (east, west) = (Cluster::start("east", 1).await, Cluster::start("west", 2).await);
    let agent = east.agent();
    eventually("the own cluster", || agent.pods("east") == ["10.1.1.2 web"]).await;
    mesh(&[&east, &west]);
    eventually("the other cluster", || agent.pods("west") == ["10.2.1.2 web"]).await;
    west.pod(3, "db");
    eventually("a new pod", || agent.pods("west") == ["10.2.1.2 web", "10.2.1.3 db"]).await;
    west.delete_pod(2);
    eventually("a pod that is gone", || agent.pods("west") == ["10.2.1.3 db"]).await;
    agent.read(|heard| {
        let state = &heard.states[&cluster("west")];
        let node = state.nodes.values().next().unwrap();
        assert_eq!(node.announcement.endpoints, ["192.0.2.1".parse::<std::net::IpAddr>().unwrap()]);
        assert_eq!(state.namespaces["shop"]["of"], "west");
        assert_eq!(heard.versions[&cluster("west")].incarnation, west.incarnation(), "the original version");
    });
    eventually("a beat of both", || agent.read(|heard| heard.heard.len() == 2)).await;
    eventually("conditions", || {
        east.condition("west", "Connected").starts_with("True Connected following 127.0.0.1:")
            && east.condition("west", "Accepted").starts_with("True Accepted")
            && east.condition("west", "Problems").starts_with("False NoProblems")
    })
    .await;
    // The ClusterPeer goes, and with it all that was known; nobody of west is let in any more.
    let refused = east.metrics.refusals("ClusterUnknown");
    east.api.store().delete("clusterpeers.hawser.dev", None, "west").unwrap();
    eventually("the end of a cluster", || agent.read(|heard| heard.gone == [cluster("west")])).await;
    eventually("its refusal", || east.metrics.refusals("ClusterUnknown") > refused).await;
    assert_eq!(agent.pods("east"), ["10.1.1.2 web"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_peer_that_is_made_anew_is_followed_from_the_start() {
    let (east, west) = (Cluster::start("east", 1).await, Cluster::start("west", 2).await);
    mesh(&[&east, &west]);
    let agent = east.agent();
    eventually("all is known", || agent.pods("west") == ["10.2.1.2 web"]).await;
    for times in 1..=3 {
        // Nobody has the time to see that it is away.
        east.api.store().delete("clusterpeers.hawser.dev", None, "west").unwrap();
        east.join_with(&west);
        eventually("it is gone, and all of it known again", || {
            agent.read(|heard| heard.gone.len() == times) && agent.pods("west") == ["10.2.1.2 web"]
        })
        .await;
    }
    assert_eq!(agent.pods("east"), ["10.1.1.2 web"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_three_clusters_one_is_cut_off_and_healed_and_every_change_is_in_all() {
    let clusters =
        [Cluster::start("east", 1).await, Cluster::start("north", 2).await, Cluster::start("west", 3).await];
    mesh(&clusters.each_ref());
    let agents = clusters.each_ref().map(|one| one.agent());
    let all = |wanted: &dyn Fn(&Cluster) -> Vec<String>| {
        agents.iter().all(|agent| clusters.iter().all(|one| agent.pods(one.name) == wanted(one)))
    };
    eventually("all in all", || all(&|one| vec![format!("10.{}.1.2 web", one.net)])).await;
    let snapshots: u64 = clusters.iter().map(|one| one.metrics.snapshots()).sum();
    let changes = agents.each_ref().map(|agent| agent.read(|heard| heard.changes));
    let [east, north, west] = &clusters;
    west.line.cut();
    // West's way to the others is cut, too: they are on another side.
    for other in [east, north] {
        other.line.cut();
    }
    east.line.heal();
    north.line.heal();
    for (number, one) in clusters.iter().enumerate() {
        for host in 10..20 {
            one.pod(host, &format!("new{number}"));
        }
        one.delete_pod(2);
    }
    // Over the lines that are whole, and not over the one that is cut.
    eventually("east hears north", || agents[0].pods("north").len() == 10).await;
    assert_eq!(agents[0].pods("west"), ["10.3.1.2 web"], "what was known stays");
    west.line.heal();
    let wanted = |one: &Cluster| {
        let number = usize::from(one.net) - 1;
        (10..20).map(|host| format!("10.{}.1.{host} new{number}", one.net)).collect()
    };
    eventually("every change in all", || all(&wanted)).await;
    let now: u64 = clusters.iter().map(|one| one.metrics.snapshots()).sum();
    assert_eq!(now, snapshots, "streams went on from their versions");
    // Of each cluster: ten pods, a label set, one pod less and its set: nothing else was touched.
    for (agent, before) in agents.iter().zip(changes) {
        assert_eq!(agent.read(|heard| heard.changes) - before, 3 * 13);
        assert_eq!(agent.read(|heard| heard.gone.len()), 0);
    }
    assert!(west.line.made() > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_of_either_side_touches_nothing_that_is_equal() {
    let (mut east, mut west) = (Cluster::start("east", 1).await, Cluster::start("west", 2).await);
    mesh(&[&east, &west]);
    let agent = east.agent();
    eventually("both", || agent.pods("west") == ["10.2.1.2 web"] && agent.pods("east") == ["10.1.1.2 web"])
        .await;
    eventually("complete", || agent.read(|heard| heard.complete > 0)).await;
    let changes = agent.read(|heard| heard.changes);
    let incarnation = west.incarnation();
    west.stop().await;
    west.serve().await;
    assert!(west.incarnation() > incarnation, "a new leader");
    let reached = |of: &str| agent.read(|heard| heard.versions[&cluster(of)].incarnation);
    eventually("the new leader of west", || reached("west") == west.incarnation()).await;
    east.stop().await;
    // What happens while nobody listens is heard later.
    west.pod(7, "late");
    east.serve().await;
    eventually("the new leader of east", || reached("east") == east.incarnation()).await;
    eventually("the late pod", || agent.pods("west").len() == 2).await;
    eventually("complete again", || agent.read(|heard| heard.complete > 1)).await;
    agent.read(|heard| {
        assert_eq!(heard.changes - changes, 2, "a pod and its label set");
        assert_eq!(heard.gone, []);
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_takes_nothing_up_holds_up_nobody_and_is_told_the_latest() {
    use clustermesh::Told;
    use clustermesh::daemon::Hub;
    use mesh_core::clusters::{Change, ClusterState, LabelSetId, Object, RemoteEndpoint, Version};
    let hub = Hub::new(cluster("east"));
    hub.join(&[cluster("west")]);
    let mut told = hub.subscribe();
    let (west, node) = (cluster("west"), std::sync::Arc::new("n1".parse().unwrap()));
    let put = |host: u8, labels: u64| {
        let endpoint = RemoteEndpoint { node: std::sync::Arc::clone(&node), labels: LabelSetId(labels) };
        Change::Put(Object::Endpoint([10, 2, 0, host].into(), endpoint))
    };
    for sequence in 0..20_000 {
        let version = Version { incarnation: 1, sequence };
        hub.changed(&west, version.into(), vec![put(u8::try_from(sequence % 200).unwrap(), sequence)]);
        if sequence % 1000 == 0 {
            tokio::task::yield_now().await;
        }
    }
    let last = Version { incarnation: 1, sequence: 19_999 };
    let (mut state, mut messages) = (ClusterState::default(), 0);
    let read = async {
        while let Some(one) = told.recv().await {
            messages += 1;
            if let Told::Changed { version, changes, .. } = one {
                for change in changes {
                    state.apply(change);
                }
                if version == last {
                    break;
                }
            }
        }
    };
    tokio::time::timeout(DEADLINE, read).await.unwrap();
    assert_eq!(
        Some(&state),
        hub.read(|clusters| clusters.store(&west).map(|store| store.state().clone())).as_ref()
    );
    assert!(messages <= clustermesh::follow::QUEUE + 50, "{messages} for 20,000 changes");
}
