use super::*;
use mesh_core::key::PublicKey;
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use tempfile::TempDir;

fn id(node: &str) -> NodeId {
    NodeId { node: node.parse().unwrap(), cluster: "east".parse().unwrap() }
}

fn record(peer: &str, slot: Slot, secret: u8) -> Record {
    let end = |node, key| End { id: id(node), key: PublicKey::from_bytes([key; 32]), epoch: Epoch(7) };
    let psk = Psk::from_bytes(Zeroizing::new([secret; 32]));
    Record {
        context: Arc::new(Context::new(slot, end("n1", 1), end(peer, 2)).unwrap()),
        id: psk.id(),
        psk: Arc::new(psk),
        confirmed: true,
        seen: secret.is_multiple_of(2),
        peer_seen: false,
    }
}

fn facts(record: &Record) -> (Arc<Context>, [u8; 32], [bool; 3]) {
    let flags = [record.confirmed, record.seen, record.peer_seen];
    (Arc::clone(&record.context), *record.psk.expose(), flags)
}

struct Place {
    _outer: TempDir,
    dir: PathBuf,
}

impl Place {
    fn new() -> Self {
        let outer = TempDir::with_prefix("hawser-psk-").unwrap();
        let dir = outer.path().join("keys/psk");
        Self { _outer: outer, dir }
    }

    fn open(&self) -> PskStore {
        PskStore::open(&self.dir, id("n1")).unwrap()
    }

    fn names(&self) -> Vec<PathBuf> {
        let mut names: Vec<_> = fs::read_dir(&self.dir).unwrap().map(|entry| entry.unwrap().path()).collect();
        names.sort();
        names
    }
}

#[test]
fn records_are_found_again_replaced_and_removed() {
    let place = Place::new();
    let store = place.open();
    let records = [record("n2", Slot::Zero, 1), record("n2", Slot::One, 2), record("n3", Slot::Zero, 3)];
    for record in &records {
        store.write(record).unwrap();
    }
    let sorted = |mut all: Vec<(Arc<Context>, [u8; 32], [bool; 3])>| {
        all.sort_by_key(|(_, secret, _)| *secret);
        all
    };
    drop(store);
    let store = place.open();
    let loaded = store.load().unwrap();
    assert!(loaded.refused.is_empty(), "{:?}", loaded.refused);
    assert_eq!(sorted(loaded.records.iter().map(facts).collect()), records.each_ref().map(facts));
    for path in place.names() {
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
    }
    store.write(&record("n2", Slot::Zero, 4)).unwrap();
    store.remove(&id("n3"), Slot::Zero).unwrap();
    store.remove(&id("n3"), Slot::Zero).unwrap();
    let left = sorted(store.load().unwrap().records.iter().map(facts).collect());
    assert_eq!(left.iter().map(|(_, secret, _)| secret[0]).collect::<Vec<_>>(), [2, 4]);
}

#[test]
fn the_bytes_of_a_replaced_and_of_a_removed_record_are_overwritten() {
    use std::io::Read as _;
    let place = Place::new();
    let store = place.open();
    for replace in [true, false] {
        store.write(&record("n2", Slot::Zero, 1)).unwrap();
        let mut old = fs::File::open(&place.names()[0]).unwrap();
        if replace {
            store.write(&record("n2", Slot::Zero, 2)).unwrap();
        } else {
            store.remove(&id("n2"), Slot::Zero).unwrap();
        }
        let mut bytes = Vec::new();
        old.read_to_end(&mut bytes).unwrap();
        assert!(!bytes.is_empty() && bytes.iter().all(|byte| *byte == 0));
    }
}

#[test]
fn a_refused_file_costs_its_pair_alone_and_says_what_to_do() {
    let place = Place::new();
    let store = place.open();
    store.write(&record("n2", Slot::Zero, 1)).unwrap();
    let path = place.names()[0].clone();
    store.write(&record("n3", Slot::One, 2)).unwrap();
    let whole = fs::read(&path).unwrap();
    let text = String::from_utf8(whole.clone()).unwrap();
    let swapped = {
        let mut lines: Vec<&str> = text.lines().collect();
        lines.swap(3, 7);
        lines.join("\n") + "\n"
    };
    for bad in [
        Vec::new(),
        whole[..100].to_vec(),
        whole[..whole.len() - 1].to_vec(),
        [whole.as_slice(), b"x"].concat(),
        vec![b'x'; 5000],
        text.replace("hawser-psk 1", "hawser-psk 2").into_bytes(),
        text.replace("epoch 7", "epoch 8").into_bytes(),
        text.replace("confirmed 1", "confirmed 0").into_bytes(),
        text.replace("psk AQEB", "psk AQEC").into_bytes(),
        text.replace("node n2", "node n4").into_bytes(),
        swapped.into_bytes(),
    ] {
        fs::write(&path, &bad).unwrap();
        let loaded = store.load().unwrap();
        assert_eq!((loaded.records.len(), loaded.refused.len()), (1, 1), "{}", String::from_utf8_lossy(&bad));
        let shown = format!("{} {loaded:?}", loaded.refused[0]);
        assert!(shown.contains("hawser.dev/rotate") && !shown.contains("AQEB"), "{shown}");
        assert_eq!(fs::read(&path).unwrap(), bad, "left alone");
    }
    fs::write(&path, &whole).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
    assert!(matches!(store.load().unwrap().refused[0].fault, PskFault::Mode(0o640)));
    fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    assert_eq!(store.load().unwrap().records.len(), 2);
}

#[test]
fn a_file_of_another_pair_or_peer_is_refused() {
    let place = Place::new();
    let store = place.open();
    store.write(&record("n2", Slot::Zero, 1)).unwrap();
    let path = place.names()[0].clone();
    fs::copy(&path, place.dir.join(file(&id("n9"), Slot::Zero))).unwrap();
    let loaded = store.load().unwrap();
    assert_eq!(loaded.records.len(), 1);
    assert!(matches!(loaded.refused[0].fault, PskFault::Foreign));
    drop(store);
    let store = PskStore::open(&place.dir, id("n8")).unwrap();
    assert_eq!(store.load().unwrap().refused.len(), 2);
}

#[test]
fn what_an_interrupted_write_left_is_removed_and_the_longest_record_fits() {
    let place = Place::new();
    drop(place.open());
    fs::write(place.dir.join(".aa.slot0.psk.tmp"), "hawser-psk 1\nslo").unwrap();
    let store = place.open();
    assert!(place.names().is_empty());
    let end = |node: char, key| End {
        id: NodeId {
            node: node.to_string().repeat(253).parse().unwrap(),
            cluster: "c".repeat(63).parse().unwrap(),
        },
        key: PublicKey::from_bytes([key; 32]),
        epoch: Epoch(u64::MAX),
    };
    let context = Arc::new(Context::new(Slot::One, end('a', 1), end('b', 2)).unwrap());
    let text = render(&Record { context, ..record("n2", Slot::One, 2) });
    assert_eq!(text.len(), 992);
    assert!(parse(&text).is_ok());
    drop(store);
}
