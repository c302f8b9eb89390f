//! Free text, as logs and files of settings are, in which secrets are found by the names beside them.
//!
//! It is read once, from its start. What is JSON, and what stands between quotes, is taken out of its escapes, cleaned as what it is,
//! and escaped again. What is left is cut off, or of another form: YAML, an assignment, what programs print of their structures.
//! There a value goes on for as long as it may: a quote to the one that closes it, whatever is escaped between them and however many
//! lines, after a colon and a blank to the end of the line, and in YAML over the lines that are indented deeper.

use regex::{Captures, Match, Regex};
use serde_json::Value;

use super::{NAMES, REDACTED, REFERENCE, REFERENCE_ITEM, Redactor, expression, extent, may_refer};

/// Of a name and a value in between.
const SEPARATOR: &str = ":=|=>|==?|:";
/// That may be there, of a string in a string, too.
const QUOTE: &str = r#"(?:\\*["'])?"#;
/// What kubelets and runtimes write before a line of a log, and programs once more.
const STAMPS: &str =
    r"(?:[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}:[0-9]{2}:[0-9]{2}\S{0,32} )*(?:std(?:out|err) [FP] )?";
/// What programs write then.
const LEVELS: &str = r"\[?(?:TRACE|DEBUG|INFO|WARN|WARNING|ERROR)\]?";

/// What is longer between quotes is no name.
const NAME_MAX: usize = 128;
/// How far it is to the quote that closes one on another line: lines and bytes.
const REACH_LINES: usize = 64;
const REACH: usize = 16 * 1024;

/// The expressions.
#[derive(Clone, Debug)]
pub(super) struct Words {
    /// A name that says secret, one that ends so, and one of where the secret is.
    secret: Regex,
    one: Regex,
    points: Regex,
    /// Whatever there is to be looked at in a text.
    event: Regex,
    stamps: Regex,
    /// A line that a program begins with how bad it is.
    record: Regex,
    /// What may be before a name in YAML.
    head: Regex,
    /// After a string: of its value, of the next one in a list.
    separator: Regex,
    comma: Regex,
    /// A string with a name and no value is not one: it is what is between two strings.
    dangling: Regex,
    block: Regex,
    /// What of a value says only how it is written, and what is written so.
    scheme: Regex,
    /// What comes after a value: between braces, after an assignment, after a colon without a blank.
    next_in_braces: Regex,
    next_assigned: Regex,
    next: Regex,
    /// A line of YAML, and a reference to a Secret in its short form.
    line: Regex,
    reference: Regex,
}

impl Words {
    pub(super) fn new() -> Self {
        let name = format!("[A-Za-z0-9_.-]*(?i:{NAMES})[A-Za-z0-9_.-]*");
        let filled = |text: &str| {
            let text = text.replace("%N", &name).replace("%Q", QUOTE).replace("%L", LEVELS);
            expression(&text.replace("%S", SEPARATOR).replace("%T", STAMPS))
        };
        let event = [
            r"%Q(?i:name)%Q[ \t]*:[ \t]*%Q(?P<of>%N)%Q[ \t]*,?\s*%T[ \t]*(?P<value>%Q(?i:value))%Q[ \t]*:(?P<value_gap>[ \t]*)",
            r"(?P<name>%N)%Q[ \t]*(?P<separator>%S)(?P<gap>[ \t]*)",
            r"(?P<flag>--?%N)(?P<flag_gap>[ \t]+|\r?\n[ \t]*-[ \t]+)",
            r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://",
            r#"["{\[]"#,
        ];
        Self {
            secret: expression(&format!("(?i)(?:{NAMES})")),
            one: expression(&format!("(?i)(?:{NAMES})$")),
            points: expression(r"(?:Names?|Refs?|Path|File)$|(?i:[_.-](?:names?|refs?|path|file)$)"),
            event: filled(&event.join("|")),
            stamps: filled("^%T"),
            record: filled(r"^%T[ \t]*%L(?:[:\s]|$)"),
            head: filled(r#"^%T(?: *%L:? +)?(?P<indent>[ \t]*(?:-[ \t]+)*)["']?$"#),
            separator: filled(r"^[ \t]*(?P<separator>%S)(?P<gap>[ \t]*)"),
            comma: expression(r#"^[ \t]*,[ \t]*["']"#),
            dangling: filled(r"%N%Q[ \t]*(?:%S)[ \t]*$"),
            block: expression(r"^[|>][0-9+-]*[ \t]*(?:#[^\n]*)?\r?(?:\n|$)"),
            scheme: expression(
                r#"^(?:[A-Za-z]*[(<])*(?i:bearer|basic|digest|negotiate|token)[ \t]+[^\s"',;&]+"#,
            ),
            next_in_braces: expression(
                r#"(?:[,;]?[ \t]+|[,;])["']?[A-Za-z_][A-Za-z0-9_./-]*["']?[ \t]*[:=]"#,
            ),
            next_assigned: expression(r"(?:[ \t]+|[&,;][ \t]*)[A-Za-z_][A-Za-z0-9_.-]*="),
            next: expression(r"(?:[ \t]+|[&,;][ \t]*)[A-Za-z_][A-Za-z0-9_.-]*[=:]"),
            line: expression(
                r#"^(?P<lead>[ \t]*(?:-[ \t]+)*)(?:(?P<key>"(?:[^"\\]|\\.)*"|'(?:[^']|'')*'|[A-Za-z0-9_./-]+):(?:[ \t]+(?P<rest>.*))?$)?"#,
            ),
            reference: expression(
                r#"^[\[{ ]*(?:(?:name|namespace|secretName|defaultMode|optional): *[A-Za-z0-9_."'-]+[\]} ]*(?:,[\[{ ]*)?)+(?:$|[\]}\s])"#,
            ),
        }
    }

    /// Is what stands under this name secret? A name of a Secret is none.
    pub(super) fn is_secret(&self, name: &str) -> bool {
        self.secret.is_match(name) && !self.points.is_match(name)
    }

    /// Does the name say where a secret is?
    pub(super) fn points_to_secret(&self, name: &str) -> bool {
        self.secret.is_match(name) && self.points.is_match(name)
    }

    /// Does the name mean one secret, so that a number under it is no count?
    pub(super) fn is_one(&self, name: &str) -> bool {
        self.one.is_match(name)
    }

    fn without_stamps<'t>(&self, line: &'t str) -> &'t str {
        self.stamps.find(line).map_or(line, |stamps| &line[stamps.end()..])
    }

