//! JSON as a tree, with duplicate fields refused: `serde_json::Value` keeps the last of them in silence.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use crate::excerpt::Excerpt;

/// The fields of a JSON object.
pub(super) type Object = BTreeMap<String, Json>;

/// A JSON value.
pub(super) enum Json {
    /// `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A whole number from 0 to 2^64 - 1.
    Natural(u64),
    /// The text of any other number.
    Number(String),
    /// A string.
    String(String),
    /// An array.
    Array(Vec<Json>),
    /// An object.
    Object(Object),
}

impl Json {
    /// The value as an error message shows it.
    pub(super) fn excerpt(&self) -> Excerpt {
        match self {
            Self::Null => Excerpt::plain("null"),
            Self::Bool(value) => Excerpt::plain(value),
            Self::Natural(value) => Excerpt::plain(value),
            Self::Number(value) => Excerpt::plain(value),
            Self::String(text) => Excerpt::of(text),
            Self::Array(values) => Excerpt::plain(format_args!("an array of {}", values.len())),
            Self::Object(fields) => Excerpt::plain(format_args!("an object of {} fields", fields.len())),
        }
    }
}

/// Why a text is refused.
pub(super) enum JsonError {
    /// Not JSON, or nested deeper than 128.
    Syntax(serde_json::Error),
    /// This field occurs twice in one object.
    Duplicate(String),
}

/// Parses one JSON value with nothing after it.
pub(super) fn parse(text: &str) -> Result<Json, JsonError> {
    let duplicate = RefCell::new(None);
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let value = Tree(&duplicate).deserialize(&mut deserializer);
    value.and_then(|value| deserializer.end().map(|()| value)).map_err(|error| match duplicate.take() {
        Some(name) => JsonError::Duplicate(name),
        None => JsonError::Syntax(error),
    })
}

/// Builds a [`Json`]; leaves the name of a duplicate field in the cell, since serde's errors carry only text.
#[derive(Clone, Copy)]
struct Tree<'a>(&'a RefCell<Option<String>>);

impl<'de> DeserializeSeed<'de> for Tree<'_> {
    type Value = Json;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Json, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Tree<'_> {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
        Ok(Json::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Json, E> {
        Ok(Json::Natural(value))
    }

    /// Only negative numbers come here.
    fn visit_i64<E>(self, value: i64) -> Result<Json, E> {
        Ok(Json::Number(value.to_string()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Json, E> {
        Ok(Json::Number(format!("{value:?}")))
    }

    fn visit_str<E>(self, value: &str) -> Result<Json, E> {
        Ok(Json::String(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Json, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = access.next_element_seed(self)? {
            values.push(value);
        }
        Ok(Json::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Json, A::Error> {
        let mut fields = Object::new();
        while let Some(name) = access.next_key::<String>()? {
            if fields.contains_key(&name) {
                self.0.replace(Some(name));
                return Err(A::Error::custom("duplicate field"));
            }
            let value = access.next_value_seed(self)?;
            fields.insert(name, value);
        }
        Ok(Json::Object(fields))
    }
}
