//! ICMP echo over the kernel's ping sockets (icmp(7), `net.ipv4.ping_group_range`).

use super::{Canary, within};
use crate::error::LabError;
use crate::namespace::Namespace;
use socket2::{Domain, Protocol, Socket, Type};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

/// Type of request and reply in RFC 792 and RFC 4443.
const ECHO_V4: (u8, u8) = (8, 0);
const ECHO_V6: (u8, u8) = (128, 129);

/// Type, code, checksum, identifier, sequence number.
const HEADER: usize = 8;

/// Sends echo requests with the payload until a reply repeats it or the tries are used up. Returns the round
/// trip time of the successful try. Ping sockets are allowed to every group in the namespace from then on.
pub fn ping(namespace: &Namespace, to: IpAddr, canary: &Canary) -> Result<Duration, LabError> {
    namespace.sysctl("net.ipv4.ping_group_range", "0 2147483647")?;
    let owned = canary.clone();
    let answer = namespace.block_on(async move {
        let fail = |e: std::io::Error| e.to_string();
        let socket = tokio::net::UdpSocket::from_std(open(&owned, to).map_err(fail)?).map_err(fail)?;
        let mut last = String::from("no try was allowed");
        for number in 1..=owned.tries {
            // The kernel writes identifier and checksum.
            let sequence = u16::try_from(number % 65_536).unwrap_or(0);
            let request = message(if to.is_ipv4() { ECHO_V4.0 } else { ECHO_V6.0 }, sequence, &owned.payload);
            let attempt = async {
                let began = Instant::now();
                socket.send(&request).await.map_err(fail)?;
                let mut reply = vec![0; 65_536];
                loop {
                    let length = socket.recv(&mut reply).await.map_err(fail)?;
                    if is_reply(&reply[..length], to, sequence, &owned.payload)? {
                        return Ok(began.elapsed());
                    }
                }
            };
            match within(owned.deadline, attempt).await {
                Ok(time) => return Ok(time),
                Err(what) => last = format!("{what} (try {number} of {})", owned.tries),
            }
        }
        Err(last)
    });
    answer.map_err(|what| canary.failure("ICMP echo", to, what))
}

fn open(canary: &Canary, to: IpAddr) -> std::io::Result<UdpSocket> {
    let (domain, protocol) =
        if to.is_ipv4() { (Domain::IPV4, Protocol::ICMPV4) } else { (Domain::IPV6, Protocol::ICMPV6) };
    let socket = Socket::new(domain, Type::DGRAM, Some(protocol))?;
    socket.set_nonblocking(true)?;
    socket.bind(&canary.local(to).into())?;
    socket.connect(&SocketAddr::new(to, 0).into())?;
    Ok(socket.into())
}

fn message(kind: u8, sequence: u16, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![kind, 0, 0, 0, 0, 0];
    out.extend(sequence.to_be_bytes());
    out.extend(payload);
    out
}

/// `false` for the reply to an earlier request.
fn is_reply(bytes: &[u8], to: IpAddr, sequence: u16, payload: &[u8]) -> Result<bool, String> {
    let kind = if to.is_ipv4() { ECHO_V4.1 } else { ECHO_V6.1 };
    let Some((header, echo)) = bytes.split_at_checked(HEADER) else {
        return Err(format!("a reply of {} bytes", bytes.len()));
    };
    if header[0] != kind || header[6..] != sequence.to_be_bytes() {
        return Ok(false);
    }
    if echo == payload { Ok(true) } else { Err("the reply differs from what was sent".into()) }
}