    /// Does a program say something else from this line on? Without a stamp it may be of a value.
    fn is_record(&self, line: &str) -> bool {
        self.record.is_match(line) && self.without_stamps(line).len() < line.len()
    }

    /// Is it a word that is no secret under this name?
    fn is_kept(&self, line: &str, key: Key<'_>) -> bool {
        let is_end = |c: char| c.is_whitespace() || ",;:)}]\"'".contains(c);
        let (word, after) = line.split_at(line.find(is_end).unwrap_or(line.len()));
        let ends_it = |next: char| {
            let is_tight = next.is_whitespace() || next == ':';
            ",;)}]".contains(next) || is_tight && !key.spaced
        };
        let is_all = after.trim_start().is_empty() || after.starts_with(ends_it);
        if word.is_empty() || !is_all {
            return false;
        }
        matches!(
            word.to_ascii_lowercase().as_str(),
            "null" | "true" | "false" | "none" | "nil" | "<nil>" | "~"
        ) || !self.is_one(key.name) && word.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.')
    }
}

/// A name, and what comes between it and its value.
#[derive(Clone, Copy, Debug)]
struct Key<'k> {
    at: usize,
    name: &'k str,
    separator: &'k str,
    /// Is there a blank before the value?
    spaced: bool,
}

/// A line of YAML.
struct Line<'a> {
    stamps: &'a str,
    body: &'a str,
    lead: &'a str,
    key: Option<&'a str>,
    rest: &'a str,
}

impl Redactor {
    /// Free text, without what stands beside secrets' names, and without who and with what in URLs.
    pub(super) fn walk(&self, text: &str) -> String {
        let mut walk = Walk {
            redactor: self,
            text,
            out: String::with_capacity(text.len()),
            start: 0,
            end: extent::line_end(text, 0),
            counted: 0,
            braces: 0,
        };
        let mut at = 0;
        while let Some(found) = self.words.event.captures_at(text, at) {
            let Some(whole) = found.get(0) else { break };
            walk.out.push_str(&text[at..whole.start()]);
            at = walk.step(&found, whole);
        }
        walk.out.push_str(&text[at..]);
        walk.out
    }
}

/// On the way through a text. Whatever looks at a part of it says where to go on, and has written what is before.
struct Walk<'a> {
    redactor: &'a Redactor,
    text: &'a str,
    out: String,
    /// The line.
    start: usize,
    end: usize,
    /// How many braces are open in it, up to here.
    counted: usize,
    braces: usize,
}

