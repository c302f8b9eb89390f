//! The one nf_tables table a switch needs, written as nfnetlink messages (linux/netfilter/nf_tables.h).

use crate::error::{Context, LabError};
use netlink_sys::{Socket, protocols::NETLINK_NETFILTER};

const TABLE: &str = "cuts";
const CHAIN: &str = "forward";

const NFPROTO_BRIDGE: u8 = 7;
const NF_BR_FORWARD: u32 = 2;
const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
const NFNL_MSG_BATCH_END: u16 = 0x11;
const NFT_MSG_NEWTABLE: u16 = NFNL_SUBSYS_NFTABLES << 8;
const NFT_MSG_DELTABLE: u16 = NFT_MSG_NEWTABLE | 2;
const NFT_MSG_NEWCHAIN: u16 = NFT_MSG_NEWTABLE | 3;
const NFT_MSG_NEWRULE: u16 = NFT_MSG_NEWTABLE | 6;

const NLM_F_REQUEST: u16 = 1;
const NLM_F_CREATE: u16 = 0x400;
const NLM_F_APPEND: u16 = 0x800;
const NLMSG_ERROR: u16 = 2;
const NLA_F_NESTED: u16 = 0x8000;

const NFT_META_IIFNAME: u32 = 6;
const NFT_META_OIFNAME: u32 = 7;
const NFT_REG_1: u32 = 1;
const IFNAMSIZ: usize = 16;

/// Drops frames forwarded from the first to the second port of each pair, and no others. All in one
/// transaction, in the network namespace of the calling thread.
pub(crate) fn replace_cuts(pairs: &[(String, String)]) -> Result<(), LabError> {
    let object = "the cuts of a switch";
    let mut socket = Socket::new(NETLINK_NETFILTER).context("open a netfilter socket for", object)?;
    socket.bind_auto().context("bind a netfilter socket for", object)?;
    let batch = batch(pairs);
    let sent = socket.send(&batch, 0).context("send", object)?;
    if sent != batch.len() {
        return Err(std::io::Error::from(std::io::ErrorKind::WriteZero)).context("send", object);
    }
    // The kernel has worked the batch off when send returns. Refusals are waiting; success is silent, as a
    // thousand acknowledgements would not fit the socket's buffer.
    socket.set_non_blocking(true).context("read the answers about", object)?;
    loop {
        let mut answer = Vec::with_capacity(64 << 10);
        match socket.recv(&mut answer, 0) {
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return Ok(()),
            other => other.context("read the answers about", object)?,
        };
        first_error(&answer).map_or(Ok(()), Err).context("set", object)?;
    }
}

/// The first refusal in a datagram of answers.
fn first_error(mut answers: &[u8]) -> Option<std::io::Error> {
    while let Some(header) = answers.get(..16) {
        let length = usize::try_from(u32::from_ne_bytes(header[..4].try_into().ok()?)).ok()?;
        let kind = u16::from_ne_bytes(header[4..6].try_into().ok()?);
        let code = answers.get(16..20).and_then(|c| c.try_into().ok()).map(i32::from_ne_bytes);
        if let (NLMSG_ERROR, Some(code @ ..0)) = (kind, code) {
            return Some(std::io::Error::from_raw_os_error(-code));
        }
        answers = answers.get(length.max(16).next_multiple_of(4)..)?;
    }
    None
}

