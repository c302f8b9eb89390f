//! The part of Go's template language in which the chart is written, so that the plain manifests come from the same text without
//! Helm: `.Values.a.b`, `if`/`else`/`end`, `range`, `toYaml` of scalars, and `{{-`, `-}}`. Whatever else stands between braces is an error, so the
//! chart cannot use what this does not know.
//!
//! Semantics as in Go's text/template: `false`, `0`, `""`, `null` and what is empty are false; a range over a map goes by sorted keys.

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

/// Deepest nesting of blocks: more than the chart has, less than a stack.
const DEEPEST: usize = 16;

/// A piece of a template.
#[derive(Debug, PartialEq, Eq)]
enum Piece<'a> {
    Text(&'a str),
    Action(&'a str),
}

/// A template, parsed.
#[derive(Debug)]
enum Node<'a> {
    Text(&'a str),
    Show { what: Path<'a>, yaml: bool },
    If { what: Path<'a>, then: Vec<Node<'a>>, otherwise: Vec<Node<'a>> },
    Range { what: Path<'a>, names: Option<(&'a str, &'a str)>, body: Vec<Node<'a>> },
}

/// What an action speaks of.
#[derive(Debug)]
enum Path<'a> {
    Values(Vec<&'a str>),
    /// `.`, the element of the innermost range.
    Element,
    /// `$name`.
    Variable(&'a str),
}

/// Fills a template.
///
/// # Errors
/// It uses what is not known here, or a value that is not there; the message says where.
pub fn render(template: &str, values: &Value) -> Result<String> {
    let mut pieces = pieces(template)?.into_iter();
    let (nodes, end) = parse(&mut pieces, 0)?;
    ensure!(end.is_none(), "{{{{ {} }}}} closes nothing", end.unwrap_or_default());
    let mut out = String::new();
    fill(&nodes, &Scope { values, element: None, variables: Vec::new() }, &mut out)?;
    Ok(out)
}

/// Text and actions, with white space trimmed where they ask for it.
fn pieces(template: &str) -> Result<Vec<Piece<'_>>> {
    let mut pieces = Vec::new();
    let mut rest = template;
    while let Some((text, after)) = rest.split_once("{{") {
        let (action, after) = after.split_once("}}").context("{{ without }}")?;
        let (action, text) = match action.strip_prefix('-') {
            Some(action) if action.starts_with(char::is_whitespace) => (action, text.trim_end()),
            Some(_) | None => (action, text),
        };
        let (action, after) = match action.strip_suffix('-') {
            Some(action) if action.ends_with(char::is_whitespace) => (action, after.trim_start()),
            Some(_) | None => (action, after),
        };
        pieces.extend([Piece::Text(text), Piece::Action(action.trim())]);
        rest = after;
    }
    pieces.push(Piece::Text(rest));
    Ok(pieces)
}

/// Nodes up to the `end` or `else` that closes this block, which is returned.
fn parse<'a>(
    pieces: &mut impl Iterator<Item = Piece<'a>>,
    depth: usize,
) -> Result<(Vec<Node<'a>>, Option<&'a str>)> {
    ensure!(depth < DEEPEST, "blocks are nested more than {DEEPEST} deep");
    let mut nodes = Vec::new();
    while let Some(piece) = pieces.next() {
        let action = match piece {
            Piece::Text(text) => {
                nodes.push(Node::Text(text));
                continue;
            }
            Piece::Action(action) => action,
        };
        let words: Vec<&str> = action.split_whitespace().collect();
        match words[..] {
            ["end" | "else"] => return Ok((nodes, Some(action))),
            ["if", what] => {
                let (then, end) = parse(pieces, depth + 1)?;
                let otherwise = match end {
                    Some("else") => block(pieces, depth + 1, action)?,
                    Some(_) => Vec::new(),
                    None => bail!("{{{{ {action} }}}} has no end"),
                };
                nodes.push(Node::If { what: path(what)?, then, otherwise });
            }
            ["range", what] => {
                let body = block(pieces, depth + 1, action)?;
                nodes.push(Node::Range { what: path(what)?, names: None, body });
            }
            ["range", key, value, ":=", what] => {
                let names =
                    key.strip_suffix(',').filter(|key| key.starts_with('$') && value.starts_with('$'));
                let names =
                    Some((names.with_context(|| format!("{{{{ {action} }}}}: wanted $key, $value"))?, value));
                let body = block(pieces, depth + 1, action)?;
                nodes.push(Node::Range { what: path(what)?, names, body });
            }
            ["toYaml", what] => nodes.push(Node::Show { what: path(what)?, yaml: true }),
            [what] => nodes.push(Node::Show { what: path(what)?, yaml: false }),
            _ => bail!("{{{{ {action} }}}} is more than this chart may use; see xtask/src/template.rs"),
        }
    }
    Ok((nodes, None))
}

/// A block that has no `else`.
fn block<'a>(
    pieces: &mut impl Iterator<Item = Piece<'a>>,
    depth: usize,
    action: &str,
) -> Result<Vec<Node<'a>>> {
    let (nodes, end) = parse(pieces, depth)?;
    ensure!(end == Some("end"), "{{{{ {action} }}}} has no end of its own");
    Ok(nodes)
}