impl<'a> Walk<'a> {
    fn step(&mut self, found: &Captures<'a>, whole: Match<'a>) -> usize {
        let (text, end) = (self.text, whole.end());
        let is_there = |gap: &str| found.name(gap).is_some_and(|gap| !gap.is_empty());
        if let Some(scheme) = found.name("scheme") {
            self.out.push_str(whole.as_str());
            let Some(at) = extent::userinfo(text, end, scheme.as_str()) else { return end };
            self.out.push_str(REDACTED);
            return at;
        }
        if let (Some(of), Some(value)) = (found.name("of"), found.name("value")) {
            self.out.push_str(whole.as_str());
            let spaced = is_there("value_gap");
            return self
                .hide_if_secret(end, Key { at: value.start(), name: of.as_str(), separator: ":", spaced });
        }
        if let (Some(name), Some(separator)) = (found.name("name"), found.name("separator")) {
            self.out.push_str(whole.as_str());
            let (at, separator, spaced) = (name.start(), separator.as_str(), is_there("gap"));
            // A module of a program, a file that cannot be read, or the end of a key that has letters of such a name.
            let is_other = separator == ":"
                && (!spaced && text[end..].starts_with(':')
                    || text[..at].ends_with("::")
                    || extent::is_in_path(text, at))
                || separator.starts_with('=') && extent::is_key(&text[..name.end()]);
            let key = Key { at, name: name.as_str(), separator, spaced };
            return if is_other { end } else { self.hide_if_secret(end, key) };
        }
        if let (Some(flag), Some(gap)) = (found.name("flag"), found.name("flag_gap")) {
            let before = text[..flag.start()].chars().next_back();
            if before.is_some_and(|before| before.is_alphanumeric() || "_.-".contains(before)) {
                self.out.push_str(flag.as_str());
                return flag.end();
            }
            self.out.push_str(whole.as_str());
            if text[end..].starts_with('-') {
                return end;
            }
            let is_listed = gap.as_str().contains('\n');
            let at = if is_listed { end } else { flag.start() };
            return self
                .hide_if_secret(end, Key { at, name: flag.as_str(), separator: " ", spaced: is_listed });
        }
        if whole.as_str() == "\"" {
            return self.literal(whole.start());
        }
        if let Some((value, end)) = extent::json(text, whole.start()) {
            self.out.push_str(&self.redactor.structure(value, &text[whole.start()..end]));
            return end;
        }
        self.out.push_str(whole.as_str());
        end
    }

    /// A string in double quotes, or only a quote.
    fn literal(&mut self, at: usize) -> usize {
        let (text, words) = (self.text, &self.redactor.words);
        let close = extent::literal(text, at);
        let Some(close) = close.filter(|close| !words.dangling.is_match(&text[at + 1..*close])) else {
            self.out.push('"');
            return at + 1;
        };
        let (inner, after) = (&text[at + 1..close], &text[close + 1..]);
        let unescaped =
            if inner.contains('\\') { serde_json::from_str::<String>(&text[at..=close]).ok() } else { None };
        if let Some(found) = words.comma.find(after)
            && self.redactor.is_flag(inner)
        {
            // The value's first quote is the last of what was found.
            let value = close + found.end();
            self.out.push_str(&text[at..value]);
            if text[value + 1..].starts_with('-') {
                return value;
            }
            return self.hide(value, Key { at, name: inner, separator: ",", spaced: false });
        }
        match &unescaped {
            Some(unescaped) => {
                let clean = self.redactor.text(unescaped);
                if clean == *unescaped {
                    self.out.push_str(&text[at..=close]);
                } else {
                    self.out.push_str(&Value::String(clean).to_string());
                }
            }
            None => {
                self.out.push('"');
                self.out.push_str(&self.redactor.walk(inner));
                self.out.push('"');
            }
        }
        // Whatever is in it: it stands where a name does.
        let name = unescaped.as_deref().unwrap_or(inner);
        let is_name = name.len() < NAME_MAX && words.is_secret(name);
        let Some(found) = words.separator.captures(after).filter(|_| is_name) else { return close + 1 };
        let value = close + 1 + found[0].len();
        self.out.push_str(&text[close + 1..value]);
        let key = Key { at: at + 1, name, separator: &found["separator"], spaced: !found["gap"].is_empty() };
        self.hide(value, key)
    }

    fn hide_if_secret(&mut self, at: usize, key: Key<'_>) -> usize {
        if self.redactor.is_secret(key.name) { self.hide(at, key) } else { at }
    }

