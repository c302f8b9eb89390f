use super::*;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use proptest::prelude::*;
use std::fs::{self, File, Permissions};
use std::io::Read as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
use tempfile::TempDir;

/// A place for a store, gone after the test.
struct Place {
    _outer: TempDir,
    dir: PathBuf,
}

impl Place {
    fn new() -> Self {
        let outer = TempDir::with_prefix("hawser-store-").unwrap();
        let dir = outer.path().join("lib/keys");
        Self { _outer: outer, dir }
    }

    fn load(&self) -> LoadedStore {
        Store::open(&self.dir).unwrap().load_or_create_all().unwrap()
    }

    fn refusal(&self) -> StoreError {
        match Store::open(&self.dir).and_then(Store::load_or_create_all) {
            Ok(store) => panic!("not refused: {store:?}"),
            Err(error) => error,
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

/// What a test compares of a store.
fn facts(store: &LoadedStore) -> [(u64, PublicKey); 2] {
    store.slots().map(|key| (key.epoch.0, key.public()))
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_new_store_makes_both_keys_and_finds_them_again() {
    let place = Place::new();
    let first = place.load();
    assert_eq!(first.created(), Slot::ALL);
    let made = facts(&first);
    assert_eq!([made[0].0, made[1].0], [1, 2]);
    assert_ne!(made[0].1, made[1].1);
    assert_eq!(first.slot(Slot::One).epoch, Epoch(2));
    drop(first);
    assert_eq!(mode(&place.dir), 0o700);
    assert_eq!(names(&place.dir), ["epoch", "slot0.key", "slot1.key"]);
    for name in names(&place.dir) {
        assert_eq!(mode(&place.file(&name)), 0o600, "{name}");
    }
    let second = place.load();
    assert_eq!((facts(&second), second.created()), (made, &[][..]));
}

#[test]
fn a_store_is_open_in_one_process_only() {
    let place = Place::new();
    let held = place.load();
    assert!(matches!(place.refusal(), StoreError::InUse { .. }));
    let other = std::process::Command::new("flock").arg("-n").arg(&place.dir).arg("true").status().unwrap();
    assert!(!other.success(), "another process got the lock");
    drop(held);
    place.load();
}

#[test]
fn a_key_file_open_to_others_is_refused_until_its_mode_is_right() {
    let place = Place::new();
    let made = facts(&place.load());
    let file = place.file("slot1.key");
    for bits in [0o604, 0o602, 0o601, 0o640, 0o660, 0o777] {
        fs::set_permissions(&file, Permissions::from_mode(bits)).unwrap();
        let error = place.refusal();
        assert!(
            matches!(&error, StoreError::Mode { path, found, wanted: 0o600 } if *path == file && *found == bits)
        );
        assert!(error.to_string().contains(&format!("chmod 600 {}", file.display())), "{error}");
        assert_eq!(mode(&file), bits, "left alone");
    }
    for bits in [0o600, 0o400] {
        fs::set_permissions(&file, Permissions::from_mode(bits)).unwrap();
        assert_eq!(facts(&place.load()), made);
    }
}

#[test]
fn a_directory_open_to_others_is_refused() {
    let place = Place::new();
    place.load();
    fs::set_permissions(&place.dir, Permissions::from_mode(0o755)).unwrap();
    assert!(matches!(place.refusal(), StoreError::Mode { found: 0o755, wanted: 0o700, .. }));
}

#[test]
fn a_key_file_or_directory_of_another_user_is_refused() {
    let place = Place::new();
    place.load();
    for path in [place.file("slot0.key"), place.file("epoch"), place.dir.clone()] {
        chown(&path, Some(12345), None).expect("this test needs root, to give a file away");
        let error = place.refusal();
        assert!(matches!(&error, StoreError::Owner { path: p, found: 12345, .. } if *p == path), "{error}");
        chown(&path, Some(rustix::process::geteuid().as_raw()), None).unwrap();
    }
    place.load();
}

#[test]
fn what_is_not_a_regular_file_is_refused_and_left_alone() {
    let place = Place::new();
    place.load();
    let file = place.file("slot0.key");
    let aside = place.file("aside");
    let refuse = |found| {
        let error = place.refusal();
        assert!(
            matches!(&error, StoreError::Kind { path, found: f, wanted: FileKind::Regular }
            if *path == file && *f == found),
            "{error}"
        );
    };
    fs::rename(&file, &aside).unwrap();
    symlink(&aside, &file).unwrap();
    refuse(FileKind::Symlink);
    fs::remove_file(&file).unwrap();
    symlink("nowhere", &file).unwrap();
    refuse(FileKind::Symlink);
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    refuse(FileKind::Directory);
    fs::remove_dir(&file).unwrap();
    nix::unistd::mkfifo(&file, nix::sys::stat::Mode::S_IRWXU).unwrap();
    refuse(FileKind::Special);
    fs::remove_file(&file).unwrap();
    let socket = std::os::unix::net::UnixListener::bind(&file).unwrap();
    refuse(FileKind::Special);
    drop(socket);
}

#[test]
fn a_directory_that_is_a_link_or_a_file_is_refused() {
    let place = Place::new();
    place.load();
    let link = place.dir.with_file_name("link");
    symlink(&place.dir, &link).unwrap();
    assert!(matches!(Store::open(&link), Err(StoreError::Kind { found: FileKind::Symlink, .. })));
    assert!(matches!(
        Store::open(&place.file("slot0.key")),
        Err(StoreError::Kind { found: FileKind::Regular, .. })
    ));
}

#[test]
fn a_damaged_file_is_refused_and_nothing_is_made_or_changed() {
    let place = Place::new();
    place.load();
    let whole = fs::read(place.file("slot0.key")).unwrap();
    fs::remove_file(place.file("slot1.key")).unwrap();
    let long = [whole.as_slice(), &[b' '; 4096]].concat();
    let other =
        String::from_utf8(whole.clone()).unwrap().replace("hawser-key 1", "hawser-key 9").into_bytes();
    for bad in [&whole[..0], &whole[..100], &whole[..whole.len() - 1], &long, &other] {
        fs::write(place.file("slot0.key"), bad).unwrap();
        let error = place.refusal();
        assert!(
            matches!(error, StoreError::Damaged { .. } | StoreError::Version { found: 9, .. }),
            "{error}"
        );
        assert!(
            error.to_string().contains("slot0.key") && error.to_string().contains("move it away"),
            "{error}"
        );
        assert_eq!(fs::read(place.file("slot0.key")).unwrap(), bad);
        assert_eq!(names(&place.dir), ["epoch", "slot0.key"]);
    }
    fs::write(place.file("slot0.key"), &whole).unwrap();
    assert_eq!(place.load().created(), [Slot::One]);
}

#[test]
fn one_key_file_copied_over_the_other_is_refused() {
    let place = Place::new();
    place.load();
    fs::copy(place.file("slot0.key"), place.file("slot1.key")).unwrap();
    assert!(matches!(place.refusal(), StoreError::EqualSlots { epoch: Epoch(1), .. }));
}

#[test]
fn the_temporary_file_of_an_interrupted_write_is_removed() {
    let place = Place::new();
    let made = facts(&place.load());
    for name in [".slot0.key.tmp", ".slot1.key.tmp", ".epoch.tmp"] {
        fs::write(place.file(name), "hawser-key 1\nepo").unwrap();
    }
    fs::write(place.file("note"), "not ours").unwrap();
    assert_eq!(facts(&place.load()), made);
    assert_eq!(names(&place.dir), ["epoch", "note", "slot0.key", "slot1.key"]);
}

#[test]
fn a_replaced_key_is_new_on_disk_and_in_memory_and_the_old_bytes_are_gone() {
    let place = Place::new();
    let mut store = place.load();
    let before = facts(&store);
    let mut old = File::open(place.file("slot0.key")).unwrap();
    let replaced = store.replace(Slot::Zero).unwrap();
    assert!(replaced.epoch == Epoch(3) && replaced.not_wiped.is_none(), "{replaced:?}");
    let after = facts(&store);
    assert_eq!((after[0].0, after[1]), (3, before[1]));
    assert_ne!(after[0].1, before[0].1);
    let mut bytes = Vec::new();
    old.read_to_end(&mut bytes).unwrap();
    assert!(!bytes.is_empty() && bytes.iter().all(|byte| *byte == 0));
    drop(store);
    assert_eq!(facts(&place.load()), after);
}

#[test]
fn a_staged_key_waits_beside_the_present_one() {
    let place = Place::new();
    let mut store = place.load();
    let before = facts(&store);
    let public = store.stage(Slot::One).unwrap().public();
    assert_eq!(store.stage(Slot::One).unwrap().public(), public, "once");
    assert_eq!(mode(&place.file("slot1.next")), 0o600);
    drop(store);
    let mut store = place.load();
    assert_eq!(facts(&store), before);
    assert_eq!(store.staged(Slot::One).map(|key| (key.epoch.0, key.public())), Some((3, public)));
    assert!(store.staged(Slot::Zero).is_none() && store.commit(Slot::Zero).unwrap().is_none());
    assert_eq!(store.replace(Slot::Zero).unwrap().epoch, Epoch(4), "3 is given out");
    assert_eq!(store.commit(Slot::One).unwrap().map(|replaced| replaced.epoch), Some(Epoch(3)));
    let after = facts(&store);
    assert_eq!(after[1], (3, public));
    assert!(store.made(Slot::One).is_some_and(|made| made > 1_700_000_000), "{:?}", store.made(Slot::One));
    drop(store);
    assert_eq!(names(&place.dir), ["epoch", "slot0.key", "slot1.key"]);
    assert_eq!(facts(&place.load()), after);
}

#[test]
fn a_commit_that_was_cut_off_is_finished() {
    for wiped in [true, false] {
        let place = Place::new();
        let mut store = place.load();
        let zero = facts(&store)[0];
        let public = store.stage(Slot::One).unwrap().public();
        drop(store);
        let file = place.file("slot1.key");
        if wiped {
            let length = fs::read(&file).unwrap().len();
            fs::write(&file, vec![0; length]).unwrap();
        } else {
            fs::remove_file(&file).unwrap();
        }
        let store = place.load();
        assert_eq!((facts(&store), store.created().is_empty()), ([zero, (3, public)], true));
        assert_eq!(names(&place.dir), ["epoch", "slot0.key", "slot1.key"]);
    }
    // Zeros alone are a damaged file as any other.
    let place = Place::new();
    drop(place.load());
    fs::write(place.file("slot1.key"), [0; 217]).unwrap();
    assert!(matches!(place.refusal(), StoreError::Damaged { .. }));
}

#[test]
fn a_commit_that_failed_after_its_rename_can_be_tried_again() {
    for taken_away in [false, true] {
        let place = Place::new();
        let mut store = place.load();
        let zero = facts(&store)[0];
        let public = store.stage(Slot::One).unwrap().public();
        // The directory could not be synced; or somebody took the file away.
        if taken_away {
            fs::remove_file(place.file("slot1.next")).unwrap();
        } else {
            fs::rename(place.file("slot1.next"), place.file("slot1.key")).unwrap();
        }
        assert_eq!(store.commit(Slot::One).unwrap().map(|replaced| replaced.epoch), Some(Epoch(3)));
        assert_eq!(facts(&store), [zero, (3, public)]);
        drop(store);
        assert_eq!(facts(&place.load()), [zero, (3, public)]);
        assert_eq!(names(&place.dir), ["epoch", "slot0.key", "slot1.key"]);
    }
}

#[test]
fn epochs_grow_whatever_is_lost() {
    let place = Place::new();
    let mut store = place.load();
    store.replace(Slot::One).unwrap();
    drop(store);
    fs::remove_file(place.file("slot1.key")).unwrap();
    assert_eq!(facts(&place.load())[1].0, 4, "3 was given out");
    fs::remove_file(place.file("epoch")).unwrap();
    assert_eq!(facts(&place.load()).map(|(epoch, _)| epoch), [1, 4]);
    fs::remove_file(place.file("slot0.key")).unwrap();
    assert_eq!(facts(&place.load())[0].0, 5, "the file came back from the keys");
    for name in names(&place.dir) {
        fs::remove_file(place.file(&name)).unwrap();
    }
    let store = Store::open(&place.dir).unwrap().above(Epoch(5)).load_or_create_all().unwrap();
    assert_eq!(facts(&store).map(|(epoch, _)| epoch), [6, 7], "the annotation remembered");
}

#[test]
fn a_damaged_epoch_file_is_refused() {
    let place = Place::new();
    place.load();
    fs::write(place.file("epoch"), "hawser-epoch 1\nepoch 1\n").unwrap();
    assert!(matches!(
        place.refusal(),
        StoreError::Damaged { damage: Damage::Truncated { lines: 2, wanted: 3 }, .. }
    ));
}

#[test]
fn after_the_last_epoch_there_is_an_error_and_no_wrap() {
    let place = Place::new();
    let store = Store::open(&place.dir).unwrap().above(Epoch(u64::MAX - 2)).load_or_create_all();
    let mut store = store.unwrap();
    let before = facts(&store);
    assert_eq!(before[1].0, u64::MAX);
    assert!(matches!(store.replace(Slot::Zero), Err(StoreError::EpochsExhausted { .. })));
    assert_eq!(facts(&store), before);
}

/// Runs in a mount namespace of its own with a tmpfs of `pages` at a path that nobody else has.
fn on_tmpfs(pages: usize, test: impl FnOnce(&Path) + Send) {
    let place = TempDir::with_prefix("hawser-tmpfs-").unwrap();
    let run = || {
        unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS)
            .expect("this test needs root, for a mount namespace");
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
        let size = format!("size={},mode=0700", pages * 4096);
        mount(Some("tmpfs"), place.path(), Some("tmpfs"), MsFlags::empty(), Some(size.as_str())).unwrap();
        test(place.path());
    };
    std::thread::scope(|scope| scope.spawn(run).join()).unwrap();
}

#[test]
fn on_a_full_disk_the_old_key_stays() {
    // Each of the three files takes a page; a replacement would take a fourth.
    on_tmpfs(3, |dir| {
        let mut store = Store::open(dir).unwrap().load_or_create_all().unwrap();
        let before = facts(&store);
        let error = store.replace(Slot::Zero).unwrap_err();
        assert!(
            matches!(&error, StoreError::Io { action: Action::Write, source, .. }
            if source.kind() == std::io::ErrorKind::StorageFull),
            "{error}"
        );
        assert_eq!(facts(&store), before);
        assert_eq!(names(dir), ["epoch", "slot0.key", "slot1.key"]);
        drop(store);
        let store = Store::open(dir).unwrap().load_or_create_all().unwrap();
        assert_eq!(facts(&store), before);
    });
}

#[test]
fn on_a_full_disk_no_key_is_made_and_the_error_names_the_file() {
    on_tmpfs(2, |dir| {
        let error = Store::open(dir).unwrap().load_or_create_all().unwrap_err();
        assert!(
            matches!(&error, StoreError::Io { action: Action::Write, path, .. } if path.starts_with(dir))
        );
        assert_eq!(names(dir), ["epoch", "slot0.key"]);
    });
}

#[test]
fn on_a_read_only_disk_keys_are_read_and_not_replaced() {
    on_tmpfs(16, |dir| {
        let before = facts(&Store::open(dir).unwrap().load_or_create_all().unwrap());
        let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(None::<&str>, dir, None::<&str>, flags, None::<&str>).unwrap();
        let mut store = Store::open(dir).unwrap().load_or_create_all().unwrap();
        let error = store.replace(Slot::One).unwrap_err();
        assert!(
            matches!(&error, StoreError::Io { source, .. }
            if source.kind() == std::io::ErrorKind::ReadOnlyFilesystem),
            "{error}"
        );
        assert_eq!(facts(&store), before);
    });
}

#[test]
fn no_message_and_no_debug_text_holds_a_private_key() {
    use base64::Engine as _;
    let place = Place::new();
    let mut store = place.load();
    let mut shown = vec![format!("{store:?} {:?}", store.slots())];
    let secrets: Vec<String> = store
        .slots()
        .iter()
        .flat_map(|key| {
            let bytes = key.private.expose();
            let hex = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            [base64::engine::general_purpose::STANDARD.encode(*bytes), format!("{:?}", *bytes), hex]
        })
        .collect();
    shown.push(format!("{:?}", Store::open(&place.dir).unwrap_err()));
    drop(store);
    let file = place.file("slot0.key");
    let whole = fs::read_to_string(&file).unwrap();
    let private = whole.lines().nth(3).unwrap().to_owned();
    let bare = private.replace("private ", "");
    assert_eq!(bare, secrets[0], "the search would find it");
    let contents = [
        bare.clone(),
        private.clone(),
        format!("hawser-key {bare}\n"),
        format!("hawser-key 1\n{private}\n"),
        whole.replace("epoch 1", &format!("epoch {bare}")),
        whole.replace("public ", &private),
        whole.replace("sha256", &bare),
        whole.replace("private ", "private  "),
        whole.replace("epoch 1", "epoch 2"),
        whole.clone() + &private,
    ];
    for content in contents {
        fs::write(&file, content).unwrap();
        let error = place.refusal();
        shown.push(format!("{error} {error:?}"));
    }
    fs::write(&file, whole).unwrap();
    store = place.load();
    shown.push(format!("{:?}", store.replace(Slot::Zero)));
    for text in shown {
        assert!(secrets.iter().all(|secret| !text.contains(secret.as_str())), "{text}");
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Replace(usize),
    Lose(usize),
    Interrupt(usize),
    Reopen,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        (0_usize..2).prop_map(Step::Replace),
        (0_usize..2).prop_map(Step::Lose),
        (0_usize..2).prop_map(Step::Interrupt),
        Just(Step::Reopen),
    ];
    prop::collection::vec(step, 0..12)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn an_epoch_belongs_to_one_key_for_ever(steps in steps()) {
        let place = Place::new();
        let mut store = place.load();
        let mut given = std::collections::BTreeMap::from(facts(&store));
        for step in steps {
            match step {
                Step::Replace(slot) => drop(store.replace(Slot::ALL[slot]).unwrap()),
                Step::Lose(slot) => {
                    drop(store);
                    fs::remove_file(place.file(key_file(Slot::ALL[slot]))).unwrap();
                    store = place.load();
                    prop_assert_eq!(store.created(), &[Slot::ALL[slot]]);
                }
                Step::Interrupt(slot) => {
                    fs::write(place.file(&format!(".slot{slot}.key.tmp")), "hawser-key").unwrap();
                }
                Step::Reopen => {
                    let before = facts(&store);
                    drop(store);
                    store = place.load();
                    prop_assert_eq!(facts(&store), before);
                }
            }
            let greatest = *given.keys().next_back().unwrap();
            for (epoch, key) in facts(&store) {
                match given.insert(epoch, key) {
                    Some(known) => prop_assert_eq!(known, key),
                    None => prop_assert!(epoch > greatest),
                }
            }
        }
    }
}

#[test]
fn the_state_of_a_rotation_is_read_back_and_survives_the_agent() {
    let place = Place::new();
    let store = place.load();
    assert_eq!(store.rotation().unwrap(), None);
    for text in ["{}", "a longer one", "x"] {
        store.save_rotation(text).unwrap();
        assert_eq!(store.rotation().unwrap().as_deref(), Some(text));
    }
    assert_eq!(mode(&place.file("rotation")), 0o600);
    drop(store);
    assert_eq!(place.load().rotation().unwrap().as_deref(), Some("x"));
}
