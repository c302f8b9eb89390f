use std::collections::BTreeMap;
use std::io::Read as _;

use proptest::prelude::*;

use super::*;

fn file(path: &str, content: &[u8]) -> ImageFile {
    ImageFile { path: path.to_owned(), mode: 0o755, content: content.to_vec() }
}

fn image(files: Vec<ImageFile>) -> Image {
    Image {
        reference: "registry.example/hawser:1.2.3".to_owned(),
        architecture: "amd64".to_owned(),
        version: "1.2.3".to_owned(),
        licenses: "Apache-2.0 AND MIT".to_owned(),
        entrypoint: vec!["/mesh-agent".to_owned()],
        environment: vec!["PATH=/".to_owned()],
        files,
    }
}

/// Path to mode and content, of regular files.
fn unpacked(bytes: &[u8]) -> BTreeMap<String, (u32, Vec<u8>)> {
    let mut archive = tar::Archive::new(bytes);
    let mut found = BTreeMap::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        assert_eq!(entry.header().mtime().unwrap(), 0);
        assert_eq!((entry.header().uid().unwrap(), entry.header().gid().unwrap()), (0, 0));
        let path = entry.path().unwrap().to_string_lossy().into_owned();
        if entry.header().entry_type().is_file() {
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            assert!(found.insert(path, (entry.header().mode().unwrap(), content)).is_none());
        }
    }
    found
}

#[test]
fn both_kinds_of_readers_find_the_files_by_digests_that_are_right() {
    let archive = image(vec![file("mesh-agent", b"agent"), file("etc/x/y", b"text")]).archive().unwrap();
    let outer = unpacked(&archive.bytes);
    let blob = |digest: &str| {
        let content = &outer[&format!("blobs/sha256/{}", digest.trim_start_matches("sha256:"))].1;
        assert_eq!(
            format!("sha256:{}", sha256(content)),
            format!("sha256:{}", digest.trim_start_matches("sha256:"))
        );
        content.clone()
    };
    let parsed = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).unwrap();
    let index = parsed(&outer["index.json"].1);
    let described = &index["manifests"][0];
    assert_eq!(described["annotations"]["io.containerd.image.name"], "registry.example/hawser:1.2.3");
    assert_eq!(described["digest"], archive.digest);
    let manifest = parsed(&blob(described["digest"].as_str().unwrap()));
    let config = parsed(&blob(manifest["config"]["digest"].as_str().unwrap()));
    let layer = blob(manifest["layers"][0]["digest"].as_str().unwrap());
    assert_eq!(manifest["layers"][0]["size"], archive.compressed);
    let mut plain = Vec::new();
    flate2::read::GzDecoder::new(layer.as_slice()).read_to_end(&mut plain).unwrap();
    assert_eq!(config["rootfs"]["diff_ids"][0], format!("sha256:{}", sha256(&plain)));
    let inner = unpacked(&plain);
    assert_eq!(inner["mesh-agent"], (0o755, b"agent".to_vec()));
    assert_eq!(inner["etc/x/y"], (0o755, b"text".to_vec()));
    let docker = parsed(&outer["manifest.json"].1);
    assert_eq!(docker[0]["RepoTags"][0], "registry.example/hawser:1.2.3");
    assert!(outer.contains_key(docker[0]["Config"].as_str().unwrap()));
    assert!(outer.contains_key(docker[0]["Layers"][0].as_str().unwrap()));
}

#[test]
fn what_cannot_be_an_image_is_refused_by_name() {
    for path in ["/abs", "a/../b", "", "a//b"] {
        let error = image(vec![file(path, b"")]).archive().unwrap_err().to_string();
        assert!(error.contains("is no path beneath"), "{error}");
    }
    let error = image(vec![file("a", b"1"), file("a", b"2")]).archive().unwrap_err().to_string();
    assert!(error.contains("a is in the image twice"), "{error}");
    for reference in ["hawser", "registry:5000/hawser", ":x", "a:"] {
        let error = Image { reference: reference.to_owned(), ..image(vec![]) }.archive().unwrap_err();
        assert!(error.to_string().contains("has no tag"), "{reference}: {error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn the_same_files_in_any_order_are_the_same_bytes(
        files in proptest::collection::btree_map("[a-z]{1,8}(/[a-z]{1,8}){0,2}x", proptest::collection::vec(any::<u8>(), 0..64), 1..6)
    ) {
        let one: Vec<ImageFile> = files.iter().map(|(path, content)| file(path, content)).collect();
        let two: Vec<ImageFile> = one.iter().rev().cloned().collect();
        prop_assert_eq!(image(one).archive().unwrap(), image(two).archive().unwrap());
    }
}