    /// Takes out the value of a secret's name, which begins here.
    fn hide(&mut self, at: usize, key: Key<'_>) -> usize {
        self.look_at(at);
        let (text, words) = (self.text, &self.redactor.words);
        let (rest, lead) = (&text[at..], &text[self.start..key.at]);
        let head = words.head.captures(lead);
        let column = head.and_then(|found| found.name("indent").map(|indent| indent.len()));
        for quotes in ["\"\"\"", "'''"] {
            if rest.starts_with(quotes)
                && let Some(length) = rest[3..].find(quotes)
            {
                self.out.push_str(quotes);
                self.out.push_str(REDACTED);
                self.out.push_str(quotes);
                return at + length + 6;
            }
        }
        let slashes = rest.len() - rest.trim_start_matches('\\').len();
        if rest[slashes..].starts_with(['"', '\'']) {
            return self.quoted(at, at + slashes + 1, column);
        }
        if rest.starts_with(['{', '[']) {
            return self.bracketed(at, column, key);
        }
        if text[at..self.end].trim_end().is_empty() {
            return match column {
                Some(column) if key.separator == ":" => self.nested(at, column, key),
                Some(_) | None => at,
            };
        }
        if key.separator == ":" && words.block.is_match(rest) {
            let lead = words.without_stamps(lead);
            let column = column.unwrap_or_else(|| indent(lead));
            let end = self.deeper(Some(column), "");
            if end == self.end {
                return at;
            }
            self.out.push_str(REDACTED);
            return end;
        }
        self.plain(at, column, key)
    }

    /// Between quotes, over lines if need be, whatever they are indented. Without a quote that closes it, all that it may be.
    fn quoted(&mut self, at: usize, inner: usize, column: Option<usize>) -> usize {
        let text = self.text;
        let near = extent::quoted(text, at, self.end).or_else(|| extent::quoted(text, at, self.reach()));
        let end = if near.is_some() { self.end } else { self.deeper(column, "") };
        let found = near.or_else(|| extent::quoted(text, at, end));
        self.out.push_str(&text[at..inner]);
        let Some((value, after)) = found else {
            if inner < end {
                self.out.push_str(REDACTED);
            }
            return end;
        };
        if !value.is_empty() {
            self.out.push_str(REDACTED);
        }
        self.out.push_str(&text[value.end..after]);
        if after > self.end {
            // If that one opens another string, nobody closed this one: what on its line is secret cannot be told.
            let line = text[at..value.end].rsplit('\n').next().unwrap_or_default();
            let before = self.redactor.words.without_stamps(line).trim_start();
            if before.ends_with([' ', '\t', '=', ':', ',', '(', '[', '{']) {
                return extent::line_end(text, after);
            }
        }
        after
    }

    /// Up to where a quote is looked for that closes one on this line.
    fn reach(&self) -> usize {
        let text = self.text;
        let mut furthest = text.len().min(self.end + REACH);
        while !text.is_char_boundary(furthest) {
            furthest -= 1;
        }
        let mut end = self.end;
        for _ in 0..REACH_LINES {
            if end >= furthest {
                break;
            }
            let next = extent::line_end(&text[..furthest], end + 1);
            if self.redactor.words.is_record(&text[end + 1..next]) {
                break;
            }
            end = next;
        }
        end
    }

    /// Between brackets.
    fn bracketed(&mut self, at: usize, column: Option<usize>, key: Key<'_>) -> usize {
        let text = self.text;
        if let Some((mut value, end)) = extent::json(text, at) {
            self.redactor.beneath(key.name, &mut value);
            self.out.push_str(&value.to_string());
            return end;
        }
        if may_refer(key.name) && self.redactor.words.reference.is_match(&text[at..self.end]) {
            return at;
        }
        let end = self.deeper(column, "]}");
        self.out.push_str(&text[at..=at]);
        let Some(after) = extent::bracketed(text, at, end) else {
            self.out.push_str(REDACTED);
            return end;
        };
        let inside = &text[at + 1..after - 1];
        self.out.push_str(if inside.trim_start().is_empty() { inside } else { REDACTED });
        self.out.push_str(&text[after - 1..after]);
        after
    }

    /// In the lines after it, which are indented deeper: names stay.
    fn nested(&mut self, at: usize, column: usize, key: Key<'_>) -> usize {
        let (text, end) = (self.text, self.deeper(Some(column), "-"));
        if end == self.end {
            return at;
        }
        let lines: Vec<Line<'_>> = text[self.end + 1..end].split('\n').map(|line| self.line(line)).collect();
        let keys = || lines.iter().filter(|line| !line.body.trim_start().is_empty()).map(|line| line.key);
        let has_items = keys().any(|name| name == Some("items"));
        let refers = |name: &str| {
            REFERENCE.contains(&name) || has_items && (name == "items" || REFERENCE_ITEM.contains(&name))
        };
        if may_refer(key.name) && keys().all(|name| name.is_some_and(refers)) {
            return at;
        }
        self.out.push_str(&text[at..self.end]);
        // What is indented deeper than this belongs to a value that is gone.
        let mut gone: Option<usize> = None;
        for line in lines {
            let is_blank = line.body.trim_start().is_empty();
            let indent = indent(line.body);
            if gone.is_some_and(|gone| is_blank || indent > gone) {
                continue;
            }
            gone = None;
            self.out.push('\n');
            self.out.push_str(line.stamps);
            if is_blank {
                continue;
            }
            self.out.push_str(line.lead);
            match line.key {
                None => {
                    self.out.push_str(REDACTED);
                    gone = Some(indent);
                }
                Some(name) => {
                    self.out.push_str(name);
                    self.out.push(':');
                    if !line.rest.is_empty() {
                        self.out.push(' ');
                        self.out.push_str(REDACTED);
                        gone = Some(line.lead.len());
                    }
                }
            }
        }
        end
    }

