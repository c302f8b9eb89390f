//! The generated code is that of the .proto files. After a change of them: UPDATE_EXPECT=1 cargo test -p proto --test generated

#![allow(clippy::unwrap_used, reason = "the helpers of tests fail as tests do")]

use expect_test::{ExpectFile, expect_file};

fn check(file: &str, package: &str, expected: ExpectFile) {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("proto");
    let files = protox::compile([file], [&root]).unwrap();
    let out = tempfile::tempdir().unwrap();
    tonic_prost_build::configure()
        .out_dir(out.path())
        .emit_rerun_if_changed(false)
        // Whoever calls has a channel of its own: through the mesh, with deadlines; with TLS of its own.
        .build_transport(false)
        // Equal things are written as equal bytes.
        .btree_map(".")
        .compile_fds(files)
        .unwrap();
    let text = std::fs::read_to_string(out.path().join(format!("{package}.rs"))).unwrap();
    expected.assert_eq(&text);
}

#[test]
fn the_generated_code_of_the_key_exchange_is_that_of_its_proto_file() {
    check("hawser/keys/v1/pair_keys.proto", "hawser.keys.v1", expect_file!["../src/keys/generated.rs"]);
}

#[test]
fn the_generated_code_of_clustermesh_is_that_of_its_proto_file() {
    check(
        "hawser/clustermesh/v1/cluster_mesh.proto",
        "hawser.clustermesh.v1",
        expect_file!["../src/clustermesh/generated.rs"],
    );
}
