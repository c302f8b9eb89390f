//! The netlink socket: transactions and dumps, blocking, each answer awaited with a deadline.

use std::io;
use std::time::Duration;

use netlink_sys::Socket;
use rustix::io::Errno;
use rustix::net::sockopt::{
    Timeout, set_socket_recv_buffer_size_force, set_socket_send_buffer_size_force, set_socket_timeout,
};
use rustix::net::{RecvFlags, SendFlags};

use super::encode::{EncodeError, Message, Object};
use super::wire::{
    self, Attr, NFNL_MSG_BATCH_BEGIN, NFNL_MSG_BATCH_END, NFNL_SUBSYS_NFTABLES, flag, msg, nfta,
};

/// What can go wrong between us and nf_tables.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// The table cannot be encoded; nothing was sent.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// The netlink socket itself failed.
    #[error("cannot {action} the netlink socket: {source}{}", remedy(source))]
    Socket {
        /// What was being done with it.
        action: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// The kernel refused a message; nothing of its transaction took effect.
    #[error(
        "nf_tables refused {object}: {source}{}{}", detail.as_ref().map(|text| format!(" ({text})")).unwrap_or_default(),
        remedy(source)
    )]
    Refused {
        /// What the message was about.
        object: Object,
        /// The kernel's error.
        source: io::Error,
        /// The kernel's own words, where it has any.
        detail: Option<String>,
    },
    /// The kernel refused to list something.
    #[error("netlink: cannot list {what}: {source}{}", remedy(source))]
    List {
        /// What was asked for.
        what: &'static str,
        /// The kernel's error.
        source: io::Error,
    },
    /// No answer in time. Whether a transaction took effect is unknown: observe again.
    #[error("netlink: no answer within {} ms; observe again before acting", after.as_millis())]
    Timeout {
        /// How long it was awaited.
        after: Duration,
    },
    /// Somebody kept changing the ruleset while it was read.
    #[error("netlink: what is listed changed during each of {attempts} attempts to read it; try again later")]
    Unsteady {
        /// How often it was tried.
        attempts: u32,
    },
    /// An answer that is not what the kernel documents.
    #[error("netlink: malformed answer, {what}")]
    Malformed {
        /// Which part.
        what: &'static str,
    },
}

fn remedy(source: &io::Error) -> &'static str {
    match source.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::PERM | Errno::ACCESS) => "; run with CAP_NET_ADMIN in the host's network namespace",
        Some(Errno::PROTONOSUPPORT | Errno::OPNOTSUPP | Errno::NOENT) => {
            "; what it refers to is gone (observe again), or the kernel lacks nf_tables, nft_ct, nft_masq or nft_chain_nat"
        }
        Some(Errno::NOBUFS) => {
            "; raise net.core.rmem_max, or grant CAP_NET_ADMIN so that the limit does not apply"
        }
        Some(_) | None => "",
    }
}

/// The kernel works through a transaction under one mutex; seconds mean that somebody else's is very large.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Netlink datagrams of a dump are at most 32 KiB (`NLMSG_GOODSIZE` grows to the reader's buffer); twice that is safe.
const DATAGRAM: usize = 64 << 10;
/// Errors of a whole transaction arrive at once, one datagram each.
const RECEIVE_BUFFER: usize = 4 << 20;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const HEADER: usize = 16;

/// A message as received, without its header.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) seq: u32,
    pub(crate) body: Vec<u8>,
}

/// An nfnetlink answer: family and attributes.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) family: u8,
    pub(crate) attrs: Vec<u8>,
}

/// One open netlink socket.
#[derive(Debug)]
pub(crate) struct Channel {
    socket: Socket,
    seq: u32,
}

