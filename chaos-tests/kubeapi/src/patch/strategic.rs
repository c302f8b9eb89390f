//! Strategic merge patch: a merge patch that merges known lists by key, with directives.
//!
//! Source: "Update API Objects in Place Using kubectl patch" and `strategicpatch` of apimachinery.

use serde_json::{Map, Value};

use crate::error::ApiError;
use crate::schema::{Schema, Strategic};

const ORDER: &str = "$setElementOrder/";
const DELETE_PRIMITIVE: &str = "$deleteFromPrimitiveList/";
const RETAIN_KEYS: &str = "$retainKeys";
const DIRECTIVE: &str = "$patch";

/// Applies `patch` to `target` as the type `schema` says.
pub(crate) fn apply(target: &Value, patch: &Value, schema: Schema<'_>) -> Result<Value, ApiError> {
    let (Some(target), Some(patch)) = (target.as_object(), patch.as_object()) else {
        return Err(ApiError::bad_request("a strategic merge patch must be a JSON object"));
    };
    Ok(merge_map(target, patch, schema, true)?.unwrap_or_else(|| Value::Object(Map::new())))
}

/// `None` stands for a map that deletes itself.
fn merge_map(
    target: &Map<String, Value>,
    patch: &Map<String, Value>,
    schema: Schema<'_>,
    root: bool,
) -> Result<Option<Value>, ApiError> {
    match patch.get(DIRECTIVE).map(Value::as_str) {
        Some(Some("delete")) => return Ok(None),
        Some(Some("replace")) => {
            let mut replaced = patch.clone();
            replaced.remove(DIRECTIVE);
            return Ok(Some(Value::Object(replaced)));
        }
        Some(Some("merge")) | None => {}
        Some(Some(other)) => {
            return Err(ApiError::bad_request(format!("unknown $patch directive \"{other}\"")));
        }
        Some(None) => return Err(ApiError::bad_request("$patch must be a string")),
    }
    let mut out = target.clone();
    if let Some(keys) = patch.get(RETAIN_KEYS) {
        let keys = keys.as_array().ok_or_else(|| ApiError::bad_request("$retainKeys must be a list"))?;
        out.retain(|field, _| keys.iter().any(|k| k == field));
    }
    for (field, delta) in patch {
        if field == DIRECTIVE || field == RETAIN_KEYS || field.starts_with(ORDER) {
            continue;
        }
        if let Some(list) = field.strip_prefix(DELETE_PRIMITIVE) {
            let gone =
                delta.as_array().ok_or_else(|| ApiError::bad_request(format!("{field} must be a list")))?;
            if let Some(Value::Array(items)) = out.get_mut(list) {
                items.retain(|item| !gone.contains(item));
            }
            continue;
        }
        let inner = if root { schema.root_field(field) } else { schema.field(field) };
        if delta.is_null() {
            out.remove(field);
        } else if let Some(delta) = delta.as_object() {
            let empty = Map::new();
            let old = out.get(field).and_then(Value::as_object).unwrap_or(&empty);
            match merge_map(old, delta, inner, false)? {
                Some(merged) => out.insert(field.clone(), merged),
                None => out.remove(field),
            };
        } else if let Some(delta) = delta.as_array() {
            let empty = Vec::new();
            let old = out.get(field).and_then(Value::as_array).unwrap_or(&empty);
            let merged = merge_list(old, delta, schema.strategic(field), inner)?;
            out.insert(field.clone(), Value::Array(merged));
        } else {
            out.insert(field.clone(), delta.clone());
        }
    }
    for (field, order) in patch {
        let (Some(list), Some(order)) = (field.strip_prefix(ORDER), order.as_array()) else { continue };
        let strategic = schema.strategic(list);
        if let Some(Value::Array(items)) = out.get_mut(list) {
            reorder(items, order, strategic);
        }
    }
    // What a patch inserts anew must not carry directives of deeper maps.
    Ok(Some(Value::Object(out)))
}

fn merge_list(
    old: &[Value],
    delta: &[Value],
    strategic: Strategic,
    schema: Schema<'_>,
) -> Result<Vec<Value>, ApiError> {
    let is_replace = |v: &Value| v.get(DIRECTIVE).is_some_and(|d| d == "replace");
    if delta.iter().any(|item| is_replace(item) && item.as_object().is_some_and(|m| m.len() == 1)) {
        return Ok(delta.iter().filter(|item| !is_replace(item)).cloned().collect());
    }
    match strategic {
        Strategic::Replace => Ok(delta.to_vec()),
        Strategic::MergePrimitive => {
            let mut out = old.to_vec();
            for item in delta {
                if !out.contains(item) {
                    out.push(item.clone());
                }
            }
            Ok(out)
        }
        Strategic::MergeBy(key) => {
            let mut out = old.to_vec();
            for item in delta {
                let (Some(fields), Some(id)) = (item.as_object(), item.get(key)) else {
                    return Err(ApiError::bad_request(format!(
                        "an item of a merged list does not contain its merge key \"{key}\": {item}"
                    )));
                };
                let place = out.iter().position(|o| o.get(key) == Some(id));
                let empty = Map::new();
                let before = place.and_then(|p| out[p].as_object()).unwrap_or(&empty);
                match (merge_map(before, fields, schema, false)?, place) {
                    (Some(merged), Some(place)) => out[place] = merged,
                    (Some(merged), None) => out.push(merged),
                    // A delete removes every item of that key.
                    (None, _) => out.retain(|o| o.get(key) != Some(id)),
                }
            }
            Ok(out)
        }
    }
}

/// Sorts what `order` names as it says; other items keep their place relative to their predecessor.
fn reorder(items: &mut [Value], order: &[Value], strategic: Strategic) {
    let rank = |item: &Value| match strategic {
        Strategic::MergeBy(key) => {
            order.iter().position(|o| o.get(key).is_some() && o.get(key) == item.get(key))
        }
        Strategic::MergePrimitive | Strategic::Replace => order.iter().position(|o| o == item),
    };
    let mut last = 0;
    let mut ranks: Vec<(usize, usize, Value)> = items
        .iter()
        .enumerate()
        .map(|(i, item)| {
            let named = rank(item);
            if let Some(named) = named {
                last = named;
            }
            (named.unwrap_or(last), if named.is_some() { 0 } else { i + 1 }, item.clone())
        })
        .collect();
    ranks.sort_by_key(|(rank, tie, _)| (*rank, *tie));
    for (slot, (_, _, item)) in items.iter_mut().zip(ranks) {
        *slot = item;
    }
}
