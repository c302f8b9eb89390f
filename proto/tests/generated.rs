//! The generated code is that of the .proto files. After a change of them: UPDATE_EXPECT=1 cargo test -p proto --test generated

use expect_test::expect_file;

#[test]
fn the_generated_code_is_that_of_the_proto_files() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("proto");
    let files = protox::compile(["hawser/keys/v1/pair_keys.proto"], [&root]).unwrap();
    let out = tempfile::tempdir().unwrap();
    tonic_prost_build::configure()
        .out_dir(out.path())
        .emit_rerun_if_changed(false)
        // The agent has its own channel: through the mesh, with deadlines.
        .build_transport(false)
        .compile_fds(files)
        .unwrap();
    let text = std::fs::read_to_string(out.path().join("hawser.keys.v1.rs")).unwrap();
    expect_file!["../src/keys/generated.rs"].assert_eq(&text);
}