impl Channel {
    /// Opens a socket of `protocol` in the network namespace of the calling thread.
    pub(crate) fn open(protocol: isize) -> Result<Self, NftError> {
        let failed = |action| move |source: io::Error| NftError::Socket { action, source };
        let mut socket = Socket::new(protocol).map_err(failed("open"))?;
        socket.bind_auto().map_err(failed("bind"))?;
        // Errors shall not repeat the message that they answer; the kernel's own words are welcome. Both are comfort.
        let _ = socket.set_cap_ack(true);
        let _ = socket.set_ext_ack(true);
        for direction in [Timeout::Recv, Timeout::Send] {
            set_socket_timeout(&socket, direction, Some(ANSWER_TIMEOUT))
                .map_err(|errno| failed("set a timeout on")(errno.into()))?;
        }
        // Without the capability the default stays; should it not suffice, receiving says so.
        let _ = set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER);
        Ok(Self { socket, seq: 0 })
    }

    /// Sends `messages` as one transaction: all of them take effect, or none.
    pub(crate) fn transact(&mut self, messages: &[Message]) -> Result<(), NftError> {
        let Some(last) = messages.len().checked_sub(1) else { return Ok(()) };
        let begin = self.next_seq();
        let mut bytes = Vec::new();
        batch_mark(&mut bytes, NFNL_MSG_BATCH_BEGIN, begin);
        let first = self.seq + 1;
        for (index, message) in messages.iter().enumerate() {
            let ack = if index == last { flag::ACK } else { 0 };
            let kind = NFNL_SUBSYS_NFTABLES << 8 | message.kind;
            let seq = self.next_seq();
            put_nfgen(
                &mut bytes,
                (kind, flag::REQUEST | message.flags | ack, seq),
                message.family,
                0,
                &message.attrs,
            )
            .ok_or_else(|| EncodeError::TooLong { object: message.object.clone() })?;
        }
        let last_seq = self.seq;
        let end = self.next_seq();
        batch_mark(&mut bytes, NFNL_MSG_BATCH_END, end);
        self.send(&bytes)?;

        // Errors come in the order of the messages, then the answer to the last one; a failure of the commit itself
        // is answered under the number of the beginning.
        let mut refused = None;
        loop {
            for received in self.receive()? {
                if received.kind != NLMSG_ERROR || !(begin..=end).contains(&received.seq) {
                    continue;
                }
                let (errno, detail) = parse_error(&received)?;
                if let Some(source) = errno {
                    let object = received
                        .seq
                        .checked_sub(first)
                        .and_then(|at| messages.get(usize::try_from(at).ok()?));
                    let object = object.map_or(Object::Transaction, |message| message.object.clone());
                    refused.get_or_insert(NftError::Refused { object, source, detail });
                }
                if received.seq == last_seq || received.seq == begin {
                    return refused.map_or(Ok(()), Err);
                }
            }
        }
    }

    /// Generation of the ruleset; it moves with every transaction of anybody in this namespace.
    pub(crate) fn generation(&mut self) -> Result<u32, NftError> {
        let seq = self.request(NFNL_SUBSYS_NFTABLES << 8 | msg::GETGEN, 0, 0, &[], "the generation")?;
        loop {
            let mut answers = self.receive()?.into_iter();
            let Some(received) = answers.find(|received| received.seq == seq) else { continue };
            if received.kind == NLMSG_ERROR {
                let (errno, _) = parse_error(&received)?;
                let source = errno.unwrap_or_else(|| io::ErrorKind::UnexpectedEof.into());
                return Err(NftError::List { what: "the generation", source });
            }
            let attrs = received.body.get(4..).and_then(wire::parse);
            let id = attrs.and_then(|attrs| wire::be32(wire::find(&attrs, nfta::GEN_ID)?));
            return id.ok_or(NftError::Malformed { what: "no generation" });
        }
    }

    /// All objects of one kind. `None`: the listing was interrupted by a change and must be repeated.
    pub(crate) fn dump(
        &mut self,
        kind: u16,
        family: u8,
        attrs: &[Attr],
        what: &'static str,
    ) -> Result<Option<Vec<Answer>>, NftError> {
        self.dump_of(NFNL_SUBSYS_NFTABLES << 8 | kind, family, attrs, what)
    }

    /// As [`Self::dump`], of any subsystem, which is the upper byte of `kind`.
    pub(crate) fn dump_of(
        &mut self,
        kind: u16,
        family: u8,
        attrs: &[Attr],
        what: &'static str,
    ) -> Result<Option<Vec<Answer>>, NftError> {
        let seq = self.request(kind, flag::DUMP, family, attrs, what)?;
        let Some(all) = self.collect(seq, what)? else { return Ok(None) };
        let answers = all.into_iter().map(|received| match received.body.split_at_checked(4) {
            Some((header, attrs)) => Ok(Answer { family: header[0], attrs: attrs.to_vec() }),
            None => Err(NftError::Malformed { what: "a short nfnetlink header" }),
        });
        answers.collect::<Result<_, _>>().map(Some)
    }

    /// The messages that answer the dump `seq`, to its end. `None`: interrupted by a change.
    pub(crate) fn collect(
        &mut self,
        seq: u32,
        what: &'static str,
    ) -> Result<Option<Vec<Received>>, NftError> {
        let mut all = Vec::new();
        let mut interrupted = false;
        loop {
            for received in self.receive()?.into_iter().filter(|received| received.seq == seq) {
                interrupted |= received.flags & flag::DUMP_INTR != 0;
                match received.kind {
                    NLMSG_ERROR | NLMSG_DONE => {
                        // An error says why there is no dump; DONE carries an error when the dump broke off.
                        let source = match received.body.first_chunk() {
                            Some(code) => os_error(i32::from_ne_bytes(*code)),
                            None => None,
                        };
                        return match source {
                            Some(error) if error.raw_os_error() == Some(Errno::INTR.raw_os_error()) => {
                                Ok(None)
                            }
                            Some(source) => Err(NftError::List { what, source }),
                            None => Ok((!interrupted).then_some(all)),
                        };
                    }
                    _ => all.push(received),
                }
            }
        }
    }

    fn request(
        &mut self,
        kind: u16,
        flags: u16,
        family: u8,
        attrs: &[Attr],
        what: &'static str,
    ) -> Result<u32, NftError> {
        let seq = self.next_seq();
        let mut bytes = Vec::new();
        put_nfgen(&mut bytes, (kind, flag::REQUEST | flags, seq), family, 0, attrs)
            .ok_or(NftError::Malformed { what })?;
        self.send(&bytes)?;
        Ok(seq)
    }

    /// One request outside a transaction. False: what it is about is not there.
    pub(crate) fn command(
        &mut self,
        kind: u16,
        family: u8,
        attrs: &[Attr],
        what: &'static str,
    ) -> Result<bool, NftError> {
        let seq = self.request(kind, flag::ACK, family, attrs, what)?;
        loop {
            let mut answers = self.receive()?.into_iter();
            let Some(received) = answers.find(|received| received.seq == seq) else { continue };
            return match parse_error(&received)?.0 {
                None => Ok(true),
                Some(gone) if gone.raw_os_error() == Some(Errno::NOENT.raw_os_error()) => Ok(false),
                Some(source) => Err(NftError::List { what, source }),
            };
        }
    }

    /// A number for the next request.
    pub(crate) fn next_seq(&mut self) -> u32 {
        self.seq += 1;
        self.seq
    }

    /// Sends `bytes`, whole messages, in one datagram.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> Result<(), NftError> {
        // A transaction is one datagram, however large; the kernel wants room for it and its bookkeeping.
        let _ = set_socket_send_buffer_size_force(&self.socket, bytes.len() + (64 << 10));
        let sent = rustix::io::retry_on_intr(|| rustix::net::send(&self.socket, bytes, SendFlags::empty()));
        match sent {
            Ok(length) if length == bytes.len() => Ok(()),
            Ok(_) => Err(NftError::Malformed { what: "a datagram sent in part" }),
            Err(Errno::AGAIN) => Err(NftError::Timeout { after: ANSWER_TIMEOUT }),
            Err(errno) => Err(NftError::Socket { action: "send on", source: errno.into() }),
        }
    }

    pub(crate) fn receive(&mut self) -> Result<Vec<Received>, NftError> {
        let mut buffer = vec![0; DATAGRAM];
        let received =
            rustix::io::retry_on_intr(|| rustix::net::recv(&self.socket, &mut buffer[..], RecvFlags::TRUNC));
        let length = match received {
            Ok((_, length)) if length <= buffer.len() => length,
            Ok(_) => return Err(NftError::Malformed { what: "a datagram of more than 64 KiB" }),
            Err(Errno::AGAIN) => return Err(NftError::Timeout { after: ANSWER_TIMEOUT }),
            Err(errno) => return Err(NftError::Socket { action: "receive from", source: errno.into() }),
        };
        split(&buffer[..length]).ok_or(NftError::Malformed { what: "a message length that does not fit" })
    }
}

