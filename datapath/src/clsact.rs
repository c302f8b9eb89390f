//! Programs on links of kernels without tcx: filters of the kind `bpf` in a clsact queueing discipline, by rtnetlink.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::LinkMessage;
use netlink_packet_route::tc::{
    TcAttribute, TcBpfFlags, TcFilterBpf, TcFilterBpfOption, TcHandle, TcMessage, TcOption,
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use crate::program::{Hook, LinkKind, Program};

/// Before all others of the hook; whoever else filters with `bpf` at this priority shares it by handle.
const PRIORITY: u32 = 1;
/// "hw", and the number of the link's kind: nobody else's, and the same after a restart, so that it is replaced in place.
const HANDLE: u32 = 0x6877_0000;
/// `ETH_P_ALL` in network order, as `tcm_info` has it.
const ALL_PROTOCOLS: u32 = 0x0300;
/// `clsact` itself hangs here, and so do its two hooks (`TC_H_CLSACT`, `TC_H_MIN_INGRESS`, `TC_H_MIN_EGRESS`).
const CLSACT: u16 = 0xffff;

fn parent(hook: Hook) -> TcHandle {
    let minor = match hook {
        Hook::Ingress => 0xfff2,
        Hook::Egress => 0xfff3,
    };
    TcHandle { major: CLSACT, minor }
}

fn index(ifindex: u32) -> io::Result<i32> {
    i32::try_from(ifindex).map_err(|_| io::Error::from_raw_os_error(libc::ENODEV))
}

fn filter(ifindex: u32, hook: Hook, kind: LinkKind) -> io::Result<TcMessage> {
    let mut message = TcMessage::with_index(index(ifindex)?);
    message.header.parent = parent(hook);
    message.header.handle = (HANDLE | kind.number()).into();
    message.header.info = PRIORITY << 16 | ALL_PROTOCOLS;
    message.attributes.push(TcAttribute::Kind(TcFilterBpf::KIND.to_owned()));
    Ok(message)
}

/// Attaches a program, or replaces the one that is there.
pub(crate) fn attach(
    ifindex: u32,
    hook: Hook,
    kind: LinkKind,
    program: Program,
    fd: BorrowedFd<'_>,
) -> io::Result<()> {
    add_clsact(ifindex)?;
    let mut message = filter(ifindex, hook, kind)?;
    let fd = u32::try_from(fd.as_raw_fd()).expect("invariant: an open descriptor is not negative");
    message.attributes.push(TcAttribute::Options(vec![
        TcOption::Bpf(TcFilterBpfOption::ProgFd(fd)),
        TcOption::Bpf(TcFilterBpfOption::ProgName(format!("hawser:{program}"))),
        TcOption::Bpf(TcFilterBpfOption::Flags(TcBpfFlags::DirectAction)),
    ]));
    request(RouteNetlinkMessage::NewTrafficFilter(message), NLM_F_CREATE).map(drop)
}

/// Takes a program off. Returns whether it was there.
pub(crate) fn detach(ifindex: u32, hook: Hook, kind: LinkKind) -> io::Result<bool> {
    let message = filter(ifindex, hook, kind)?;
    match request(RouteNetlinkMessage::DelTrafficFilter(message), 0) {
        Ok(_) => Ok(true),
        // No such filter, no clsact, no device.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINVAL | libc::ENODEV)) => {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// Our filters on a hook: what the link was taken for, and the kernel's number of the program.
pub(crate) fn filters(ifindex: u32, hook: Hook) -> io::Result<Vec<(LinkKind, u32)>> {
    let mut message = TcMessage::with_index(index(ifindex)?);
    message.header.parent = parent(hook);
    let answers = match request(RouteNetlinkMessage::GetTrafficFilter(message), NLM_F_DUMP) {
        Ok(answers) => answers,
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENODEV)) => {
            return Ok(Vec::new());
        }
        Err(error) => return Err(error),
    };
    Ok(answers.into_iter().filter_map(ours).collect())
}

fn ours(message: RouteNetlinkMessage) -> Option<(LinkKind, u32)> {
    let RouteNetlinkMessage::NewTrafficFilter(message) = message else { return None };
    let handle = u32::from(message.header.handle);
    let kind = LinkKind::from_number(handle.checked_sub(HANDLE)?)?;
    let options = message.attributes.into_iter().find_map(|attribute| {
        let TcAttribute::Options(options) = attribute else { return None };
        Some(options)
    })?;
    let program = options.into_iter().find_map(|option| {
        let TcOption::Bpf(TcFilterBpfOption::ProgId(id)) = option else { return None };
        Some(id)
    })?;
    Some((kind, program))
}

/// Indexes of all links of this network namespace.
pub(crate) fn links() -> io::Result<Vec<u32>> {
    let answers = request(RouteNetlinkMessage::GetLink(LinkMessage::default()), NLM_F_DUMP)?;
    let index = |message| {
        let RouteNetlinkMessage::NewLink(link) = message else { return None };
        Some(link.header.index)
    };
    Ok(answers.into_iter().filter_map(index).collect())
}

fn add_clsact(ifindex: u32) -> io::Result<()> {
    let mut message = TcMessage::with_index(index(ifindex)?);
    message.header.parent = TcHandle { major: CLSACT, minor: 0xfff1 };
    message.header.handle = TcHandle { major: CLSACT, minor: 0 };
    message.attributes.push(TcAttribute::Kind("clsact".to_owned()));
    match request(RouteNetlinkMessage::NewQueueDiscipline(message), NLM_F_CREATE | NLM_F_EXCL) {
        Ok(_) => Ok(()),
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Sends one request and collects the answers up to its acknowledgement.
fn request(message: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<RouteNetlinkMessage>> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
    let mut packet = NetlinkMessage::new(header, NetlinkPayload::from(message));
    packet.finalize();
    let mut bytes = vec![0; packet.buffer_len()];
    packet.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    let mut answers = Vec::new();
    loop {
        let (received, _) = socket.recv_from_full()?;
        let mut rest = &received[..];
        while !rest.is_empty() {
            let parsed =
                NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(io::Error::other)?;
            let length = usize::try_from(parsed.header.length).unwrap_or(usize::MAX).next_multiple_of(4);
            if let NetlinkPayload::Error(error) = parsed.payload {
                return error.code.map_or(Ok(answers), |_| Err(error.to_io()));
            }
            if let NetlinkPayload::Done(_) = parsed.payload {
                return Ok(answers);
            }
            if let NetlinkPayload::InnerMessage(message) = parsed.payload {
                answers.push(message);
            }
            rest = rest.get(length..).unwrap_or_default();
        }
    }
}
