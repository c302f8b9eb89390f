//! What stays in the kernel, and how it is found again.

use std::fs;
use std::net::IpAddr;

use aya::programs::SchedClassifier;
use datapath::{Capacities, Datapath, Error, LoadOptions, Local, Program};

use super::lab::{PinDir, open, options, small};

/// Where this layout's maps are, beneath the directory of pins.
pub(crate) fn own_layout() -> String {
    format!("v{}", datapath::abi::HW_ABI)
}

fn address(last: u8) -> IpAddr {
    IpAddr::from([10, 1, 0, last])
}

#[test]
fn the_verifier_takes_every_program_with_maps_of_the_usual_size() {
    let pins = PinDir::new();
    let datapath = open(&LoadOptions { pin_dir: pins.path().to_owned(), ..LoadOptions::default() });
    for program in Program::ALL {
        let loaded: &SchedClassifier = datapath.program(program).unwrap();
        let info = loaded.info().unwrap();
        let instructions = info.verified_instruction_count().unwrap();
        println!("{program}: {instructions} instructions verified, {:?} bytes", info.size_translated());
        // The kernel's limit is a million; one that comes near it fails on another kernel.
        assert!((1..500_000).contains(&instructions), "{program}: {instructions}");
    }
}

#[test]
fn what_is_in_the_maps_outlives_the_process() {
    let pins = PinDir::new();
    let first = open(&options(&pins));
    assert_eq!(first.epoch().unwrap(), 1);
    first.put_local(address(1), Local::Node).unwrap();
    first.put_local(address(2), Local::Pod(7)).unwrap();
    drop(first);
    let second = open(&options(&pins));
    let locals = second.locals().unwrap();
    assert_eq!(
        locals.into_iter().collect::<Vec<_>>(),
        [(address(1), Local::Node), (address(2), Local::Pod(7))]
    );
    assert!(second.remove_local(address(1)).unwrap());
    assert!(!second.remove_local(address(1)).unwrap());
}

#[test]
fn a_pinned_map_of_another_definition_is_refused_by_name() {
    let pins = PinDir::new();
    drop(open(&options(&pins)));
    let other = Capacities { blocks: 257, ..small() };
    let refused = Datapath::open(&LoadOptions { capacities: other, ..options(&pins) }).unwrap_err();
    let text = refused.to_string();
    let pinned = format!("{}/blocks", own_layout());
    for part in ["map blocks", "number of entries is 256", "wanted is 257", &pinned] {
        assert!(text.contains(part), "{part}: {text}");
    }
    // Another kind of map under a name of ours.
    let maps = pins.path().join(own_layout());
    fs::remove_file(maps.join("rows")).unwrap();
    fs::rename(maps.join("locals"), maps.join("rows")).unwrap();
    let refused = Datapath::open(&options(&pins)).unwrap_err();
    assert!(
        matches!(refused, Error::Definition { map: "rows", property: "key size", found: 16, wanted: 12, .. }),
        "{refused}"
    );
}

#[test]
fn one_process_at_a_time_has_the_data_path() {
    let pins = PinDir::new();
    let first = open(&options(&pins));
    let refused = Datapath::open(&options(&pins)).unwrap_err();
    assert!(matches!(&refused, Error::InUse { path } if path == pins.path()), "{refused}");
    drop(first);
    open(&options(&pins));
}

#[test]
fn a_directory_outside_of_the_usual_place_gets_a_file_system_of_its_own() {
    let scratch = std::env::temp_dir().join(format!("hawser-test-bpffs-{}", std::process::id()));
    let at = scratch.join("pins");
    let options = LoadOptions { pin_dir: at.clone(), capacities: small(), ..LoadOptions::default() };
    let datapath = open(&options);
    assert!(at.join(own_layout()).join("state").exists());
    drop(datapath);
    open(&options);
    rustix::mount::unmount(&at, rustix::mount::UnmountFlags::DETACH).unwrap();
    fs::remove_dir_all(&scratch).unwrap();
}

#[test]
fn other_layouts_go_when_they_are_told_to_and_nothing_else() {
    let pins = PinDir::new();
    let datapath = open(&options(&pins));
    // The last two are called as ours are, and have in them what no data path pins.
    for name in ["v0/links", "v17", "vault", "notes", "v18/maps", "v19/links/deep"] {
        fs::create_dir_all(pins.path().join(name)).unwrap();
    }
    let mut removed = datapath.remove_other_layouts().unwrap();
    removed.sort();
    assert_eq!(removed, [pins.path().join("v0"), pins.path().join("v17")]);
    let own = format!("{}/state", own_layout());
    for name in [own.as_str(), "vault", "notes", "v18/maps", "v19/links/deep"] {
        assert!(pins.path().join(name).exists(), "{name}");
    }
}

#[test]
fn an_uninstalled_data_path_leaves_nothing() {
    let pins = PinDir::new();
    open(&options(&pins)).uninstall().unwrap();
    assert!(!pins.path().exists());
}

#[test]
fn an_object_that_is_none_is_an_error() {
    let pins = PinDir::new();
    let refused = Datapath::open(&LoadOptions { object: Some(vec![0; 64]), ..options(&pins) }).unwrap_err();
    assert!(matches!(refused, Error::Load(_)), "{refused}");
}
