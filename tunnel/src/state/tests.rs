use super::*;

fn key(n: u8) -> PublicKey {
    PublicKey::new([n; 32])
}

/// A derivation that tests can read: the public key is the private key.
fn state() -> State {
    State::new(|k| PublicKey::new(*k.expose()))
}

fn peer(n: u8, change: impl FnOnce(&mut PeerRequest)) -> PeerRequest {
    let mut p = PeerRequest::new(key(n));
    change(&mut p);
    p
}

fn request(peers: Vec<PeerRequest>) -> SetRequest {
    SetRequest { peers, ..SetRequest::default() }
}

fn psk(n: u8) -> Option<Option<PresharedKey>> {
    Some(PresharedKey::new([n; 32]))
}

#[test]
fn a_changed_endpoint_keepalive_or_prefix_does_not_end_the_session() {
    let mut s = state();
    s.apply(&request(vec![peer(1, |p| p.preshared_key = psk(9))]));
    let endpoint = "192.0.2.1:1".parse().unwrap();
    let changes = s.apply(&request(vec![peer(1, |p| {
        p.endpoint = Some(endpoint);
        p.persistent_keepalive = Some(5);
        p.preshared_key = psk(9);
        p.prefixes = vec![PrefixOp::Clear];
    })]));
    let expect = Changes {
        endpoints: vec![(key(1), endpoint)],
        keepalives: [key(1)].into(),
        routes: vec![RouteOp::Clear(key(1))],
        ..Changes::default()
    };
    assert_eq!(changes, expect);
}

#[test]
fn another_pre_shared_key_ends_the_session() {
    let mut s = state();
    s.apply(&request(vec![peer(1, |_| ())]));
    assert_eq!(s.apply(&request(vec![peer(1, |p| p.preshared_key = psk(9))])).rekeyed, [key(1)].into());
    assert_eq!(s.apply(&request(vec![peer(1, |p| p.preshared_key = Some(None))])).rekeyed, [key(1)].into());
}

#[test]
fn replace_peers_keeps_the_sessions_of_peers_that_are_named_again() {
    let mut s = state();
    s.apply(&request(vec![peer(1, |p| p.persistent_keepalive = Some(5)), peer(2, |_| ())]));
    let changes = s.apply(&SetRequest { replace_peers: true, ..request(vec![peer(1, |_| ())]) });
    assert_eq!(changes.removed, [key(2)].into());
    assert!(changes.added.is_empty() && changes.rekeyed.is_empty());
    assert_eq!(changes.keepalives, [key(1)].into(), "what is not repeated is reset");
    assert_eq!(s.peers().keys().copied().collect::<Vec<_>>(), [key(1)]);
}

#[test]
fn replace_peers_with_update_only_removes_the_peer_since_it_is_no_longer_there() {
    let mut s = state();
    s.apply(&request(vec![peer(1, |_| ())]));
    let again = peer(1, |p| p.update_only = true);
    let changes = s.apply(&SetRequest { replace_peers: true, ..request(vec![again]) });
    assert_eq!(changes.removed, [key(1)].into());
}

#[test]
fn removed_and_created_again_starts_afresh() {
    let mut s = state();
    s.apply(&request(vec![peer(1, |p| p.preshared_key = psk(9))]));
    let changes = s.apply(&request(vec![peer(1, |p| p.remove = true), peer(1, |_| ())]));
    assert_eq!((changes.removed, changes.added), ([key(1)].into(), [key(1)].into()));
    assert_eq!(s.peers()[&key(1)], PeerConfig::default());
}

#[test]
fn created_and_removed_leaves_nothing_but_the_move_of_its_prefixes() {
    let mut s = state();
    let prefix = "10.0.0.0/8".parse().unwrap();
    let changes = s.apply(&request(vec![
        peer(1, |p| {
            p.prefixes = vec![PrefixOp::Add(prefix)];
            p.endpoint = Some("192.0.2.1:1".parse().unwrap());
        }),
        peer(1, |p| p.remove = true),
    ]));
    let routes = vec![RouteOp::Insert(prefix, key(1)), RouteOp::Clear(key(1))];
    assert_eq!(changes, Changes { routes, ..Changes::default() });
}

#[test]
fn update_only_creates_nothing() {
    let mut s = state();
    assert_eq!(s.apply(&request(vec![peer(1, |p| p.update_only = true)])), Changes::default());
}

#[test]
fn a_device_is_never_its_own_peer() {
    let mut s = state();
    s.apply(&request(vec![peer(1, |_| ()), peer(2, |_| ())]));
    let own = SetRequest { private_key: Some(PrivateKey::new([1; 32])), ..SetRequest::default() };
    let changes = s.apply(&own);
    assert!(changes.identity);
    assert_eq!(changes.removed, [key(1)].into());
    assert_eq!(s.apply(&request(vec![peer(1, |_| ())])), Changes::default());
    assert!(!s.apply(&own).identity, "the same key again changes nothing");
}

#[test]
fn a_request_for_more_peers_than_allowed_is_refused() {
    let many = |n: usize| {
        let key = |i: usize| {
            let mut k = [0; 32];
            k[..8].copy_from_slice(&(i as u64).to_le_bytes());
            PublicKey::new(k)
        };
        request((0..n).map(|i| PeerRequest::new(key(i))).collect())
    };
    let s = state();
    assert!(s.check(&many(MAX_PEERS)).is_ok());
    assert!(matches!(s.check(&many(MAX_PEERS + 1)), Err(UapiError::TooManyPeers { .. })));
}
