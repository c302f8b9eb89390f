//! DEL: what cannot be done now is left as a note, and nothing else is an error.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use proto::cni::{AttachmentId, Detach, Verb};
use serde_json::json;
use tempfile::TempDir;

use crate::support::{Agent, BINARY, Netns, Reply, call, config, verb, with};

fn id() -> AttachmentId {
    AttachmentId { container_id: "c1".to_owned(), ifname: "eth0".to_owned() }
}

#[test]
fn del_twice_without_netns_and_without_prev_result_succeeds() {
    let agent = Agent::good();
    for netns in ["/proc/self/ns/net", "/gone", "", ""] {
        let output = verb("DEL", netns, &agent.config("0.3.1"));
        assert_eq!((output.exit, output.stdout.as_str()), (0, ""), "{output:?}");
    }
    assert!(agent.got().iter().all(|got| got.netns_inode.is_none() && matches!(got.verb, Verb::Del(_))));
    assert!(!agent.dir.path().join("notes").exists());
}

#[test]
fn del_with_bad_arguments_and_unsupported_keys_still_deletes() {
    let agent = Agent::good();
    let more = json!({"ipam": {"type": "host-local"}, "prevResult": {"ips": "?"}, "runtimeConfig": {"portMappings": 7}});
    let stdin = with(agent.config("1.0.0"), more).to_string();
    let environment =
        [("CNI_COMMAND", "DEL"), ("CNI_CONTAINERID", "c1"), ("CNI_IFNAME", "eth0"), ("CNI_ARGS", "nonsense")];
    assert_eq!(call(BINARY, &environment, stdin.as_bytes()).exit, 0);
    assert_eq!(agent.got().len(), 1);
}

/// DEL against `dir` leaves exactly one note with the whole request.
fn check_note(dir: &TempDir) {
    let output = verb("DEL", "", &config(dir.path(), "1.0.0"));
    assert_eq!((output.exit, output.stdout.as_str()), (0, ""), "{output:?}");
    assert!(output.stderr.contains("left for the agent"), "{output:?}");
    let notes = dir.path().join("notes");
    assert_eq!(fs::metadata(&notes).unwrap().permissions().mode() & 0o7777, 0o700);
    let names: Vec<_> = fs::read_dir(&notes).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, [format!("{}.json", id().veth()).as_str()]);
    let note: Detach = serde_json::from_slice(&fs::read(notes.join(&names[0])).unwrap()).unwrap();
    assert_eq!(note, Detach { id: id(), network: "hawser".to_owned() });
}

#[test]
fn del_with_the_agent_down_leaves_one_note_however_often() {
    let dir = TempDir::new().unwrap();
    check_note(&dir);
    check_note(&dir);
}

#[test]
fn del_with_an_agent_that_misbehaves_or_fails_leaves_a_note() {
    let failing = Agent::failing(5);
    check_note(&failing.dir);
    for behaviour in [|| Reply::Hang, || Reply::Close, || Reply::Raw(b"\0\0\0\x04junk".to_vec())] {
        let agent = Agent::start(move |_, _| behaviour());
        let output = verb("DEL", "", &agent.config("1.0.0"));
        assert_eq!(output.exit, 0, "{output:?}");
        assert!(agent.dir.path().join("notes").join(id().note_name()).exists());
    }
}

#[test]
fn del_whose_note_cannot_be_written_is_code_5() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("notes"), "a file where the directory should be").unwrap();
    let output = verb("DEL", "", &config(dir.path(), "1.0.0"));
    assert_eq!(output.code(), 5, "{output:?}");
}

#[test]
fn del_that_the_agent_takes_removes_an_older_note() {
    let agent = Agent::good();
    let notes = agent.dir.path().join("notes");
    fs::create_dir(&notes).unwrap();
    fs::write(notes.join(id().note_name()), "{}").unwrap();
    assert_eq!(verb("DEL", "", &agent.config("1.0.0")).exit, 0);
    assert_eq!(fs::read_dir(&notes).unwrap().count(), 0);
}

#[test]
fn add_after_a_note_deletes_first_so_that_the_note_cannot_hit_the_new_attachment() {
    let (agent, netns) = (Agent::good(), Netns::new());
    let notes = agent.dir.path().join("notes");
    fs::create_dir(&notes).unwrap();
    fs::write(notes.join(id().note_name()), "{}").unwrap();
    assert_eq!(verb("ADD", &netns.path, &agent.config("1.0.0")).exit, 0);
    let verbs: Vec<_> = agent.got().into_iter().map(|got| got.verb).collect();
    assert!(matches!(verbs.as_slice(), [Verb::Del(_), Verb::Add(_)]), "{verbs:?}");
    assert_eq!(fs::read_dir(&notes).unwrap().count(), 0);
}

#[test]
fn the_rest_of_a_crash_while_a_note_was_written_goes_with_the_next_note() {
    let dir = TempDir::new().unwrap();
    fs::create_dir(dir.path().join("notes")).unwrap();
    fs::set_permissions(dir.path().join("notes"), fs::Permissions::from_mode(0o700)).unwrap();
    let rest = dir.path().join("notes").join(format!(".{}.0123456789abcdef.tmp", id().note_name()));
    let file = fs::File::create(&rest).unwrap();
    file.set_modified(std::time::SystemTime::now() - std::time::Duration::from_secs(3600)).unwrap();
    check_note(&dir);
}
