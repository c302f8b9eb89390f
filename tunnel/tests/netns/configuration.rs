//! `wg`, the agent's library and rude clients on the configuration socket.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use defguard_wireguard_rs::key::Key;
use defguard_wireguard_rs::peer::Peer;
use defguard_wireguard_rs::{Userspace, WGApi, WireguardInterfaceApi};

use crate::lab::{Keys, Lab, Stream, base64, hex};

#[test]
fn wg_set_on_an_existing_peer_works_live_and_loses_nothing_of_a_stream() {
    let lab = Lab::pair();
    let (a, b) = lab.two();
    a.ns.reaches(&b.inner4());
    let key = base64(&a.keys.public);
    let stream =
        Stream::start((&a.ns, a.inner4().parse().unwrap()), (&b.ns, b.inner4().parse().unwrap()), 200);
    for round in 0..10 {
        stream.flows(20);
        b.ns.run(&format!(
            "wg set hawser0 peer {key} allowed-ips 10.77.0.1/32,fd77::1/128,10.5.{round}.0/24 \
             endpoint 192.0.2.1:51880 persistent-keepalive {round}"
        ));
        stream.flows(5);
        let conf = b.ns.run("wg showconf hawser0");
        b.ns.run_with_input("wg syncconf hawser0 /dev/stdin", &conf);
        stream.flows(5);
        b.ns.run_with_input("wg setconf hawser0 /dev/stdin", &conf);
        assert_eq!(b.ns.run("wg showconf hawser0"), conf);
    }
    let (sent, arrived) = stream.finish();
    assert_eq!(arrived, sent);
    assert_eq!(b.count("handshakes.completed"), 1);
    assert!(b.ns.run("wg show hawser0 allowed-ips").contains("10.5.9.0/24"));
}

#[test]
fn showconf_setconf_and_syncconf_round_trip() {
    let lab = Lab::new(1);
    let a = &lab.nodes[0];
    let (one, two) = (base64(&Keys::new().public), base64(&Keys::new().public));
    let psk = base64(&[7; 32]);
    a.ns.run_with_input(
        &format!(
            "wg set hawser0 listen-port 41000 fwmark 0x20 peer {one} preshared-key /dev/stdin \
             endpoint [2001:db8::9]:51880 persistent-keepalive 25 allowed-ips 10.1.0.0/16,fd01::/16 \
             peer {two} allowed-ips 10.2.0.0/16"
        ),
        &psk,
    );
    let conf = a.ns.run("wg showconf hawser0");
    for part in
        ["ListenPort = 41000", "FwMark = 0x20", &one, &psk, "[2001:db8::9]:51880", "10.1.0.0/16", "= 25"]
    {
        assert!(conf.contains(part), "{part} in {conf}");
    }
    a.ns.run(&format!("wg set hawser0 peer {one} remove"));
    a.ns.run(&format!("wg set hawser0 fwmark 0 peer {two} remove"));
    assert_eq!(a.ns.run("wg show hawser0 peers"), "");
    a.ns.run_with_input("wg setconf hawser0 /dev/stdin", &conf);
    assert_eq!(a.ns.run("wg showconf hawser0"), conf);
    let without = conf.split("[Peer]").filter(|s| !s.contains(&two)).collect::<Vec<_>>().join("[Peer]");
    a.ns.run_with_input("wg syncconf hawser0 /dev/stdin", &without);
    assert_eq!(a.ns.run("wg show hawser0 peers").trim(), one);
}

#[test]
fn a_refused_request_changes_nothing() {
    let lab = Lab::new(1);
    let a = &lab.nodes[0];
    let key = hex(&Keys::new().public);
    let before = a.get();
    for bad in [
        format!("set=1\nlisten_port=41000\npublic_key={key}\nallowed_ip=10.0.0.0/8\nendpoint=nonsense\n"),
        format!("set=1\nreplace_peers=true\nfwmark=1\npublic_key={key}\nno_such_key=1\n"),
    ] {
        assert_eq!(a.uapi(&bad), "errno=-22\n\n");
        assert_eq!(a.get(), before);
    }
    assert_eq!(a.uapi("frobnicate=1\n"), "errno=-71\n\n");
}

