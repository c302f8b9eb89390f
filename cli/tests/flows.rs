//! `hawser flows` against a real unix socket.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::JoinHandle;

use proto::flows::{Body, Direction, Flow, Kind, Line, Peer, Protocol, Request, TcpFlags, Verdict};
use tempfile::TempDir;

fn flow(node: &str, second: u8, pod: &str, verdict: Verdict) -> Flow {
    let peer = |port| Peer::unknown("10.1.0.5".parse().expect("address"), Some(port));
    Flow {
        time: format!("2026-11-23T10:00:{second:02}Z").parse().expect("time"),
        node_name: node.to_owned(),
        verdict,
        kind: Kind::New,
        drop_reason: None,
        traffic_direction: Direction::Ingress,
        source: Peer { namespace: Some("shop".to_owned()), pod_name: Some(pod.to_owned()), ..peer(1) },
        destination: peer(2),
        protocol: Protocol(6),
        service: None,
        tcp_flags: TcpFlags::NONE,
        is_reply: false,
        rule: None,
        interface: None,
        length: 60,
        epoch: 1,
    }
}

/// One line as an agent writes it.
fn text(flow: Flow) -> String {
    serde_json::to_string(&Line::new(Body::Flow(Box::new(flow)))).expect("json") + "\n"
}

/// An agent for one reader: reads its request, answers as agents do (filter, last), and hands back request and connection.
fn agent(path: &Path, flows: Vec<Flow>) -> JoinHandle<(Request, UnixStream)> {
    let listener = UnixListener::bind(path).expect("bind");
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("accept");
        let mut line = String::new();
        BufReader::new(stream.try_clone().expect("clone")).read_line(&mut line).expect("request");
        let request: Request = serde_json::from_str(&line).expect("request");
        let wanted: Vec<&Flow> = flows.iter().filter(|flow| request.filter.matches(flow)).collect();
        let skip = wanted.len().saturating_sub(usize::try_from(request.last).expect("usize"));
        for flow in &wanted[skip..] {
            stream.write_all(text((*flow).clone()).as_bytes()).expect("write");
        }
        (request, stream)
    })
}

struct Place(TempDir);

impl Place {
    fn new() -> Place {
        Place(TempDir::new().expect("temporary directory"))
    }