fn path(word: &str) -> Result<Path<'_>> {
    if word == "." {
        return Ok(Path::Element);
    }
    if word.starts_with('$') {
        return Ok(Path::Variable(word));
    }
    let path = word.strip_prefix(".Values.");
    let path = path.with_context(|| format!("{word} is neither .Values.x, . nor a $variable"))?;
    let names: Vec<&str> = path.split('.').collect();
    ensure!(names.iter().all(|name| !name.is_empty()), "{word} has an empty name in it");
    Ok(Path::Values(names))
}

/// What names mean at a place.
#[derive(Clone)]
struct Scope<'a> {
    values: &'a Value,
    element: Option<&'a Value>,
    variables: Vec<(&'a str, &'a Value)>,
}

impl<'a> Scope<'a> {
    fn find(&self, path: &Path<'_>) -> Result<&'a Value> {
        match path {
            Path::Element => self.element.context("`.` outside of a range"),
            Path::Variable(name) => {
                let found = self.variables.iter().rev().find(|(known, _)| known == name);
                found.map(|(_, value)| *value).with_context(|| format!("{name} is not known here"))
            }
            Path::Values(names) => names.iter().try_fold(self.values, |value, name| {
                value.get(name).with_context(|| format!("there is no value .Values.{}", names.join(".")))
            }),
        }
    }
}

fn fill(nodes: &[Node<'_>], scope: &Scope<'_>, out: &mut String) -> Result<()> {
    for node in nodes {
        match node {
            Node::Text(text) => out.push_str(text),
            Node::Show { what, yaml } => out.push_str(&show(scope.find(what)?, *yaml)?),
            Node::If { what, then, otherwise } => {
                fill(if truth(scope.find(what)?) { then } else { otherwise }, scope, out)?;
            }
            Node::Range { what, names, body } => range(scope.find(what)?, *names, body, scope, out)?,
        }
    }
    Ok(())
}

fn range(
    over: &Value,
    names: Option<(&str, &str)>,
    body: &[Node<'_>],
    scope: &Scope<'_>,
    out: &mut String,
) -> Result<()> {
    let elements: Vec<(Value, &Value)> = match over {
        Value::Array(list) => list.iter().enumerate().map(|(at, value)| (Value::from(at), value)).collect(),
        // Sorted: keys of serde_json's maps are.
        Value::Object(map) => map.iter().map(|(key, value)| (Value::from(key.as_str()), value)).collect(),
        Value::Null => Vec::new(),
        Value::Bool(_) | Value::Number(_) | Value::String(_) => bail!("range over {over}, which is no list"),
    };
    for (key, value) in &elements {
        let mut variables = scope.variables.clone();
        if let Some((key_name, value_name)) = names {
            variables.extend([(key_name, key), (value_name, *value)]);
        }
        fill(body, &Scope { values: scope.values, element: Some(value), variables }, out)?;
    }
    Ok(())
}

fn truth(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(value) => *value,
        Value::Number(value) => value.as_f64() != Some(0.0),
        Value::String(value) => !value.is_empty(),
        Value::Array(value) => !value.is_empty(),
        Value::Object(value) => !value.is_empty(),
    }
}

fn show(value: &Value, yaml: bool) -> Result<String> {
    match value {
        Value::String(text) if yaml && !is_plain(text) => Ok(Value::String(text.clone()).to_string()),
        Value::String(text) => Ok(text.clone()),
        Value::Null if !yaml => bail!("a value that is null is shown; use toYaml or if"),
        Value::Null | Value::Bool(_) | Value::Number(_) => Ok(value.to_string()),
        Value::Array(_) | Value::Object(_) => {
            bail!("{value} is shown whole; its indentation would depend on the place, so use range")
        }
    }
}

/// Whether YAML, 1.1 and 1.2, takes a text without quotes for the same text.
fn is_plain(text: &str) -> bool {
    const WORDS: [&str; 8] = ["true", "false", "null", "yes", "no", "on", "off", "nan"];
    let lower = text.to_ascii_lowercase();
    text.starts_with(|first: char| first.is_ascii_alphabetic() || first == '/')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c))
        && !WORDS.contains(&lower.as_str())
        && lower.len() > 1
}

#[cfg(test)]
mod tests;
