use std::os::unix::net::UnixStream;

use proptest::prelude::*;

use super::*;

const LOST: &str = r#"{"v":1,"lost":{"time":"2026-11-23T10:00:00.000000000Z","node_name":"a","source":"ring","num_events_lost":3},"new":0}"#;

/// A client whose agent has written `bytes` and closed.
fn client(bytes: &[u8]) -> Client {
    let (stream, mut agent) = UnixStream::pair().expect("pair");
    agent.write_all(bytes).expect("write");
    Client { path: "/a.sock".into(), stream, partial: Vec::new() }
}

/// Everything until the agent's end.
fn read_all(client: &mut Client) -> Result<Vec<Record>, Error> {
    let mut records = Vec::new();
    while client.read(&mut records)? {}
    Ok(records)
}

#[test]
fn every_failure_names_the_socket_and_what_to_do() {
    let long = "x".repeat(MAX_LINE + 2);
    let cases = [
        ("no json\n", "none of the agent's"),
        (r#"{"v":2,"other":1}"#, "middle of a line"),
        ("{\"v\":2,\"other\":1}\n", "version 2, this program reads 1"),
        ("{\"v\":1,\"other\":1}\n", "is this the flow socket"),
        ("{\"v\":1,\"error\":{\"message\":\"no such field\"}}\n", "refuses: no such field"),
        (long.as_str(), "without a newline"),
    ];
    for (bytes, words) in cases {
        let mut client = client(bytes.as_bytes());
        let error = read_all(&mut client).expect_err(words).to_string();
        assert!(error.contains(words) && error.contains("/a.sock"), "{error}");
    }
    let errors = [
        (io::ErrorKind::NotFound, "no socket at /a.sock"),
        (io::ErrorKind::ConnectionRefused, "nobody listens on /a.sock"),
        (io::ErrorKind::PermissionDenied, "as root"),
        (io::ErrorKind::TimedOut, "asking /a.sock failed"),
    ];
    for (kind, words) in errors {
        let error = refusal(Path::new("/a.sock"), "asking", kind.into()).to_string();
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn a_line_keeps_what_this_version_does_not_know() {
    let records = read_all(&mut client(format!("{LOST}\n").as_bytes())).expect("lines");
    assert_eq!(records.iter().map(|record| record.text.as_str()).collect::<Vec<_>>(), [LOST]);
}

proptest! {
    #[test]
    fn lines_are_read_whole_however_they_come(count in 0..20_usize, cut in 1..200_usize) {
        let text = format!("{LOST}\n").repeat(count);
        let (stream, mut agent) = UnixStream::pair().expect("pair");
        let mut client = Client { path: "/a.sock".into(), stream, partial: Vec::new() };
        let mut records = Vec::new();
        for part in text.as_bytes().chunks(cut) {
            agent.write_all(part).expect("write");
            prop_assert!(client.read(&mut records).expect("read"));
        }
        drop(agent);
        prop_assert!(!client.read(&mut records).expect("end"));
        prop_assert_eq!(records.len(), count);
    }
}