    fn socket(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

fn hawser(sockets: &[&PathBuf], arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hawser"));
    command.arg("flows").args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    for socket in sockets {
        command.arg("--socket").arg(socket);
    }
    command
}

fn stdout(output: &Output) -> Vec<String> {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}

#[test]
fn two_agents_recent_flows_come_as_one_list_in_order_of_time() {
    let place = Place::new();
    let (a, b) = (place.socket("a.sock"), place.socket("b.sock"));
    let of = |node: &str, seconds: [u8; 3]| {
        seconds.map(|second| flow(node, second, "web", Verdict::Forwarded)).to_vec()
    };
    let agents = [agent(&a, of("node-a", [1, 4, 5])), agent(&b, of("node-b", [2, 3, 6]))];
    // Dropping the connections ends them: the answer is complete.
    let closing = std::thread::spawn(|| agents.map(|agent| agent.join().map(|(request, _)| request)));
    let lines = stdout(&hawser(&[&a, &b], &["--last", "4"]).output().expect("run"));
    let seen: Vec<(&str, bool)> = lines.iter().map(|line| (&line[17..19], line.contains("node-a"))).collect();
    assert_eq!(seen, [("03", false), ("04", true), ("05", true), ("06", false)]);
    for request in closing.join().expect("agents") {
        let request = request.expect("agent");
        assert_eq!((request.last, request.follow), (4, false));
    }
}

#[test]
fn the_agent_is_asked_for_what_the_user_wants_and_json_is_passed_on_as_it_came() {
    let place = Place::new();
    let socket = place.socket("a.sock");
    let flows = vec![
        flow("a", 1, "web", Verdict::Dropped),
        flow("a", 2, "db", Verdict::Dropped),
        flow("a", 3, "web", Verdict::Forwarded),
    ];
    let wanted = text(flows[0].clone());
    let agent = agent(&socket, flows);
    let closing = std::thread::spawn(|| agent.join().map(|(request, _)| request));
    let output = hawser(&[&socket], &["--drop", "--pod", "shop/web", "-o", "json"]).output().expect("run");
    assert_eq!(stdout(&output), [wanted.trim_end()]);
    let request = closing.join().expect("thread").expect("agent");
    assert!(request.filter.drop);
    assert_eq!(request.filter.pods, ["shop/web".parse().expect("pod")]);
}

/// Kills the program that a failed test would leave behind.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_follower_sees_each_flow_when_it_happens_and_is_told_when_the_agent_ends() {
    let place = Place::new();
    let socket = place.socket("a.sock");
    let agent = agent(&socket, vec![flow("a", 1, "old", Verdict::Forwarded)]);
    let mut running = Running(hawser(&[&socket], &["--follow"]).spawn().expect("run"));
    let (request, mut stream) = agent.join().expect("agent");
    assert_eq!((request.last, request.follow), (0, true));
    let mut lines = BufReader::new(running.0.stdout.take().expect("stdout")).lines();
    for second in 2..5 {
        stream.write_all(text(flow("a", second, "new", Verdict::Forwarded)).as_bytes()).expect("write");
        let line = lines.next().expect("a line").expect("text");
        assert!(line.contains(&format!("10:00:{second:02}.000Z")), "{line}");
    }
    drop(stream);
    let mut errors = String::new();
    running.0.stderr.take().expect("stderr").read_to_string(&mut errors).expect("errors");
    assert!(!running.0.wait().expect("end").success());
    assert!(errors.contains("the agent has ended") && errors.contains("a.sock"), "{errors}");
}

#[test]
fn a_follower_goes_on_with_the_agents_that_are_left() {
    let place = Place::new();
    let (a, b) = (place.socket("a.sock"), place.socket("b.sock"));
    let agents = [agent(&a, Vec::new()), agent(&b, Vec::new())];
    let mut running = Running(hawser(&[&a, &b], &["--follow"]).spawn().expect("run"));
    let [first, mut second] = agents.map(|agent| agent.join().expect("agent").1);
    drop(first);
    let mut errors = BufReader::new(running.0.stderr.take().expect("stderr"));
    let mut warning = String::new();
    errors.read_line(&mut warning).expect("warning");
    assert!(warning.contains("a.sock closed"), "{warning}");
    second.write_all(text(flow("b", 9, "web", Verdict::Forwarded)).as_bytes()).expect("write");
    let mut line = String::new();
    BufReader::new(running.0.stdout.take().expect("stdout")).read_line(&mut line).expect("line");
    assert!(line.contains("10:00:09"), "{line}");
}

#[test]
fn a_reader_that_has_seen_enough_ends_it_without_an_error() {
    let place = Place::new();
    let socket = place.socket("a.sock");
    let agent = agent(&socket, Vec::new());
    let mut running = Running(hawser(&[&socket], &["--follow"]).spawn().expect("run"));
    drop(running.0.stdout.take());
    let (_, mut stream) = agent.join().expect("agent");
    stream.write_all(text(flow("a", 1, "web", Verdict::Forwarded)).as_bytes()).expect("write");
    assert!(running.0.wait().expect("end").success());
}

#[test]
fn where_nobody_listens_the_error_names_the_socket_and_the_remedy() {
    let place = Place::new();
    let absent = place.socket("absent.sock");
    let dead = place.socket("dead.sock");
    drop(UnixListener::bind(&dead).expect("bind"));
    for (socket, words) in [(&absent, "no socket at"), (&dead, "nobody listens on")] {
        let output = hawser(&[socket], &[]).output().expect("run");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && output.stdout.is_empty());
        assert!(
            error.contains(words) && error.contains("mesh-agent") && error.contains("--socket"),
            "{error}"
        );
        assert!(error.contains(&*socket.to_string_lossy()), "{error}");
    }
}

#[test]
fn a_pod_without_a_namespace_is_refused_with_its_remedy() {
    let output = hawser(&[], &["--pod", "web"]).output().expect("run");
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(error.contains("NAMESPACE/NAME") && error.contains("default/web"), "{error}");
}
