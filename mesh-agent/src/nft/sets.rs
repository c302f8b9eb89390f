//! Sets and maps: their messages, and their elements as the kernel keeps them.

use super::encode::{EncodeError, Message, Object, check_interface, padded};
use super::model::{Elements, Family, Set, address_bytes};
use super::observe::Key;
use super::ports;
use super::wire::{Attr, NFPROTO_INET, flag, msg, nfta};

/// Elements in one message: 3 attributes of at most 36 bytes each stay far below 64 KiB.
const ELEMENTS_PER_MESSAGE: usize = 500;

/// Type numbers of nft's own numbering, for its listing.
pub(super) const TYPE_IPADDR: u32 = 7;
pub(super) const TYPE_IP6ADDR: u32 = 8;
const TYPE_IFNAME: u32 = 41;

/// What a set can hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SetShape {
    /// `NFT_SET_*`.
    pub flags: u32,
    /// nft's number for the type of the key.
    pub key_type: u32,
    /// Length of the key in bytes.
    pub key_len: u32,
    /// nft's number for the type of a map's data; 0: no map.
    pub data_type: u32,
    /// Length of a map's data in bytes.
    pub data_len: u32,
}

/// Flags, types and lengths of a set.
pub(super) fn set_shape(elements: &Elements) -> SetShape {
    const NFT_SET_INTERVAL: u32 = 4;
    let set = |flags, key_type, key_len| SetShape { flags, key_type, key_len, ..SetShape::default() };
    match elements {
        Elements::Addresses(ranges) => match ranges.family() {
            Family::V4 => set(NFT_SET_INTERVAL, TYPE_IPADDR, 4),
            Family::V6 => set(NFT_SET_INTERVAL, TYPE_IP6ADDR, 16),
        },
        Elements::Interfaces(_) => set(0, TYPE_IFNAME, 16),
        Elements::Ports(map) => ports::shape(map),
    }
}

pub(super) fn set_message(table: &str, set: &Set, id: u32) -> Message {
    /// `NFTNL_UDATA_SET_KEYBYTEORDER` and `_DATABYTEORDER`; without them nft cannot print names.
    const UDATA_KEY_BYTE_ORDER: u8 = 0;
    const UDATA_DATA_BYTE_ORDER: u8 = 1;
    let shape = set_shape(&set.elements);
    let byte_order: u32 = match set.elements {
        Elements::Interfaces(_) => 1,
        Elements::Addresses(_) | Elements::Ports(_) => 2,
    };
    let mut userdata = Vec::new();
    let mut say = |what: u8| {
        userdata.extend([what, 4]);
        userdata.extend(byte_order.to_ne_bytes());
    };
    say(UDATA_KEY_BYTE_ORDER);
    let mut attrs = vec![
        Attr::text(nfta::SET_TABLE, table),
        Attr::text(nfta::SET_NAME, &set.name),
        Attr::be32(nfta::SET_FLAGS, shape.flags),
        Attr::be32(nfta::SET_KEY_TYPE, shape.key_type),
        Attr::be32(nfta::SET_KEY_LEN, shape.key_len),
        Attr::be32(nfta::SET_ID, id),
    ];
    if shape.data_type != 0 {
        say(UDATA_DATA_BYTE_ORDER);
        attrs.push(Attr::be32(nfta::SET_DATA_TYPE, shape.data_type));
        attrs.push(Attr::be32(nfta::SET_DATA_LEN, shape.data_len));
    }
    attrs.push(Attr::bytes(nfta::SET_USERDATA, userdata));
    let object = Object::Set { table: table.to_owned(), set: set.name.clone() };
    Message { kind: msg::NEWSET, flags: flag::CREATE, family: NFPROTO_INET, attrs, object }
}

/// The elements as the kernel keeps them: a range is its first key and, marked as an end, the key after its last,
/// unless there is none after it.
pub(super) fn set_keys(elements: &Elements) -> Vec<Key> {
    match elements {
        Elements::Addresses(ranges) => {
            let family = ranges.family();
            let mut keys = Vec::new();
            for &(first, last) in ranges.as_slice() {
                keys.push((address_bytes(family, first), false));
                if last < family.max() {
                    keys.push((address_bytes(family, last + 1), true));
                }
            }
            keys
        }
        Elements::Interfaces(names) => names.iter().map(|name| (padded(name), false)).collect(),
        Elements::Ports(map) => ports::elements(map).map(|element| (element, false)).collect(),
    }
}

pub(super) fn element_messages(table: &str, set: &Set) -> Result<Vec<Message>, EncodeError> {
    const NFT_SET_ELEM_INTERVAL_END: u32 = 1;
    let at = |from| Object::Elements { table: table.to_owned(), set: set.name.clone(), from };
    if let Elements::Interfaces(names) = &set.elements {
        names.iter().try_for_each(|name| check_interface(name, &at(0)))?;
    }
    let keys = set_keys(&set.elements);
    let key_len = usize::try_from(set_shape(&set.elements).key_len).unwrap_or(usize::MAX);
    let messages = keys.chunks(ELEMENTS_PER_MESSAGE).enumerate().map(|(chunk, keys)| {
        let elements = keys.iter().map(|(bytes, end)| {
            let (key, data) = bytes.split_at(key_len.min(bytes.len()));
            let value = |kind, bytes: &[u8]| Attr::nested(kind, vec![Attr::bytes(nfta::DATA_VALUE, bytes)]);
            let mut element = vec![value(nfta::ELEM_KEY, key)];
            if !data.is_empty() {
                element.push(value(nfta::ELEM_DATA, data));
            }
            if *end {
                element.push(Attr::be32(nfta::ELEM_FLAGS, NFT_SET_ELEM_INTERVAL_END));
            }
            Attr::nested(nfta::LIST_ELEM, element)
        });
        let attrs = vec![
            Attr::text(nfta::ELEMS_TABLE, table),
            Attr::text(nfta::ELEMS_SET, &set.name),
            Attr::nested(nfta::ELEMS_LIST, elements.collect()),
        ];
        let object = at(chunk * ELEMENTS_PER_MESSAGE);
        Message { kind: msg::NEWSETELEM, flags: flag::CREATE, family: NFPROTO_INET, attrs, object }
    });
    Ok(messages.collect())
}
