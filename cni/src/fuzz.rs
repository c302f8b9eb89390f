//! Entry points for the fuzzer: what strangers send must never panic.

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::ffi::OsStringExt;

use proto::cni::{self, Attached, AttachedIp, Request, Response};

use crate::environment::Environment;
use crate::plan::{Plan, plan};
use crate::result::add_result;

/// Plans every verb for one input. The first byte chooses verb and name, `CNI_ARGS` goes up to the first zero byte,
/// and the rest is stdin. An ADD that is planned is also answered, to merge its `prevResult`.
///
/// # Panics
/// Never for a correct plugin: a failure without a message or with code 0 is a bug.
pub fn fuzz_stdin(data: &[u8]) {
    let Some((choice, rest)) = data.split_first() else { return };
    let end = rest.iter().position(|byte| *byte == 0).unwrap_or(rest.len());
    let (args, stdin) = (&rest[..end], rest.get(end + 1..).unwrap_or_default());
    const COMMANDS: [&str; 6] = ["ADD", "DEL", "CHECK", "STATUS", "GC", "VERSION"];
    let environment = Environment {
        command: Some(COMMANDS[usize::from(choice % 6)].into()),
        container_id: Some("c1".into()),
        netns: Some("/proc/1/ns/net".into()),
        ifname: Some("eth0".into()),
        args: Some(OsString::from_vec(args.to_vec())),
        netns_override: None,
        called_loopback: choice & 0x80 != 0,
    };
    match plan(&environment, stdin) {
        Ok(Plan::Add(add)) => {
            let attached = Attached {
                host_ifname: add.attach.id.veth(),
                host_mac: "02:00:00:00:00:01".to_owned(),
                pod_mac: "02:00:00:00:00:02".to_owned(),
                mtu: 1420,
                ips: vec![AttachedIp {
                    address: IpAddr::V4(Ipv4Addr::new(10, 1, 0, 7)).into(),
                    gateway: IpAddr::V4(Ipv4Addr::new(10, 1, 0, 1)),
                }],
            };
            let add = *add;
            let result = add_result(add.version, &attached, "eth0", "/proc/1/ns/net", add.dns, add.previous);
            assert!(result.is_object(), "a result is an object");
        }
        Ok(_) => {}
        Err(error) => {
            let failure = error.failure();
            assert!(failure.code != 0 && !failure.msg.is_empty(), "a failure has code and message");
        }
    }
}

/// Reads the input as a frame of either side, and writes what was understood again.
///
/// # Panics
/// Never for correct frames: what was read must be read again from what is written.
pub fn fuzz_frame(data: &[u8]) {
    if let Ok(request) = cni::read_frame::<Request>(&mut &data[..])
        && let Ok(frame) = cni::encode(&request)
    {
        let again = cni::read_frame::<Request>(&mut frame.as_slice());
        assert_eq!(again.ok(), Some(request), "a request is read as it was written");
    }
    if let Ok(response) = cni::read_frame::<Response>(&mut &data[..])
        && let Ok(frame) = cni::encode(&response)
    {
        let again = cni::read_frame::<Response>(&mut frame.as_slice());
        assert_eq!(again.ok(), Some(response), "an answer is read as it was written");
    }
}
