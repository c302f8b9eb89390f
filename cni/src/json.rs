//! Values out of JSON, with the path of each key for the message when it is wrong.
//!
//! Keys are matched as Go's decoder matches them, in any letter case with an exact match first, because
//! containerd passes capability arguments under Go field names (`HostPort` for `hostPort`). `null` is absent,
//! but for who asks whether a key is there.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::{Map, Value};

use crate::error::{Error, shown};

/// A JSON object and where it stands.
#[derive(Clone, Debug)]
pub(crate) struct Object<'a> {
    path: String,
    map: &'a Map<String, Value>,
}

/// A value and where it stands.
#[derive(Clone, Debug)]
pub(crate) struct Field<'a> {
    path: String,
    value: &'a Value,
}

impl<'a> Object<'a> {
    pub(crate) fn root(map: &'a Map<String, Value>) -> Self {
        Self { path: String::new(), map }
    }

    fn value(&self, key: &str) -> Option<&'a Value> {
        let folded = || self.map.iter().find(|(name, _)| name.eq_ignore_ascii_case(key)).map(|(_, v)| v);
        self.map.get(key).or_else(folded)
    }

    /// Is `key` there, be it as null?
    pub(crate) fn has(&self, key: &str) -> bool {
        self.value(key).is_some()
    }

    /// The value of `key`, unless it is absent or null.
    pub(crate) fn get(&self, key: &str) -> Option<Field<'a>> {
        let value = self.value(key)?;
        (!value.is_null()).then(|| Field { path: self.path_of(key), value })
    }

    /// The value of `key`.
    pub(crate) fn required(&self, key: &str, remedy: &'static str) -> Result<Field<'a>, Error> {
        self.get(key).ok_or_else(|| Error::Missing { key: self.path_of(key), remedy })
    }

    pub(crate) fn map(&self) -> &'a Map<String, Value> {
        self.map
    }

    fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }
}

impl<'a> Field<'a> {
    /// The error that this value is wrong.
    pub(crate) fn wrong(&self, expected: &'static str) -> Error {
        Error::Config { key: self.path.clone(), value: self.shown(), expected }
    }

    /// The error that this value cannot be honoured.
    pub(crate) fn unsupported(&self, remedy: &'static str) -> Error {
        Error::Unsupported { key: self.path.clone(), value: self.shown(), remedy }
    }

    fn shown(&self) -> String {
        match self.value {
            Value::String(text) => shown(text),
            other
            @ (Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_)) => {
                let text = other.to_string();
                if text.chars().count() <= 80 { text } else { shown(&text) }
            }
        }
    }

    pub(crate) fn value(&self) -> &'a Value {
        self.value
    }

    pub(crate) fn string(&self) -> Result<&'a str, Error> {
        self.value.as_str().ok_or_else(|| self.wrong("a string"))
    }

    /// A boolean, also as the string that libcni accepts for one.
    pub(crate) fn boolean(&self) -> Result<bool, Error> {
        let of_text = || match self.value.as_str()? {
            "true" => Some(true),
            "false" => Some(false),
            _ => None,
        };
        self.value.as_bool().or_else(of_text).ok_or_else(|| self.wrong("true or false"))
    }

    pub(crate) fn unsigned(&self) -> Result<u64, Error> {
        self.value.as_u64().ok_or_else(|| self.wrong("a whole number of 0 or more"))
    }

    pub(crate) fn port(&self) -> Result<u16, Error> {
        let port = self.value.as_u64().and_then(|number| u16::try_from(number).ok());
        port.ok_or_else(|| self.wrong("a port number from 0 to 65535"))
    }

    pub(crate) fn object(&self) -> Result<Object<'a>, Error> {
        let map = self.value.as_object().ok_or_else(|| self.wrong("an object"))?;
        Ok(Object { path: self.path.clone(), map })
    }

    pub(crate) fn array(&self) -> Result<Vec<Field<'a>>, Error> {
        let values = self.value.as_array().ok_or_else(|| self.wrong("a list"))?;
        let path = |index| format!("{}[{index}]", self.path);
        Ok(values.iter().enumerate().map(|(index, value)| Field { path: path(index), value }).collect())
    }

    /// True for an empty string, list or object: what a runtime sends when it has nothing to say.
    pub(crate) fn is_empty(&self) -> bool {
        match self.value {
            Value::Null => true,
            Value::String(text) => text.is_empty(),
            Value::Array(values) => values.is_empty(),
            Value::Object(map) => map.is_empty(),
            Value::Bool(_) | Value::Number(_) => false,
        }
    }
}

/// An address with or without a prefix length; the length is dropped.
pub(crate) fn ip(text: &str) -> Option<IpAddr> {
    text.parse().ok().or_else(|| text.parse::<IpNet>().ok().map(|net| net.addr()))
}

/// True when no two addresses are of one family.
pub(crate) fn one_per_family(ips: &[IpAddr]) -> bool {
    ips.iter().filter(|ip| ip.is_ipv4()).count() <= 1 && ips.iter().filter(|ip| ip.is_ipv6()).count() <= 1
}

/// A unicast MAC address in lower case with colons; `-` is accepted as separator.
pub(crate) fn mac(text: &str) -> Option<String> {
    let parts: Vec<&str> = text.split([':', '-']).collect();
    let octet = |part: &&str| (part.len() == 2).then(|| u8::from_str_radix(part, 16).ok()).flatten();
    let octets: Vec<u8> = parts.iter().map(octet).collect::<Option<_>>()?;
    let usable = octets.len() == 6 && octets[0] & 1 == 0 && octets.iter().any(|octet| *octet != 0);
    let hex: Vec<String> = octets.iter().map(|octet| format!("{octet:02x}")).collect();
    usable.then(|| hex.join(":"))
}
