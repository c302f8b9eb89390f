//! The cross-platform configuration protocol (<https://www.wireguard.com/xplatform/>): parsing of
//! requests and formatting of answers, without I/O.
//!
//! A request is parsed as a whole before anything of it is applied, so a bad line changes nothing.
//! Errors carry line number, key and (unless secret) value, and the `errno` that wireguard-go would send.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::time::Duration;

use ipnet::IpNet;
use zeroize::Zeroizing;

use crate::keys::{PresharedKey, PrivateKey, PublicKey, parse_hex, write_hex};

/// A complete request.
#[derive(Debug)]
pub enum Request {
    /// `get=1`: print the configuration.
    Get,
    /// `set=1`: change it.
    Set(SetRequest),
}

/// The changes that one `set=1` request asks for, in order.
#[derive(Debug, Default)]
pub struct SetRequest {
    /// New private key; `Some(None)` removes it.
    pub private_key: Option<Option<PrivateKey>>,
    /// New UDP port; 0 picks one.
    pub listen_port: Option<u16>,
    /// New `SO_MARK` of outgoing datagrams; 0 is none.
    pub fwmark: Option<u32>,
    /// Remove all peers that the request does not name.
    pub replace_peers: bool,
    /// One section per `public_key` line; a peer may appear more than once.
    pub peers: Vec<PeerRequest>,
}

/// The lines after one `public_key` line.
#[derive(Debug)]
pub struct PeerRequest {
    /// The peer.
    pub public_key: PublicKey,
    /// Remove it; all else in the section is ignored.
    pub remove: bool,
    /// Ignore the section if there is no such peer.
    pub update_only: bool,
    /// New pre-shared key; `Some(None)` removes it.
    pub preshared_key: Option<Option<PresharedKey>>,
    /// New endpoint.
    pub endpoint: Option<SocketAddr>,
    /// Seconds between persistent keepalives; 0 is off.
    pub persistent_keepalive: Option<u16>,
    /// Changes to its allowed IPs, in the order of the lines.
    pub prefixes: Vec<PrefixOp>,
}

impl PeerRequest {
    /// A section that creates the peer and changes nothing else.
    #[must_use]
    pub const fn new(public_key: PublicKey) -> Self {
        Self {
            public_key,
            remove: false,
            update_only: false,
            preshared_key: None,
            endpoint: None,
            persistent_keepalive: None,
            prefixes: Vec::new(),
        }
    }
}

/// One change to a peer's allowed IPs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrefixOp {
    /// `replace_allowed_ips=true`
    Clear,
    /// `allowed_ip=PREFIX`
    Add(IpNet),
    /// `allowed_ip=-PREFIX`
    Remove(IpNet),
}

/// Why a request is refused. Nothing of a refused request is applied.
#[derive(Debug, thiserror::Error)]
pub enum UapiError {
    /// The first line is neither `get=1` nor `set=1`.
    #[error("unknown operation {line:?}: the first line of a request is get=1 or set=1")]
    UnknownOperation {
        /// The line.
        line: String,
    },
    /// A line is not `key=value`.
    #[error("line {line}: not of the form key=value")]
    NotKeyValue {
        /// Number of the line; the operation is line 1.
        line: usize,
    },
    /// The request is not text.
    #[error("request is not UTF-8")]
    NotText,
    /// A key that does not exist at this place.
    #[error("line {line}: unknown key {key:?}: a device key must come before the first public_key line")]
    UnknownKey {
        /// Number of the line.
        line: usize,
        /// The key.
        key: String,
    },
    /// A value that its key does not take.
    #[error("line {line}: {key}={value:?}: expected {expected}")]
    BadValue {
        /// Number of the line.
        line: usize,
        /// The key.
        key: String,
        /// The value, or `<redacted>` where it is a secret.
        value: String,
        /// What the value should be.
        expected: &'static str,
    },
    /// The request or one of its lines is longer than the limit.
    #[error("request of more than {limit} bytes: split it")]
    TooLong {
        /// The limit in bytes.
        limit: usize,
    },
    /// More peers than a device may have.
    #[error("the request would give the device {wanted} peers, the limit is {limit}")]
    TooManyPeers {
        /// Number of peers after the request.
        wanted: usize,
        /// The limit.
        limit: usize,
    },
    /// The port could not be bound.
    #[error("listen_port={port}: {source}")]
    Bind {
        /// The port.
        port: u16,
        /// The cause; `EADDRINUSE` if another socket has the port.
        source: std::io::Error,
    },
    /// The mark could not be set.
    #[error("fwmark={fwmark}: {source}: setting SO_MARK needs CAP_NET_ADMIN")]
    Fwmark {
        /// The mark.
        fwmark: u32,
        /// The cause.
        source: std::io::Error,
    },
    /// The system has no random numbers for session indexes.
    #[error("no random numbers: {0}")]
    Random(String),
}

