//! One request, one answer. Pure: bytes in, bytes out.

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, SOA, SRV, TXT};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use mesh_core::mcs::names::{self, Answer, Data, RecordKind};

use super::Names;

/// Bytes of an answer over UDP to who says how much it takes: what crosses every link unfragmented (DNS flag day 2020).
pub const MAX_UDP: u16 = 1_232;
/// Bytes of an answer over UDP to who says nothing (RFC 1035, section 4.2.1).
pub const MIN_UDP: u16 = 512;
/// Bytes of a header (RFC 1035, section 4.1.1).
const HEADER: usize = 12;

/// How a request came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// A datagram.
    Udp,
    /// A message of a stream.
    Tcp,
}

impl Transport {
    /// For labels.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
        }
    }
}

/// What is answered (RFC 6895, section 2.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// There is such a name.
    NoError,
    /// The request cannot be read.
    FormErr,
    /// Not all names are known yet.
    ServFail,
    /// There is no such name.
    NxDomain,
    /// Another operation than a question.
    NotImp,
    /// Not our zone.
    Refused,
    /// A version of EDNS that nobody knows.
    BadVers,
}

impl Code {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::NoError,
        Self::FormErr,
        Self::ServFail,
        Self::NxDomain,
        Self::NotImp,
        Self::Refused,
        Self::BadVers,
    ];

    /// As everybody calls it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoError => "NOERROR",
            Self::FormErr => "FORMERR",
            Self::ServFail => "SERVFAIL",
            Self::NxDomain => "NXDOMAIN",
            Self::NotImp => "NOTIMP",
            Self::Refused => "REFUSED",
            Self::BadVers => "BADVERS",
        }
    }

    const fn wire(self) -> ResponseCode {
        match self {
            Self::NoError => ResponseCode::NoError,
            Self::FormErr => ResponseCode::FormErr,
            Self::ServFail => ResponseCode::ServFail,
            Self::NxDomain => ResponseCode::NXDomain,
            Self::NotImp => ResponseCode::NotImp,
            Self::Refused => ResponseCode::Refused,
            Self::BadVers => ResponseCode::BADVERS,
        }
    }
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The message, without the length that goes before it over TCP.
    pub bytes: Vec<u8>,
    /// What it says.
    pub code: Code,
    /// There is more, over TCP.
    pub truncated: bool,
}

/// Answers. None: that is no request, and whoever answers answers plays ping-pong. `turn` moves addresses round, so that
/// clients that take the first one are spread.
pub fn respond(request: &[u8], transport: Transport, names: &Names, turn: usize) -> Option<Reply> {
    let flags = request.get(2).filter(|_| request.len() >= HEADER)?;
    if flags & 0x80 != 0 {
        return None;
    }
    let Ok(message) = Message::from_vec(request) else {
        return Some(unreadable(request));
    };
    let mut reply = Message::response(message.metadata.id, message.metadata.op_code);
    reply.metadata.recursion_desired = message.metadata.recursion_desired;
    reply.add_queries(message.queries.iter().take(1).cloned());
    let code = match judged(&message) {
        Err(code) => code,
        Ok(query) => answer(query, names, turn, &mut reply),
    };
    reply.metadata.response_code = code.wire();
    if let Some(asked) = &message.edns {
        let mut edns = Edns::new();
        edns.set_max_payload(MAX_UDP).set_version(0).set_dnssec_ok(asked.flags().dnssec_ok);
        edns.set_rcode_high(code.wire().high());
        reply.set_edns(edns);
    }
    let room = match (transport, &message.edns) {
        (Transport::Tcp, _) => u16::MAX,
        (Transport::Udp, None) => MIN_UDP,
        (Transport::Udp, Some(edns)) => edns.max_payload().clamp(MIN_UDP, MAX_UDP),
    };
    Some(fitted(reply, code, usize::from(room)))
}

/// The question, if it is one that may be asked.
fn judged(message: &Message) -> Result<&Query, Code> {
    if message.metadata.op_code != OpCode::Query || message.metadata.message_type != MessageType::Query {
        return Err(Code::NotImp);
    }
    if message.edns.as_ref().is_some_and(|edns| edns.version() > 0) {
        return Err(Code::BadVers);
    }
    match message.queries.as_slice() {
        [query] => match (query.query_class(), query.query_type()) {
            (DNSClass::IN | DNSClass::ANY, RecordType::AXFR | RecordType::IXFR) => Err(Code::Refused),
            (DNSClass::IN | DNSClass::ANY, _) => Ok(query),
            (DNSClass::CH | DNSClass::HS | DNSClass::NONE | DNSClass::OPT(_) | DNSClass::Unknown(_), _) => {
                Err(Code::Refused)
            }
        },
        _ => Err(Code::FormErr),
    }
}

