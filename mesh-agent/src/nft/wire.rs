//! Netlink attributes, and the numbers of `linux/netfilter/nf_tables.h` and `nfnetlink.h` in use here.

/// A netlink attribute to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Attr {
    pub(crate) kind: u16,
    pub(crate) value: Value,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Value {
    Bytes(Vec<u8>),
    Nested(Vec<Attr>),
}

impl Attr {
    pub(crate) fn bytes(kind: u16, value: impl Into<Vec<u8>>) -> Self {
        Self { kind, value: Value::Bytes(value.into()) }
    }

    pub(crate) fn be32(kind: u16, value: u32) -> Self {
        Self::bytes(kind, value.to_be_bytes())
    }

    pub(crate) fn be64(kind: u16, value: u64) -> Self {
        Self::bytes(kind, value.to_be_bytes())
    }

    pub(crate) fn text(kind: u16, value: &str) -> Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        Self::bytes(kind, bytes)
    }

    pub(crate) fn nested(kind: u16, value: Vec<Self>) -> Self {
        Self { kind, value: Value::Nested(value) }
    }

    /// Appends the attribute. `None`: it, or one inside it, is longer than a netlink attribute can be (65,535 bytes).
    pub(crate) fn write(&self, out: &mut Vec<u8>) -> Option<()> {
        const NLA_F_NESTED: u16 = 1 << 15;
        let start = out.len();
        let kind = match &self.value {
            Value::Bytes(_) => self.kind,
            Value::Nested(_) => self.kind | NLA_F_NESTED,
        };
        out.extend([0, 0]);
        out.extend(kind.to_ne_bytes());
        match &self.value {
            Value::Bytes(bytes) => out.extend(bytes),
            Value::Nested(inner) => inner.iter().try_for_each(|attr| attr.write(out))?,
        }
        let length = u16::try_from(out.len() - start).ok()?;
        out[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        out.resize(out.len().next_multiple_of(4), 0);
        Some(())
    }
}

/// The attributes in `bytes`, type bits removed. `None`: a length does not fit.
pub(crate) fn parse(mut bytes: &[u8]) -> Option<Vec<(u16, &[u8])>> {
    const NLA_TYPE_MASK: u16 = 0x3fff;
    let mut attrs = Vec::new();
    while bytes.len() >= 4 {
        let length = usize::from(u16::from_ne_bytes([bytes[0], bytes[1]]));
        let kind = u16::from_ne_bytes([bytes[2], bytes[3]]) & NLA_TYPE_MASK;
        attrs.push((kind, bytes.get(4..length)?));
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Some(attrs)
}

/// The value of the first attribute of this kind.
pub(crate) fn find<'a>(attrs: &[(u16, &'a [u8])], kind: u16) -> Option<&'a [u8]> {
    attrs.iter().find(|attr| attr.0 == kind).map(|attr| attr.1)
}

pub(crate) fn be32(bytes: &[u8]) -> Option<u32> {
    bytes.try_into().ok().map(u32::from_be_bytes)
}

pub(crate) fn be64(bytes: &[u8]) -> Option<u64> {
    bytes.try_into().ok().map(u64::from_be_bytes)
}

pub(crate) fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// Whether `found` holds exactly `expected`, in any order, but for attributes that `tolerated` lets the kernel add.
pub(crate) fn same(found: &[u8], expected: &[Attr], tolerated: &dyn Fn(u16, &[u8]) -> bool) -> bool {
    let Some(found) = parse(found) else { return false };
    let sent = expected.iter().all(|attr| {
        find(&found, attr.kind).is_some_and(|value| match &attr.value {
            Value::Bytes(bytes) => value == bytes.as_slice(),
            Value::Nested(inner) => same(value, inner, &|_, _| false),
        })
    });
    sent && found
        .iter()
        .all(|(kind, value)| expected.iter().any(|attr| attr.kind == *kind) || tolerated(*kind, value))
}

pub(crate) const NETLINK_NETFILTER: isize = 12;
pub(crate) const NFPROTO_INET: u8 = 1;
pub(crate) const NFPROTO_IPV4: u8 = 2;
pub(crate) const NFPROTO_IPV6: u8 = 10;

pub(crate) const NFNL_SUBSYS_NFTABLES: u16 = 10;
pub(crate) const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
pub(crate) const NFNL_MSG_BATCH_END: u16 = 0x11;

/// `NFT_MSG_*`.
pub(crate) mod msg {
    pub(crate) const NEWTABLE: u16 = 0;
    pub(crate) const GETTABLE: u16 = 1;
    pub(crate) const DELTABLE: u16 = 2;
    pub(crate) const NEWCHAIN: u16 = 3;
    pub(crate) const GETCHAIN: u16 = 4;
    pub(crate) const NEWRULE: u16 = 6;
    pub(crate) const GETRULE: u16 = 7;
    pub(crate) const DELRULE: u16 = 8;
    pub(crate) const NEWSET: u16 = 9;
    pub(crate) const GETSET: u16 = 10;
    pub(crate) const NEWSETELEM: u16 = 12;
    pub(crate) const GETSETELEM: u16 = 13;
    pub(crate) const GETGEN: u16 = 16;
}

