//! Where in a text something ends: pure, without a notion of what is secret.

use std::ops::Range;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD_NO_PAD;
use serde_json::Value;

/// How far back a word is looked at: a line may be megabytes without a blank.
const WORD_MAX: usize = 256;

/// The end of the line at a place, without its end of line.
pub(super) fn line_end(text: &str, at: usize) -> usize {
    text[at..].find('\n').map_or(text.len(), |length| at + length)
}

/// An object or a list in JSON that begins here, and where it ends.
pub(super) fn json(text: &str, at: usize) -> Option<(Value, usize)> {
    let mut read = serde_json::Deserializer::from_str(&text[at..]).into_iter::<Value>();
    let value = read.next()?.ok()?;
    let end = at + read.byte_offset();
    (value.is_object() || value.is_array()).then_some((value, end))
}

/// How many fields it has, with those of what is in it.
pub(super) fn members(value: &Value) -> usize {
    match value {
        Value::Array(items) => items.iter().map(members).sum(),
        Value::Object(fields) => fields.len() + fields.values().map(members).sum::<usize>(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => 0,
    }
}

/// How many colons are in JSON outside of its strings: one for each field that is written there.
pub(super) fn colons(json: &str) -> usize {
    let (mut count, mut inside, mut escaped) = (0, false, false);
    for byte in json.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if inside => escaped = true,
            b'"' => inside = !inside,
            b':' if !inside => count += 1,
            _ => {}
        }
    }
    count
}

/// The last quote of a string that begins here, on its line and with what stands before and after strings: a quote that is alone
/// in its line must not turn round what is inside of strings and what is outside.
pub(super) fn literal(text: &str, at: usize) -> Option<usize> {
    let opens = |before: char| before.is_whitespace() || "[{(<,;:=|'`".contains(before);
    if text[..at].chars().next_back().is_some_and(|before| !opens(before)) {
        return None;
    }
    let mut escaped = false;
    for (place, byte) in text.bytes().enumerate().skip(at + 1) {
        match byte {
            b'\n' => return None,
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return is_over(text, place + 1).then_some(place),
            _ => {}
        }
    }
    None
}

/// Is what ends here followed by what stands after things that are over?
pub(super) fn is_over(text: &str, at: usize) -> bool {
    text[at..].chars().next().is_none_or(|after| after.is_whitespace() || "]})>,;:='`.".contains(after))
}

/// What is between quotes, and where it goes on after them. At the place is the first quote, with backslashes if it stands in a
/// string of JSON itself, however deep.
pub(super) fn quoted(text: &str, at: usize, end: usize) -> Option<(Range<usize>, usize)> {
    let bytes = &text.as_bytes()[..end];
    let run = bytes[at..].iter().take_while(|byte| **byte == b'\\').count();
    let quote = bytes.get(at + run).copied().filter(|byte| matches!(*byte, b'"' | b'\''))?;
    // A quote has 1 backslash before it in a string, 3 in a string of a string, then 7.
    let level = (run + 1).ilog2();
    let start = at + run + 1;
    let (mut place, mut slashes) = (start, 0);
    while let Some(&byte) = bytes.get(place) {
        if byte == b'\\' {
            slashes += 1;
            place += 1;
            continue;
        }
        if byte == quote {
            let after = &text[place + 1..end];
            // One that is meant: in YAML twice, in shells 'it'\''s'.
            let again = after.trim_start_matches('\\');
            let between = after.len() - again.len();
            if quote == b'\'' && again.starts_with('\'') && (between == 0 || slashes == 0) {
                place += between + 2;
                slashes = 0;
                continue;
            }
            let next = after.chars().next();
            // In YAML a backslash escapes nothing between these.
            let alone = quote == b'\'' && next.is_none_or(|next| matches!(next, '\n' | '\r'));
            if (closes(slashes, level) || alone) && next.is_none_or(|next| !next.is_alphanumeric()) {
                return Some((start..place - run.min(slashes), place + 1));
            }
        }
        slashes = 0;
        place += 1;
    }
    None
}