#[test]
fn several_requests_on_one_connection_and_several_clients_at_once_are_served() {
    let lab = Lab::new(1);
    let a = &lab.nodes[0];
    let path = a.ns.proc("root/run/wireguard/hawser0.sock");
    let clients: Vec<_> = (0..8)
        .map(|n| {
            let path = path.clone();
            let key = hex(&Keys::new().public);
            std::thread::spawn(move || {
                let mut s = UnixStream::connect(path).unwrap();
                s.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
                for round in 0..10 {
                    let request = format!("set=1\npublic_key={key}\nallowed_ip=10.{n}.{round}.0/24\n\n");
                    s.write_all(request.as_bytes()).unwrap();
                    let mut answer = [0; 9];
                    s.read_exact(&mut answer).unwrap();
                    assert_eq!(&answer, b"errno=0\n\n");
                }
            })
        })
        .collect();
    clients.into_iter().for_each(|c| c.join().unwrap());
    assert_eq!(a.get().matches("allowed_ip=").count(), 80);
}

#[test]
fn clients_that_are_stuck_or_talk_nonsense_harm_nobody() {
    let lab = Lab::new(1);
    let a = &lab.nodes[0];
    let path = a.ns.proc("root/run/wireguard/hawser0.sock");
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let stuck: Vec<_> = (0..20)
        .map(|n| {
            let mut s = UnixStream::connect(&path).unwrap();
            if n % 2 == 0 {
                s.write_all(b"set=1\nlisten_port=").unwrap();
            }
            s
        })
        .collect();
    let mut endless = UnixStream::connect(&path).unwrap();
    endless.set_write_timeout(Some(Duration::from_secs(5))).unwrap();
    while endless.write_all(&[b'a'; 4096]).is_ok() {}
    let start = Instant::now();
    a.ns.run("wg show hawser0");
    assert!(start.elapsed() < Duration::from_secs(2));
    // A client that began a request and does not finish it is sent away.
    let mut waiting = &stuck[0];
    waiting.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let closed = loop {
        match waiting.read(&mut [0; 16]) {
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            other => break other.unwrap(),
        }
    };
    assert_eq!(closed, 0);
}

#[test]
fn the_agents_library_drives_a_device_and_changes_a_living_peer() {
    let lab = Lab::pair();
    let (a, b) = lab.two();
    a.ns.reaches(&b.inner4());
    let (peer, inner) = (a.keys.public, a.inner4());
    let (before, after) = b.ns.within(move || {
        let api = WGApi::<Userspace>::new("hawser0").unwrap();
        let host = api.read_interface_data().unwrap();
        let mut config = Peer::new(Key::new(peer));
        config.set_allowed_ips(vec![format!("{inner}/32").parse().unwrap(), "10.55.0.0/16".parse().unwrap()]);
        config.set_endpoint("192.0.2.1:51880").unwrap();
        config.persistent_keepalive_interval = Some(25);
        api.configure_peer(&config).unwrap();
        api.configure_peer(&config).unwrap();
        let other = Key::new([9; 32]);
        api.configure_peer(&Peer::new(other.clone())).unwrap();
        assert_eq!(api.read_interface_data().unwrap().peers.len(), 2);
        api.remove_peer(&other).unwrap();
        (host, api.read_interface_data().unwrap())
    });
    let (before, after) = (&before.peers[&Key::new(peer)], &after.peers[&Key::new(peer)]);
    assert_eq!(after.allowed_ips.len(), 2);
    assert_eq!(after.persistent_keepalive_interval, Some(25));
    assert_eq!(after.last_handshake, before.last_handshake);
    let age = after.last_handshake.unwrap().elapsed().unwrap();
    assert!(age < Duration::from_secs(30), "a UNIX time, not an age: {age:?}");
    assert!(a.ns.loses_nothing(&b.inner4(), 3));
    assert_eq!(b.count("handshakes.completed"), 1);
}