const EIO: i32 = 5;
const EINVAL: i32 = 22;
const EPROTO: i32 = 71;

impl UapiError {
    /// The number for the `errno=` line: negative, as wireguard-go sends it.
    #[must_use]
    pub fn errno(&self) -> i32 {
        match self {
            Self::UnknownOperation { .. }
            | Self::NotKeyValue { .. }
            | Self::NotText
            | Self::TooLong { .. } => -EPROTO,
            Self::UnknownKey { .. } | Self::BadValue { .. } | Self::TooManyPeers { .. } => -EINVAL,
            Self::Bind { source, .. } | Self::Fwmark { source, .. } => -source.raw_os_error().unwrap_or(EIO),
            Self::Random(_) => -EIO,
        }
    }
}

/// Turns the name of an interface into its index, for `[fe80::1%eth0]:51880`.
pub type ScopeResolver<'a> = &'a dyn Fn(&str) -> Option<u32>;

/// Parses a request: the operation line and all lines up to, not including, the blank line.
///
/// # Errors
/// The first line that is wrong.
pub fn parse(text: &[u8], scope: ScopeResolver<'_>) -> Result<Request, UapiError> {
    let text = std::str::from_utf8(text).map_err(|_| UapiError::NotText)?;
    // Not `lines()`, which would take a lone carriage return for the end of the request and leave the rest undone.
    let mut lines = text.split('\n').take_while(|l| !l.is_empty()).enumerate().map(|(i, l)| (i + 1, l));
    let operation = lines.next().map_or("", |(_, l)| l);
    match operation {
        "get=1" => match lines.next() {
            None => Ok(Request::Get),
            Some((line, text)) => Err(UapiError::UnknownKey {
                line,
                key: text.split('=').next().unwrap_or_default().to_owned(),
            }),
        },
        "set=1" => parse_set(lines, scope).map(Request::Set),
        other => {
            // The key alone: the value may be a secret whose request lost its first line.
            let key = other.split('=').next().unwrap_or_default();
            Err(UapiError::UnknownOperation { line: key.chars().take(64).collect() })
        }
    }
}

/// One line, so that an error can name it.
#[derive(Clone, Copy)]
struct Line<'a> {
    number: usize,
    key: &'a str,
    value: &'a str,
}

impl Line<'_> {
    fn bad(&self, expected: &'static str) -> UapiError {
        let secret = matches!(self.key, "private_key" | "preshared_key");
        UapiError::BadValue {
            line: self.number,
            key: self.key.to_owned(),
            value: if secret { "<redacted>".to_owned() } else { self.value.chars().take(80).collect() },
            expected,
        }
    }

    fn unknown(&self) -> UapiError {
        UapiError::UnknownKey { line: self.number, key: self.key.chars().take(64).collect() }
    }

    fn key32(&self) -> Result<Zeroizing<[u8; 32]>, UapiError> {
        parse_hex(self.value).map(Zeroizing::new).ok_or_else(|| self.bad("64 hexadecimal digits"))
    }

    fn only_true(&self) -> Result<(), UapiError> {
        if self.value == "true" { Ok(()) } else { Err(self.bad("true")) }
    }

    fn port_or_seconds(&self) -> Result<u16, UapiError> {
        self.value.parse().map_err(|_| self.bad("a number from 0 to 65535"))
    }
}