/// Does a quote with so many backslashes before it end a string that is in so many others?
fn closes(mut slashes: usize, level: u32) -> bool {
    for _ in 0..level {
        if slashes.is_multiple_of(2) {
            // It ends one of those that this one is in.
            return true;
        }
        slashes = (slashes - 1) / 2;
    }
    slashes.is_multiple_of(2)
}

/// Where it goes on after the bracket that closes the one here.
pub(super) fn bracketed(text: &str, at: usize, end: usize) -> Option<usize> {
    let bytes = &text.as_bytes()[..end];
    let (mut place, mut depth, mut before) = (at, 0_usize, b' ');
    // Those that nothing closes up to the end: to look for each again would take as long as it is, as many times.
    let mut unclosed: Vec<(Option<u8>, u32)> = Vec::new();
    while let Some(&byte) = bytes.get(place) {
        let opens = byte != b'\'' || b"[{,:= (".contains(&before);
        match byte {
            b'[' | b'{' => depth += 1,
            b']' | b'}' => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    return Some(place + 1);
                }
            }
            b'"' | b'\'' | b'\\' if opens => {
                let run = bytes[place..].iter().take_while(|byte| **byte == b'\\').count();
                let quote = (bytes.get(place + run).copied(), (run + 1).ilog2());
                if !unclosed.contains(&quote) {
                    if let Some((_, after)) = quoted(text, place, end) {
                        place = after;
                        before = b'"';
                        continue;
                    }
                    if matches!(quote.0, Some(b'"' | b'\'')) {
                        unclosed.push(quote);
                    }
                }
                // What is escaped here counts for nothing.
                place += run;
            }
            _ => {}
        }
        before = *bytes.get(place)?;
        place += 1;
    }
    None
}

/// The @ that ends who and with what in a URL, whose part after the // begins here. It is the last one, since passwords are written
/// there as they are, with @ and / in them; but a host without a password may have one in its path.
pub(super) fn userinfo(text: &str, at: usize, scheme: &str) -> Option<usize> {
    let rest = &text[at..];
    let ends = |place: usize, c: char| {
        let is = |what: &str| rest[place..].starts_with(what);
        // Another URL, or an image's digest.
        c.is_whitespace() || is("://") || is("@sha256:") || is("@sha512:")
    };
    let url =
        rest.char_indices().find(|&(place, c)| ends(place, c)).map_or(rest, |(place, _)| &rest[..place]);
    let last = url.rfind('@')?;
    let Some(authority) = url.find(['/', '?', '#']).map(|length| &url[..length]) else {
        return Some(at + last);
    };
    if last < authority.len() || authority.contains('@') {
        return Some(at + last);
    }
    let host = if authority.starts_with('[') {
        authority.split_once(']').map_or(authority, |(_, port)| port)
    } else {
        authority
    };
    let (_, port) = host.split_once(':')?;
    let is_web = ["http", "https", "ws", "wss"].iter().any(|web| scheme.eq_ignore_ascii_case(web));
    let is_port = is_web && port.bytes().all(|byte| byte.is_ascii_digit());
    (!is_port).then_some(at + last)
}

/// Is what ends here the last part of a file's path?
pub(super) fn is_in_path(text: &str, at: usize) -> bool {
    let before = &text[..at];
    // What follows a colon is no longer of the path: a line of that file.
    let is_of_word = |c: char| !c.is_whitespace() && !"\"'(=:".contains(c);
    let word = before.char_indices().rev().take(WORD_MAX).take_while(|&(_, c)| is_of_word(c)).last();
    let word = word.map_or("", |(place, _)| &before[place..]);
    ["/", "./", "../"].iter().any(|start| word.starts_with(start))
}

/// Does it end with 32 bytes in base64, but for the `=` after them? A word of 43 letters says nothing beside.
pub(super) fn is_key(text: &str) -> bool {
    let is_letter = |byte: &u8| byte.is_ascii_alphanumeric() || b"+/".contains(byte);
    let length = text.bytes().rev().take(44).take_while(is_letter).count();
    length == 43 && BASE64_STANDARD_NO_PAD.decode(&text[text.len() - 43..]).is_ok()
}
