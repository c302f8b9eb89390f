//! The cluster's DNS as a pod sees it: by `/etc/resolv.conf`, as a kubelet writes it. Asked by itself, since an image without a C
//! library's files has no resolver.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};

use super::question::{Answer, Fault};

const CONFIGURATION: &str = "/etc/resolv.conf";
/// Of DNS.
const PORT: u16 = 53;
/// For one answer.
const TRY: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(100);

/// What a pod was told of the DNS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Resolver {
    /// Servers, the best first.
    pub servers: Vec<IpAddr>,
    /// The cluster's domain; none: it was given no DNS of a cluster.
    pub domain: Option<String>,
}

/// Reads `resolv.conf`. The search list of a pod has `NAMESPACE.svc.DOMAIN` and `svc.DOMAIN` where its kubelet knows of a DNS.
pub(super) fn parse(text: &str) -> Resolver {
    let mut resolver = Resolver::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => {
                resolver.servers.extend(words.next().and_then(|word| word.parse::<IpAddr>().ok()))
            }
            Some("search") => {
                let domain = |entry: &str| {
                    let entry = entry.trim_end_matches('.');
                    let (_, domain) =
                        entry.split_once(".svc.").or_else(|| Some(("", entry.strip_prefix("svc.")?)))?;
                    (!domain.is_empty()).then(|| domain.to_owned())
                };
                resolver.domain = words.find_map(domain).or(resolver.domain);
            }
            _ => {}
        }
    }
    resolver
}

/// Waits until a name, which ends in `svc`, stands for these addresses.
///
/// # Errors
/// What is there instead.
pub(super) fn resolve(name: &str, ips: &BTreeSet<IpAddr>, until: Instant) -> Result<Answer, Fault> {
    let resolver = parse(&std::fs::read_to_string(CONFIGURATION).unwrap_or_default());
    let (Some(domain), false) = (resolver.domain, resolver.servers.is_empty()) else {
        return Ok(Answer::NoDns);
    };
    let servers: Vec<SocketAddr> = resolver.servers.into_iter().map(|ip| SocketAddr::new(ip, PORT)).collect();
    resolve_at(&servers, &format!("{name}.{domain}."), ips, until).map(|()| Answer::Named)
}

fn resolve_at(
    servers: &[SocketAddr],
    name: &str,
    ips: &BTreeSet<IpAddr>,
    until: Instant,
) -> Result<(), Fault> {
    let name = Name::from_ascii(name).map_err(|_| Fault::Local)?;
    let kinds = [(true, RecordType::A), (false, RecordType::AAAA)];
    let wanted = |v4: bool| ips.iter().filter(move |ip| ip.is_ipv4() == v4).copied().collect::<BTreeSet<_>>();
    loop {
        let mut last = Ok(());
        for (v4, kind) in kinds.into_iter().filter(|(v4, _)| !wanted(*v4).is_empty()) {
            let said = servers.iter().find_map(|server| once(*server, &name, kind));
            last = match said {
                None => Err(Fault::NamesSilent),
                Some(Err(fault)) => Err(fault),
                Some(Ok(found)) if found == wanted(v4) => continue,
                Some(Ok(found)) if found.is_empty() => Err(Fault::NameUnknown),
                Some(Ok(_)) => Err(Fault::NameWrong),
            };
            break;
        }
        if last.is_ok() || Instant::now() >= until {
            return last;
        }
        thread::sleep(PAUSE);
    }
}

/// Asks one server. `None`: it says nothing that can be read.
fn once(server: SocketAddr, name: &Name, kind: RecordType) -> Option<Result<BTreeSet<IpAddr>, Fault>> {
    let any: SocketAddr = if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse().ok()?;
    let socket = UdpSocket::bind(any).ok()?;
    socket.connect(server).ok()?;
    socket.set_read_timeout(Some(TRY)).ok()?;
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name.clone(), kind));
    socket.send(&message.to_vec().ok()?).ok()?;
    let mut buffer = [0; 4096];
    let length = socket.recv(&mut buffer).ok()?;
    let answer = Message::from_vec(&buffer[..length]).ok()?;
    if answer.metadata.id != message.metadata.id {
        return None;
    }
    let code = answer.metadata.response_code;
    if code == ResponseCode::NoError {
        return Some(Ok(answer.answers.iter().filter_map(|record| address(&record.data)).collect()));
    }
    Some(Err(if code == ResponseCode::NXDomain { Fault::NameUnknown } else { Fault::NamesSilent }))
}

#[allow(clippy::wildcard_enum_match_arm, reason = "records of the DNS are an open set")]
fn address(data: &RData) -> Option<IpAddr> {
    match data {
        RData::A(a) => Some(a.0.into()),
        RData::AAAA(aaaa) => Some(aaaa.0.into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