fn parse_set<'a>(
    lines: impl Iterator<Item = (usize, &'a str)>,
    scope: ScopeResolver<'_>,
) -> Result<SetRequest, UapiError> {
    let mut set = SetRequest::default();
    for (number, text) in lines {
        let (key, value) = text.split_once('=').ok_or(UapiError::NotKeyValue { line: number })?;
        let line = Line { number, key, value };
        if key == "public_key" {
            set.peers.push(PeerRequest::new(PublicKey::new(*line.key32()?)));
        } else if let Some(peer) = set.peers.last_mut() {
            parse_peer_line(peer, line, scope)?;
        } else {
            parse_device_line(&mut set, line)?;
        }
    }
    Ok(set)
}

fn parse_device_line(set: &mut SetRequest, line: Line<'_>) -> Result<(), UapiError> {
    match line.key {
        "private_key" => set.private_key = Some(PrivateKey::new(*line.key32()?).map(PrivateKey::clamped)),
        "listen_port" => set.listen_port = Some(line.port_or_seconds()?),
        "fwmark" => {
            let parsed = match line.value.strip_prefix("0x") {
                Some(hex) => u32::from_str_radix(hex, 16),
                None => line.value.parse(),
            };
            set.fwmark = Some(parsed.map_err(|_| line.bad("a number from 0 to 4294967295"))?);
        }
        "replace_peers" => {
            line.only_true()?;
            set.replace_peers = true;
        }
        _ => return Err(line.unknown()),
    }
    Ok(())
}

fn parse_peer_line(
    peer: &mut PeerRequest,
    line: Line<'_>,
    scope: ScopeResolver<'_>,
) -> Result<(), UapiError> {
    match line.key {
        "remove" => {
            line.only_true()?;
            peer.remove = true;
        }
        "update_only" => {
            line.only_true()?;
            peer.update_only = true;
        }
        "preshared_key" => peer.preshared_key = Some(PresharedKey::new(*line.key32()?)),
        "endpoint" => {
            let endpoint = parse_endpoint(line.value, scope);
            peer.endpoint = Some(endpoint.ok_or_else(|| line.bad("ADDRESS:PORT or [ADDRESS]:PORT"))?);
        }
        "persistent_keepalive_interval" => peer.persistent_keepalive = Some(line.port_or_seconds()?),
        "replace_allowed_ips" => {
            line.only_true()?;
            peer.prefixes.push(PrefixOp::Clear);
        }
        "allowed_ip" => {
            let (op, text): (fn(IpNet) -> PrefixOp, _) = match line.value.strip_prefix('-') {
                Some(text) => (PrefixOp::Remove, text),
                None => (PrefixOp::Add, line.value),
            };
            let prefix: IpNet = text.parse().map_err(|_| line.bad("ADDRESS/LENGTH or -ADDRESS/LENGTH"))?;
            peer.prefixes.push(op(prefix.trunc()));
        }
        "protocol_version" => {
            if line.value != "1" {
                return Err(line.bad("1"));
            }
        }
        _ => return Err(line.unknown()),
    }
    Ok(())
}

/// Parses `1.2.3.4:5`, `[2001:db8::1]:5`, `[fe80::1%2]:5` or `[fe80::1%eth0]:5`. An IPv4 address mapped
/// into IPv6 becomes IPv4, since our IPv6 socket carries IPv6 only. Unspecified addresses and port 0
/// are no destination and are refused.
#[must_use]
pub fn parse_endpoint(text: &str, scope: ScopeResolver<'_>) -> Option<SocketAddr> {
    let addr = text.parse::<SocketAddr>().ok().or_else(|| {
        let (inside, port) = text.strip_prefix('[')?.rsplit_once("]:")?;
        let (ip, zone) = inside.split_once('%')?;
        let port = port.bytes().all(|b| b.is_ascii_digit()).then(|| port.parse().ok())??;
        Some(SocketAddrV6::new(ip.parse().ok()?, port, 0, scope(zone)?).into())
    })?;
    let addr = canonical(addr);
    (addr.port() != 0 && !addr.ip().is_unspecified()).then_some(addr)
}