fn split(mut bytes: &[u8]) -> Option<Vec<Received>> {
    let mut all = Vec::new();
    while let Some(header) = bytes.first_chunk::<HEADER>() {
        let length =
            usize::try_from(u32::from_ne_bytes([header[0], header[1], header[2], header[3]])).ok()?;
        all.push(Received {
            kind: u16::from_ne_bytes([header[4], header[5]]),
            flags: u16::from_ne_bytes([header[6], header[7]]),
            seq: u32::from_ne_bytes([header[8], header[9], header[10], header[11]]),
            body: bytes.get(HEADER..length)?.to_vec(),
        });
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Some(all)
}

fn batch_mark(out: &mut Vec<u8>, kind: u16, seq: u32) {
    let resource = NFNL_SUBSYS_NFTABLES;
    let written = put_nfgen(out, (kind, flag::REQUEST, seq), 0, resource, &[]);
    debug_assert!(written.is_some(), "a message without attributes always fits");
}

/// Appends an nfnetlink message; `(kind, flags, seq)` are of its header.
fn put_nfgen(
    out: &mut Vec<u8>,
    (kind, flags, seq): (u16, u16, u32),
    family: u8,
    resource: u16,
    attrs: &[Attr],
) -> Option<()> {
    let start = out.len();
    out.extend([0; 4]);
    out.extend(kind.to_ne_bytes());
    out.extend(flags.to_ne_bytes());
    out.extend(seq.to_ne_bytes());
    out.extend([0; 4]);
    out.extend([family, 0]);
    out.extend(resource.to_be_bytes());
    attrs.iter().try_for_each(|attr| attr.write(out))?;
    let length = u32::try_from(out.len() - start).ok()?;
    out[start..start + 4].copy_from_slice(&length.to_ne_bytes());
    Some(())
}

fn os_error(code: i32) -> Option<io::Error> {
    (code != 0).then(|| io::Error::from_raw_os_error(code.saturating_neg()))
}

/// Error (`None` for a plain acknowledgement) and the kernel's words of an `NLMSG_ERROR`.
pub(crate) fn parse_error(received: &Received) -> Result<(Option<io::Error>, Option<String>), NftError> {
    const NLMSGERR_ATTR_MSG: u16 = 1;
    let body = &received.body;
    let code = body.first_chunk().ok_or(NftError::Malformed { what: "a short error" })?;
    let echoed =
        body.get(4..8).and_then(|length| usize::try_from(u32::from_ne_bytes(length.try_into().ok()?)).ok());
    let tlvs = match echoed {
        _ if received.flags & flag::ACK_TLVS == 0 => None,
        Some(_) if received.flags & flag::CAPPED != 0 => Some(4 + HEADER),
        Some(length) => Some(4 + length.next_multiple_of(4)),
        None => None,
    };
    let attrs = tlvs.and_then(|at| wire::parse(body.get(at..)?));
    let words = attrs.and_then(|attrs| wire::find(&attrs, NLMSGERR_ATTR_MSG).map(wire::text));
    Ok((os_error(i32::from_ne_bytes(*code)), words))
}
