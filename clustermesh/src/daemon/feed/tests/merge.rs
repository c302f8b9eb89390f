//! What really merges views of clusters (stores, feeds, sessions), held against [`Mirrors`], which says what a merge is.

use mesh_core::clusters::{Mirrors, Stamped};
use proptest::prelude::*;

use super::*;

const NAMES: [&str; 3] = ["east", "north", "west"];

type Moment = (Version, ClusterState);

/// What a cluster was, one state after the other.
fn history() -> impl Strategy<Value = Vec<Moment>> {
    let change = (0..KINDS, 0u8..6, 0u8..3, any::<bool>());
    prop::collection::vec((change, 0u8..4), 1..12).prop_map(|steps| {
        let (mut version, mut state) = (Version { incarnation: 1, sequence: 0 }, ClusterState::default());
        let mut moments = vec![(version, state.clone())];
        for ((kind, which, value, delete), leader) in steps {
            let object = object(kind, which, value);
            state.apply(if delete { Change::Delete(object.key()) } else { Change::Put(object) });
            let Version { incarnation, sequence } = version;
            version = if leader == 0 {
                Version { incarnation: incarnation + 1, sequence: 0 }
            } else {
                Version { incarnation, sequence: sequence + 1 }
            };
            moments.push((version, state.clone()));
        }
        moments
    })
}

/// Three servers of one cluster that mirror three others; each has heard some moments of them, in any order and again.
type Hearings = Vec<(usize, usize, prop::sample::Index)>;

/// A follower goes to a server, hears so many messages, and is cut.
type Visits = Vec<(usize, usize)>;

fn told((version, state): &Moment, from: &ClusterState) -> (At, Vec<Change>) {
    ((*version).into(), from.changes_to(state))
}

fn server() -> Clusters {
    let mut made = Clusters::new(cluster("here"), Millis(0));
    made.join(&NAMES.map(cluster), Millis(0));
    made
}

/// What a server has, as a merge has it.
fn view(server: &Clusters) -> Mirrors {
    let mut view = Mirrors::new();
    for name in NAMES.map(cluster) {
        if let Some(store) = server.store(&name) {
            let (version, state) = (store.at().version, Arc::new(store.state().clone()));
            view.offer(name, Stamped { version, state });
        }
    }
    view
}

fn known(session: &Session) -> Mirrors {
    let mut view = Mirrors::new();
    for name in NAMES.map(cluster) {
        if let Some((version, state)) = session.state(&name) {
            view.offer(name, Stamped { version, state: Arc::new(state.clone()) });
        }
    }
    view
}

/// Hears at most so much of a server.
fn visit(session: &mut Session, at: &Clusters, most: usize) -> Vec<Told> {
    let mut feed = Feed::new(Reach::Others, session.begin());
    let messages = std::iter::from_fn(|| feed.next(at, Millis(PATIENCE))).take(most).collect::<Vec<_>>();
    messages.into_iter().flat_map(|message| session.hear(message).unwrap().told).collect()
}

fn merged(a: &Mirrors, b: &Mirrors) -> Mirrors {
    let mut both = a.clone();
    both.merge(b.clone());
    both
}

proptest! {
    /// Stores: of what a mirror is told the latest counts, in whatever order and however often it comes.
    #[test]
    fn a_store_is_the_latest_of_what_it_was_told(
        histories in prop::array::uniform3(history()),
        hearings in prop::collection::vec((0usize..3, any::<prop::sample::Index>()), 0..20),
    ) {
        let (mut store, mut reference) = (server(), Mirrors::new());
        for (of, moment) in hearings {
            let (name, moment) = (cluster(NAMES[of]), moment.get(&histories[of]));
            let before = store.store(&name).map(|store| store.state().clone()).unwrap_or_default();
            let (at, changes) = told(moment, &before);
            let newer = reference.offer(name.clone(), Stamped { version: moment.0, state: Arc::new(moment.1.clone()) });
            prop_assert_eq!(store.changed(&name, at, changes), newer);
        }
        prop_assert_eq!(view(&store), reference);
    }

    /// Sessions: whoever hears several servers, cut off and resumed anywhere, has the merge of what they have; it does not
    /// matter in which order, how often, or by way of whom.
    #[test]
    fn following_is_a_merge(
        histories in prop::array::uniform3(history()),
        hearings in prop::collection::vec((0usize..3, 0usize..3, any::<prop::sample::Index>()), 1..20),
        visits in prop::collection::vec((0usize..3, 0usize..12), 0..12),
        order in Just([0usize, 1, 2]).prop_shuffle(),
    ) {
        let (hearings, visits): (Hearings, Visits) = (hearings, visits);
        let mut servers = [server(), server(), server()];
        for (at, of, moment) in hearings {
            let (name, moment) = (cluster(NAMES[of]), moment.get(&histories[of]));
            let before = servers[at].store(&name).map(|store| store.state().clone()).unwrap_or_default();
            let (version, changes) = told(moment, &before);
            servers[at].changed(&name, version, changes);
        }
        let [a, b, c] = servers.each_ref().map(view);
        let all = merged(&merged(&a, &b), &c);
        let mut session = Session::new(Scope::All);
        for (at, most) in visits {
            let before = known(&session);
            visit(&mut session, &servers[at], most);
            // Nothing goes back, and nothing is there that was nowhere.
            prop_assert_eq!(merged(&before, &known(&session)), known(&session));
            prop_assert_eq!(merged(&known(&session), &all), all.clone());
        }
        // In any order, and the last one again.
        for at in order.into_iter().chain([order[2]]) {
            visit(&mut session, &servers[at], usize::MAX);
        }
        prop_assert_eq!(known(&session), all.clone());
        // By way of a mirror that had heard something already.
        let mut mirror = server();
        let mut between = Session::new(Scope::All);
        for at in order {
            for told in visit(&mut between, &servers[at], usize::MAX) {
                if let Told::Changed { cluster, version, changes } = told {
                    mirror.changed(&cluster, version.into(), changes);
                }
            }
        }
        prop_assert_eq!(view(&mirror), all.clone());
        visit(&mut session, &mirror, usize::MAX);
        prop_assert_eq!(known(&session), all);
    }
}
