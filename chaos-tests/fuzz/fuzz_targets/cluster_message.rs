//! Any bytes as what a server of clusters says: what is read of it is written and read again unchanged.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mesh_core::clusters::Change;
use prost::Message as _;
use proto::clustermesh::{
    FollowRequest, FollowResponse, Message, NodeNames, Say, read_change, read_known, read_object, write_change,
    write_known,
};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(Ok(known)) = FollowRequest::decode(bytes).map(read_known) {
        let written = write_known(known.iter().map(|(cluster, version)| (cluster, *version)));
        assert_eq!(read_known(written), Ok(known));
    }
    let Ok(Ok(Some(message))) = FollowResponse::decode(bytes).map(Message::read) else { return };
    let names = NodeNames::default();
    let changes: Vec<Change> = match &message {
        Message::Of(_, Say::SnapshotPart(objects)) => {
            let read = objects.iter().filter_map(|object| read_object(object.clone(), &names).ok());
            read.map(Change::Put).collect()
        }
        Message::Of(_, Say::Changes { changes, .. }) => {
            changes.iter().filter_map(|change| read_change(change.clone(), &names).ok()).collect()
        }
        _ => Vec::new(),
    };
    for change in changes {
        assert_eq!(read_change(write_change(&change, &names), &names), Ok(change));
    }
    let written = FollowResponse::from(message.clone()).encode_to_vec();
    let read = FollowResponse::decode(written.as_slice()).map(Message::read);
    // Counts of kinds that are not known are not written.
    if !matches!(message, Message::Of(_, Say::SnapshotEnd { .. })) {
        assert_eq!(read, Ok(Ok(Some(message))));
    }
});