fn batch(pairs: &[(String, String)]) -> Vec<u8> {
    let mut out = Vec::new();
    message(&mut out, NFNL_MSG_BATCH_BEGIN, 0, 0, NFNL_SUBSYS_NFTABLES, &[]);
    let table = string(1, TABLE);
    // Made, so that it can be deleted whether or not it was there.
    nft(&mut out, NFT_MSG_NEWTABLE, NLM_F_CREATE, &table);
    nft(&mut out, NFT_MSG_DELTABLE, 0, &table);
    if !pairs.is_empty() {
        nft(&mut out, NFT_MSG_NEWTABLE, NLM_F_CREATE, &table);
        let hook = nest(4, &[number(1, NF_BR_FORWARD), number(2, 0)]);
        let chain = [string(1, TABLE), string(3, CHAIN), hook, string(7, "filter")].concat();
        nft(&mut out, NFT_MSG_NEWCHAIN, NLM_F_CREATE, &chain);
        for (from, to) in pairs {
            let drop = nest(2, &[nest(2, &[number(1, 0)])]);
            let expressions = [
                expression("meta", &[number(1, NFT_REG_1), number(2, NFT_META_IIFNAME)]),
                expression("cmp", &[number(1, NFT_REG_1), number(2, 0), nest(3, &[name(from)])]),
                expression("meta", &[number(1, NFT_REG_1), number(2, NFT_META_OIFNAME)]),
                expression("cmp", &[number(1, NFT_REG_1), number(2, 0), nest(3, &[name(to)])]),
                expression("immediate", &[number(1, 0), drop]),
            ];
            let rule = [string(1, TABLE), string(2, CHAIN), nest(4, &expressions)].concat();
            nft(&mut out, NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND, &rule);
        }
    }
    message(&mut out, NFNL_MSG_BATCH_END, 0, 0, NFNL_SUBSYS_NFTABLES, &[]);
    out
}

fn nft(out: &mut Vec<u8>, kind: u16, flags: u16, attributes: &[u8]) {
    message(out, kind, flags, NFPROTO_BRIDGE, 0, attributes);
}

/// `nlmsghdr`, `nfgenmsg`, attributes.
fn message(out: &mut Vec<u8>, kind: u16, flags: u16, family: u8, resource: u16, attributes: &[u8]) {
    let length = u32::try_from(20 + attributes.len()).expect("invariant: a few attributes");
    out.extend(length.to_ne_bytes());
    out.extend(kind.to_ne_bytes());
    out.extend((flags | NLM_F_REQUEST).to_ne_bytes());
    // Sequence number and port: nobody tells the answers apart.
    out.extend([0; 8]);
    out.extend([family, 0]);
    out.extend(resource.to_be_bytes());
    out.extend(attributes);
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).expect("invariant: short values");
    let mut out = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    out.extend(value);
    out.resize(out.len().next_multiple_of(4), 0);
    out
}

fn nest(kind: u16, parts: &[Vec<u8>]) -> Vec<u8> {
    attribute(kind | NLA_F_NESTED, &parts.concat())
}

fn number(kind: u16, value: u32) -> Vec<u8> {
    attribute(kind, &value.to_be_bytes())
}

fn string(kind: u16, value: &str) -> Vec<u8> {
    attribute(kind, &[value.as_bytes(), b"\0"].concat())
}

/// `NFTA_DATA_VALUE` with a device name as the kernel compares it: padded to `IFNAMSIZ`.
fn name(device: &str) -> Vec<u8> {
    let mut value = device.as_bytes().to_vec();
    value.resize(IFNAMSIZ, 0);
    attribute(1, &value)
}

fn expression(kind: &str, data: &[Vec<u8>]) -> Vec<u8> {
    nest(1, &[string(1, kind), nest(2, data)])
}

#[cfg(test)]
mod tests {
    use super::first_error;

    #[test]
    fn the_first_refusal_among_acknowledgements_is_found() {
        let answer = |code: i32| {
            let mut a = 36_u32.to_ne_bytes().to_vec();
            a.extend(2_u16.to_ne_bytes());
            a.extend([0; 10]);
            a.extend(code.to_ne_bytes());
            a.extend([0; 16]);
            a
        };
        assert!(first_error(&[answer(0), answer(0)].concat()).is_none());
        let error = first_error(&[answer(0), answer(-22), answer(-1)].concat()).unwrap();
        assert_eq!(error.raw_os_error(), Some(22));
        assert!(first_error(&[1, 2, 3]).is_none());
    }
}