/// A header that says so. More cannot be said: nothing of the question is known.
fn unreadable(request: &[u8]) -> Reply {
    let mut bytes = vec![0; HEADER];
    bytes[..2].copy_from_slice(&request[..2]);
    // An answer, the same operation, recursion desired as before.
    bytes[2] = 0x80 | request[2] & 0x79;
    bytes[3] = 1;
    Reply { bytes, code: Code::FormErr, truncated: false }
}

fn answer(query: &Query, names: &Names, turn: usize, reply: &mut Message) -> Code {
    let labels: Vec<&[u8]> = query.name().iter().collect();
    let Some(answer) = names.answer(&labels, kind(query.query_type())) else { return Code::ServFail };
    reply.metadata.authoritative = !matches!(answer, Answer::Refused);
    match answer {
        Answer::Refused => Code::Refused,
        Answer::NxDomain(soa) => {
            reply.authorities.extend(record(soa, query));
            Code::NxDomain
        }
        Answer::NoData(soa) => {
            reply.authorities.extend(record(soa, query));
            Code::NoError
        }
        Answer::Found { mut answers, additional } => {
            let by = turn % answers.len().max(1);
            answers.rotate_left(by);
            reply.answers.extend(answers.into_iter().filter_map(|one| record(one, query)));
            reply.additionals.extend(additional.into_iter().filter_map(|one| record(one, query)));
            Code::NoError
        }
    }
}

fn kind(kind: RecordType) -> RecordKind {
    if kind == RecordType::A {
        RecordKind::A
    } else if kind == RecordType::AAAA {
        RecordKind::Aaaa
    } else if kind == RecordType::SRV {
        RecordKind::Srv
    } else if kind == RecordType::TXT {
        RecordKind::Txt
    } else if kind == RecordType::SOA {
        RecordKind::Soa
    } else if kind == RecordType::ANY {
        RecordKind::Any
    } else {
        RecordKind::Other
    }
}

/// A record for the wire. The owner is written as it was asked for: clients that use 0x20 compare letters' case.
fn record(record: names::Record, query: &Query) -> Option<Record> {
    let name = Name::from_ascii(&record.name).ok()?;
    let name = if name == *query.name() { query.name().clone() } else { name };
    let data = match record.data {
        Data::A(address) => RData::A(A(address)),
        Data::Aaaa(address) => RData::AAAA(AAAA(address)),
        Data::Srv { priority, weight, port, target } => {
            RData::SRV(SRV::new(priority, weight, port, Name::from_ascii(&target).ok()?))
        }
        Data::Txt(text) => RData::TXT(TXT::new(vec![text])),
        Data::Soa { mname, rname, serial, refresh, retry, expire, minimum } => {
            let (mname, rname) = (Name::from_ascii(&mname).ok()?, Name::from_ascii(&rname).ok()?);
            let seconds = |seconds: u32| i32::try_from(seconds).unwrap_or(i32::MAX);
            RData::SOA(SOA::new(
                mname,
                rname,
                serial,
                seconds(refresh),
                seconds(retry),
                seconds(expire),
                minimum,
            ))
        }
    };
    Some(Record::from_rdata(name, record.ttl, data))
}

/// As bytes, as long as it may be: first without what nobody asked for, then with as many answers as there is room for, but marked
/// (TC): who cannot come by TCP has some of them.
fn fitted(mut reply: Message, code: Code, room: usize) -> Reply {
    let whole = |reply: &Message| reply.to_vec().ok().filter(|bytes| bytes.len() <= room);
    if let Some(bytes) = whole(&reply) {
        return Reply { bytes, code, truncated: false };
    }
    reply.additionals.clear();
    if let Some(bytes) = whole(&reply) {
        return Reply { bytes, code, truncated: false };
    }
    reply.authorities.clear();
    reply.metadata.truncation = true;
    let answers = std::mem::take(&mut reply.answers);
    let mut best = whole(&reply);
    // So many fit, and so many do not.
    let (mut fit, mut many) = (0, answers.len());
    while best.is_some() && many - fit > 1 {
        let some = usize::midpoint(fit, many);
        reply.answers = answers.iter().take(some).cloned().collect();
        match whole(&reply) {
            Some(bytes) => (best, fit) = (Some(bytes), some),
            None => many = some,
        }
    }
    match best {
        Some(bytes) => Reply { bytes, code, truncated: true },
        None => {
            // A question of at most 255 bytes fits into 512, so this is not seen.
            let failed =
                Message::error_msg(reply.metadata.id, reply.metadata.op_code, ResponseCode::ServFail);
            Reply { bytes: failed.to_vec().unwrap_or_default(), code: Code::ServFail, truncated: false }
        }
    }
}

#[cfg(test)]
mod tests;