    fn line(&self, line: &'a str) -> Line<'a> {
        let words = &self.redactor.words;
        let body = words.without_stamps(line);
        let stamps = &line[..line.len() - body.len()];
        let body = body.trim_end_matches('\r');
        let found = words.line.captures(body);
        let part = |name: &str| found.as_ref().and_then(|found| found.name(name)).map(|part| part.as_str());
        Line {
            stamps,
            body,
            lead: part("lead").unwrap_or_default(),
            key: part("key"),
            rest: part("rest").unwrap_or_default(),
        }
    }

    /// What begins without a quote or a bracket.
    fn plain(&mut self, at: usize, column: Option<usize>, key: Key<'_>) -> usize {
        let (text, words) = (self.text, &self.redactor.words);
        let line = text[at..self.end].trim_end();
        if words.is_kept(line, key) {
            return at;
        }
        let is_colon = key.separator == ":";
        // What comes next is looked for after it: `abc=` is no assignment there.
        let lead = words.scheme.find(line).map_or(0, |scheme| scheme.end());
        let rest = &line[lead..];
        let end = if self.braces > 0 && (key.spaced || is_colon) {
            let brace = || line.rfind('}').filter(|brace| extent::is_over(line, brace + 1));
            let next = words.next_in_braces.find(rest).map(|next| lead + next.start());
            at + next.or_else(brace).unwrap_or(line.len())
        } else if key.spaced || line.starts_with('\\') {
            let deeper = if is_colon { self.deeper(column, "") } else { self.end };
            if deeper > self.end { deeper } else { at + line.len() }
        } else if column.is_some() && !is_colon && key.separator != " " {
            at + words.next_assigned.find(rest).map_or(line.len(), |next| lead + next.start())
        } else {
            let word = rest.find(char::is_whitespace).map_or(line, |length| &line[..lead + length]);
            let next = if is_colon { &words.next } else { &words.next_assigned };
            let word = next.find(&word[lead..]).map_or(word, |next| &word[..lead + next.start()]);
            at + word.trim_end_matches([',', ';', ')', '}', ']', '"', '\'']).len()
        };
        if end > at {
            self.out.push_str(REDACTED);
        }
        end
    }

    /// The end of the lines after this one that are indented deeper than a column, or as deep and begin with one of these; without
    /// a column, of this line. A line with which a program begins anew belongs to none: it is indented to be as wide as others.
    fn deeper(&self, column: Option<usize>, or_with: &str) -> usize {
        let Some(column) = column else { return self.end };
        let (mut at, mut end) = (self.end, self.end);
        while at < self.text.len() {
            let next = extent::line_end(self.text, at + 1);
            let line = &self.text[at + 1..next];
            if self.redactor.words.is_record(line) {
                break;
            }
            let body = self.redactor.words.without_stamps(line);
            if !body.trim_start().is_empty() {
                let indent = indent(body);
                let is_with = body[indent..].starts_with(|first: char| or_with.contains(first));
                if indent < column || indent == column && !is_with {
                    break;
                }
                end = next;
            }
            at = next;
        }
        end
    }

    /// Goes on to a place: its line, and the braces that are open there.
    fn look_at(&mut self, at: usize) {
        if at > self.end {
            self.start = self.text[..at].rfind('\n').map_or(0, |end| end + 1);
            self.end = extent::line_end(self.text, at);
        }
        if at < self.counted {
            return;
        }
        for byte in self.text[self.counted..at].bytes() {
            match byte {
                b'\n' => self.braces = 0,
                b'{' => self.braces += 1,
                b'}' => self.braces = self.braces.saturating_sub(1),
                _ => {}
            }
        }
        self.counted = at;
    }
}

fn indent(line: &str) -> usize {
    line.len() - line.trim_start_matches([' ', '\t']).len()
}