/// The same destination with an IPv4-mapped IPv6 address written as IPv4 and no flow label.
#[must_use]
pub fn canonical(addr: SocketAddr) -> SocketAddr {
    match (addr, addr.ip().to_canonical()) {
        (_, ip @ IpAddr::V4(_)) => SocketAddr::new(ip, addr.port()),
        (SocketAddr::V6(a), IpAddr::V6(_)) => SocketAddrV6::new(*a.ip(), a.port(), 0, a.scope_id()).into(),
        (SocketAddr::V4(_), IpAddr::V6(_)) => addr,
    }
}

/// What `get=1` prints about the device.
#[derive(Debug)]
pub struct DeviceView {
    /// Private key, if set.
    pub private_key: Option<PrivateKey>,
    /// Bound UDP port; 0 if none is bound yet.
    pub listen_port: u16,
    /// `SO_MARK`; 0 is none.
    pub fwmark: u32,
    /// The peers.
    pub peers: Vec<PeerView>,
}

/// What `get=1` prints about a peer.
#[derive(Debug)]
pub struct PeerView {
    /// The peer.
    pub public_key: PublicKey,
    /// Pre-shared key, if set.
    pub preshared_key: Option<PresharedKey>,
    /// Endpoint, configured or learnt.
    pub endpoint: Option<SocketAddr>,
    /// Last confirmed handshake, since the UNIX epoch; zero if never.
    pub last_handshake: Duration,
    /// Bytes of UDP payload sent to the peer.
    pub tx_bytes: u64,
    /// Bytes of authenticated UDP payload received from the peer.
    pub rx_bytes: u64,
    /// Seconds between persistent keepalives; 0 is off.
    pub persistent_keepalive: u16,
    /// Allowed IPs.
    pub allowed_ips: Vec<IpNet>,
}

/// The answer to `get=1`, up to and including `errno=0` and the blank line. It holds secrets.
#[must_use]
pub fn format_get(view: &DeviceView) -> Zeroizing<String> {
    // Reserved in full, so that no reallocation leaves a copy of a secret behind.
    let prefixes: usize = view.peers.iter().map(|p| p.allowed_ips.len()).sum();
    let mut out = Zeroizing::new(String::with_capacity(256 + view.peers.len() * 512 + prefixes * 64));
    write_view(&mut out, view).expect("invariant: writing to a String does not fail");
    out
}

fn write_view(out: &mut String, view: &DeviceView) -> std::fmt::Result {
    if let Some(key) = &view.private_key {
        out.write_str("private_key=")?;
        write_hex(out, key.expose())?;
        out.write_char('\n')?;
    }
    if view.listen_port != 0 {
        writeln!(out, "listen_port={}", view.listen_port)?;
    }
    if view.fwmark != 0 {
        writeln!(out, "fwmark={}", view.fwmark)?;
    }
    for peer in &view.peers {
        writeln!(out, "public_key={}", peer.public_key)?;
        out.write_str("preshared_key=")?;
        write_hex(out, peer.preshared_key.as_ref().map_or(&[0; 32], |psk| psk.expose()))?;
        writeln!(out, "\nprotocol_version=1")?;
        if let Some(endpoint) = peer.endpoint {
            writeln!(out, "endpoint={endpoint}")?;
        }
        writeln!(out, "last_handshake_time_sec={}", peer.last_handshake.as_secs())?;
        writeln!(out, "last_handshake_time_nsec={}", peer.last_handshake.subsec_nanos())?;
        writeln!(out, "tx_bytes={}", peer.tx_bytes)?;
        writeln!(out, "rx_bytes={}", peer.rx_bytes)?;
        writeln!(out, "persistent_keepalive_interval={}", peer.persistent_keepalive)?;
        for prefix in &peer.allowed_ips {
            writeln!(out, "allowed_ip={prefix}")?;
        }
    }
    out.write_str("errno=0\n\n")
}

/// The answer to a `set=1` request or to a refused one.
#[must_use]
pub fn format_errno(errno: i32) -> String {
    format!("errno={errno}\n\n")
}

#[cfg(test)]
mod tests;
