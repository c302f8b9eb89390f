//! Any row of messages to a follower: whatever a server says, who applies what is told has what the follower has, each change
//! changes something, and versions never go back.
#![no_main]

use clustermesh::Told;
use clustermesh::session::{Scope, Session};
use libfuzzer_sys::fuzz_target;
use mesh_core::clusters::{ClusterName, ClusterState};
use prost::Message as _;
use proto::clustermesh::FollowResponse;

/// Messages of a row.
const MOST: usize = 64;

fuzz_target!(|bytes: &[u8]| {
    let east: ClusterName = "east".parse().expect("as written");
    let mut session = Session::new(Scope::One(east.clone()));
    let (mut heard, mut reached) = (ClusterState::default(), None);
    let mut rest = bytes;
    for _ in 0..MOST {
        let Some((&[first, second], after)) = rest.split_first_chunk() else { return };
        let length = usize::from(u16::from_be_bytes([first & 3, second])).min(after.len());
        // Upper bits: the stream is begun anew before it, or it is of another cluster.
        if first & 0x80 != 0 {
            let known = session.begin();
            assert_eq!(known.get(&east).map(|at| at.version), reached);
        }
        let (message, later) = after.split_at(length);
        rest = later;
        let Ok(mut message) = FollowResponse::decode(message) else { continue };
        if first & 0x40 == 0 {
            message.cluster = "east".to_owned();
        }
        let Ok(outcome) = session.hear(message) else {
            drop(session.begin());
            continue;
        };
        for told in outcome.told {
            match told {
                Told::Changed { cluster, version, changes } => {
                    assert_eq!(cluster, east);
                    assert!(reached <= Some(version));
                    reached = Some(version);
                    for change in changes {
                        assert!(heard.apply(change));
                    }
                }
                Told::Heard { cluster } => assert!(cluster == east && reached.is_some()),
                Told::Gone { .. } => panic!("a cluster does not tell its own end"),
                Told::Complete => {}
            }
        }
        assert_eq!(
            session.state(&east).map(|(version, state)| (version, state.clone())),
            reached.map(|version| (version, heard.clone()))
        );
    }
});
