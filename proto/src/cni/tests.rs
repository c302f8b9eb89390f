use super::*;
use proptest::prelude::*;

fn request() -> Request {
    Request {
        v: VERSION,
        verb: Verb::Del(Detach {
            id: AttachmentId { container_id: "c1".into(), ifname: "eth0".into() },
            network: "hawser".into(),
        }),
    }
}

#[test]
fn the_json_of_a_request_is_stable() {
    expect_test::expect![[
        r#"{"v":1,"verb":{"del":{"id":{"containerId":"c1","ifname":"eth0"},"network":"hawser"}}}"#
    ]]
    .assert_eq(&serde_json::to_string(&request()).unwrap());
}

#[test]
fn a_frame_reads_back_as_it_was_written() {
    let mut bytes = Vec::new();
    write_frame(&mut bytes, &request()).unwrap();
    assert_eq!(read_frame::<Request>(&mut bytes.as_slice()).unwrap(), request());
}

#[test]
fn the_version_of_a_body_that_nobody_knows_is_read() {
    assert_eq!(version(br#"{"v":7,"verb":{"teleport":{}}}"#).unwrap(), 7);
    assert!(version(br#"{"verb":1}"#).is_err());
}

#[test]
fn a_length_over_the_limit_is_refused_before_memory_is_taken() {
    let bytes = (MAX_FRAME + 1).to_be_bytes();
    assert!(matches!(read_frame::<Request>(&mut bytes.as_slice()), Err(FrameError::TooLong(_))));
}

#[test]
fn the_veth_of_an_attachment_is_stable() {
    let id = AttachmentId { container_id: "c1".into(), ifname: "eth0".into() };
    // printf c1/eth0 | sha256sum | cut -c 1-13
    assert_eq!(id.veth(), "hwd72e032fedd94");
    assert_eq!(id.note_name(), "hwd72e032fedd94.json");
}

#[test]
fn check_expects_the_default_routes_that_the_result_has_and_all_where_it_does_not_say() {
    let gateways: [IpAddr; 2] = ["10.1.0.1".parse().unwrap(), "fd00:1::1".parse().unwrap()];
    for (routes, expected) in [
        // A plugin of before.
        ("", [true, true]),
        (r#","expectedRoutes":[]"#, [false, false]),
        (
            r#","expectedRoutes":[{"dst":"0.0.0.0/0","gw":"10.1.0.1"},{"dst":"fd00::/8","gw":"fd00:1::1"}]"#,
            [true, false],
        ),
        // The first leads elsewhere, the second by the gateway of its address.
        (r#","expectedRoutes":[{"dst":"0.0.0.0/0","gw":"192.0.2.1"},{"dst":"::/0"}]"#, [false, true]),
    ] {
        let text = format!(
            r#"{{"id":{{"containerId":"c","ifname":"eth0"}},"network":"n","netns":"/n","pod":null{routes}}}"#
        );
        let attach: Attach = decode(text.as_bytes()).unwrap();
        assert_eq!(gateways.map(|gateway| attach.expects_default(gateway)), expected, "{routes}");
        assert_eq!(serde_json::to_string(&attach).unwrap(), text, "written as it was read");
    }
}

proptest! {
    #[test]
    fn no_bytes_panic_the_reader(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
        let _ = read_frame::<Request>(&mut bytes.as_slice());
        let _ = decode::<Response>(&bytes);
    }
}