/// `NLM_F_*` (`linux/netlink.h`).
pub(crate) mod flag {
    pub(crate) const REQUEST: u16 = 0x1;
    pub(crate) const ACK: u16 = 0x4;
    pub(crate) const DUMP_INTR: u16 = 0x10;
    pub(crate) const CAPPED: u16 = 0x100;
    pub(crate) const ACK_TLVS: u16 = 0x200;
    pub(crate) const DUMP: u16 = 0x300;
    pub(crate) const CREATE: u16 = 0x400;
    pub(crate) const APPEND: u16 = 0x800;
}

/// Attribute numbers (`NFTA_*`), by object.
pub(crate) mod nfta {
    pub(crate) const LIST_ELEM: u16 = 1;
    pub(crate) const GEN_ID: u16 = 1;
    pub(crate) const TABLE_NAME: u16 = 1;
    pub(crate) const TABLE_FLAGS: u16 = 2;
    pub(crate) const CHAIN_TABLE: u16 = 1;
    pub(crate) const CHAIN_NAME: u16 = 3;
    pub(crate) const CHAIN_HOOK: u16 = 4;
    pub(crate) const CHAIN_POLICY: u16 = 5;
    pub(crate) const CHAIN_TYPE: u16 = 7;
    pub(crate) const HOOK_HOOKNUM: u16 = 1;
    pub(crate) const HOOK_PRIORITY: u16 = 2;
    pub(crate) const RULE_TABLE: u16 = 1;
    pub(crate) const RULE_CHAIN: u16 = 2;
    pub(crate) const RULE_HANDLE: u16 = 3;
    pub(crate) const RULE_EXPRESSIONS: u16 = 4;
    pub(crate) const RULE_USERDATA: u16 = 7;
    pub(crate) const EXPR_NAME: u16 = 1;
    pub(crate) const EXPR_DATA: u16 = 2;
    pub(crate) const SET_TABLE: u16 = 1;
    pub(crate) const SET_NAME: u16 = 2;
    pub(crate) const SET_FLAGS: u16 = 3;
    pub(crate) const SET_KEY_TYPE: u16 = 4;
    pub(crate) const SET_KEY_LEN: u16 = 5;
    pub(crate) const SET_DATA_TYPE: u16 = 6;
    pub(crate) const SET_DATA_LEN: u16 = 7;
    pub(crate) const SET_ID: u16 = 10;
    pub(crate) const SET_USERDATA: u16 = 13;
    pub(crate) const ELEMS_TABLE: u16 = 1;
    pub(crate) const ELEMS_SET: u16 = 2;
    pub(crate) const ELEMS_LIST: u16 = 3;
    pub(crate) const ELEM_KEY: u16 = 1;
    pub(crate) const ELEM_DATA: u16 = 2;
    pub(crate) const ELEM_FLAGS: u16 = 3;
    pub(crate) const DATA_VALUE: u16 = 1;
    pub(crate) const DATA_VERDICT: u16 = 2;
    pub(crate) const VERDICT_CODE: u16 = 1;
    pub(crate) const META_DREG: u16 = 1;
    pub(crate) const META_KEY: u16 = 2;
    pub(crate) const CT_DREG: u16 = 1;
    pub(crate) const CT_KEY: u16 = 2;
    pub(crate) const CT_DIRECTION: u16 = 3;
    pub(crate) const CMP_SREG: u16 = 1;
    pub(crate) const CMP_OP: u16 = 2;
    pub(crate) const CMP_DATA: u16 = 3;
    pub(crate) const BITWISE_SREG: u16 = 1;
    pub(crate) const BITWISE_DREG: u16 = 2;
    pub(crate) const BITWISE_LEN: u16 = 3;
    pub(crate) const BITWISE_MASK: u16 = 4;
    pub(crate) const BITWISE_XOR: u16 = 5;
    pub(crate) const BITWISE_OP: u16 = 6;
    pub(crate) const PAYLOAD_DREG: u16 = 1;
    pub(crate) const PAYLOAD_BASE: u16 = 2;
    pub(crate) const PAYLOAD_OFFSET: u16 = 3;
    pub(crate) const PAYLOAD_LEN: u16 = 4;
    pub(crate) const LOOKUP_SET: u16 = 1;
    pub(crate) const LOOKUP_SREG: u16 = 2;
    pub(crate) const LOOKUP_DREG: u16 = 3;
    pub(crate) const LOOKUP_FLAGS: u16 = 5;
    pub(crate) const FIB_DREG: u16 = 1;
    pub(crate) const FIB_RESULT: u16 = 2;
    pub(crate) const FIB_FLAGS: u16 = 3;
    pub(crate) const IMMEDIATE_DREG: u16 = 1;
    pub(crate) const IMMEDIATE_DATA: u16 = 2;
    pub(crate) const COUNTER_BYTES: u16 = 1;
    pub(crate) const COUNTER_PACKETS: u16 = 2;
    pub(crate) const MASQ_FLAGS: u16 = 1;
    pub(crate) const REJECT_TYPE: u16 = 1;
    pub(crate) const REJECT_ICMP_CODE: u16 = 2;
    pub(crate) const NAT_TYPE: u16 = 1;
    pub(crate) const NAT_FAMILY: u16 = 2;
    pub(crate) const NAT_REG_ADDR_MIN: u16 = 3;
    pub(crate) const NAT_REG_ADDR_MAX: u16 = 4;
    pub(crate) const NAT_REG_PROTO_MIN: u16 = 5;
    pub(crate) const NAT_REG_PROTO_MAX: u16 = 6;
    pub(crate) const NAT_FLAGS: u16 = 7;
}
