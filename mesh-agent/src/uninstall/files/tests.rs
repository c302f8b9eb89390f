use super::*;
use proptest::prelude::*;

fn places() -> Places {
    Places {
        state: "/var/lib/hawser".into(),
        sockets: vec!["/run/hawser/cni.sock".into(), "/run/hawser/flows.sock".into()],
        tunnel: "/run/wireguard".into(),
    }
}

/// A path a line, directories with a slash at their end.
fn check(places: &Places, found: &str, files: &[&str], directories: &[&str], strange: &[&str]) {
    let entry = |line: &str| match line.strip_suffix('/') {
        Some(directory) => (PathBuf::from(directory), Entry::Directory),
        None => (PathBuf::from(line), Entry::File),
    };
    let judged = places.judge(&found.split_whitespace().map(entry).collect());
    let texts = |paths: &[PathBuf]| paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>();
    let gone = judged
        .files
        .iter()
        .map(|(path, secret)| format!("{}{}", path.display(), if *secret { " *" } else { "" }));
    assert_eq!(gone.collect::<Vec<_>>(), files);
    assert_eq!(texts(&judged.directories), directories);
    assert_eq!(texts(&judged.strange), strange);
}

#[test]
fn everything_that_an_agent_leaves_goes_and_secrets_are_marked() {
    let state = "/var/lib/hawser/ /var/lib/hawser/keys/ /var/lib/hawser/keys/slot0.key /var/lib/hawser/keys/.slot1.next.tmp \
         /var/lib/hawser/keys/epoch /var/lib/hawser/psk/ /var/lib/hawser/psk/0a1b.slot0.psk \
         /var/lib/hawser/attachments/ /var/lib/hawser/attachments/hw0123456789abc.json \
         /var/lib/hawser/attachments/hw0123456789abc-17.freed /var/lib/hawser/attachments/.hw0123456789abc.tmp \
         /var/lib/hawser/audit/ /var/lib/hawser/audit/keys.jsonl /var/lib/hawser/pending-deletes/ \
         /var/lib/hawser/pending-deletes/hw0123456789abc.json \
         /var/lib/hawser/pending-deletes/.hw0123456789abc.json.00ff.tmp /var/lib/hawser/settings.json \
         /var/lib/hawser/retired.tmp /run/hawser/ /run/hawser/cni.sock \
         /run/hawser/cni-install.json /run/hawser/.cni-install.json.00ff.tmp /run/wireguard/ /run/wireguard/hawser1.sock";
    check(
        &places(),
        state,
        &[
            "/run/hawser/.cni-install.json.00ff.tmp",
            "/run/hawser/cni-install.json",
            "/run/hawser/cni.sock",
            "/run/wireguard/hawser1.sock",
            "/var/lib/hawser/attachments/.hw0123456789abc.tmp",
            "/var/lib/hawser/attachments/hw0123456789abc-17.freed",
            "/var/lib/hawser/attachments/hw0123456789abc.json",
            "/var/lib/hawser/audit/keys.jsonl",
            "/var/lib/hawser/keys/.slot1.next.tmp *",
            "/var/lib/hawser/keys/epoch *",
            "/var/lib/hawser/keys/slot0.key *",
            "/var/lib/hawser/pending-deletes/.hw0123456789abc.json.00ff.tmp",
            "/var/lib/hawser/pending-deletes/hw0123456789abc.json",
            "/var/lib/hawser/psk/0a1b.slot0.psk *",
            "/var/lib/hawser/retired.tmp",
            "/var/lib/hawser/settings.json",
        ],
        &[
            "/var/lib/hawser/psk",
            "/var/lib/hawser/pending-deletes",
            "/var/lib/hawser/keys",
            "/var/lib/hawser/audit",
            "/var/lib/hawser/attachments",
            "/var/lib/hawser",
            "/run/wireguard",
            "/run/hawser",
        ],
        &[],
    );
}

#[test]
fn what_others_put_there_stays_with_the_directories_around_it() {
    check(
        &places(),
        "/var/lib/hawser/ /var/lib/hawser/keys/ /var/lib/hawser/keys/mine /var/lib/hawser/psk/ /var/lib/hawser/backup/ \
         /run/hawser/ /run/hawser/other.sock /run/wireguard/ /run/wireguard/wg0.sock /run/wireguard/hawser0.stats",
        &["/run/wireguard/hawser0.stats"],
        &["/var/lib/hawser/psk"],
        &["/run/hawser/other.sock", "/var/lib/hawser/backup", "/var/lib/hawser/keys/mine"],
    );
}

#[test]
fn a_directory_at_which_something_is_mounted_is_emptied_and_stays() {
    let paths = [
        ("/var/lib/hawser", Entry::Mount),
        ("/var/lib/hawser/keys", Entry::Directory),
        ("/var/lib/hawser/keys/epoch", Entry::File),
    ];
    let judged = places().judge(&paths.map(|(path, entry)| (path.into(), entry)).into());
    assert_eq!(judged.mounts, [PathBuf::from("/var/lib/hawser")]);
    assert_eq!(judged.directories, [PathBuf::from("/var/lib/hawser/keys")]);
    assert_eq!(judged.files.len(), 1);
}

#[test]
fn a_state_directory_that_is_a_system_directory_loses_nothing_of_the_system() {
    let places = Places { state: "/etc".into(), sockets: vec!["/run/cni.sock".into()], ..places() };
    check(
        &places,
        "/etc/ /etc/passwd /etc/keys/ /etc/keys/slot0.key /etc/keys/server.pem /etc/audit/ /etc/audit/audit.rules \
         /run/ /run/cni.sock /run/utmp /run/lock/",
        &["/etc/keys/slot0.key *", "/run/cni.sock"],
        &[],
        &["/etc/audit/audit.rules", "/etc/keys/server.pem", "/etc/passwd"],
    );
}

proptest! {
    #[test]
    fn a_directory_goes_only_when_all_that_is_in_it_does(names in proptest::collection::btree_set(
        "(keys|psk|attachments|audit|other)/(slot0\\.key|a\\.slot1\\.psk|keys\\.jsonl|hw0123456789abc\\.json|x)", 0..8,
    )) {
        let state = PathBuf::from("/var/lib/hawser");
        let mut found = BTreeMap::from([(state.clone(), Entry::Directory)]);
        for name in &names {
            found.insert(state.join(name), Entry::File);
            found.insert(state.join(name.split('/').next().unwrap_or_default()), Entry::Directory);
        }
        let judged = places().judge(&found);
        for directory in &judged.directories {
            let inside = found.iter().filter(|(path, _)| *path != directory && path.starts_with(directory));
            for (path, entry) in inside {
                let goes = match entry {
                    Entry::File => judged.files.iter().any(|(file, _)| file == path),
                    Entry::Directory | Entry::Mount => judged.directories.contains(path),
                };
                prop_assert!(goes, "{} stays in {}", path.display(), directory.display());
            }
        }
    }
}
