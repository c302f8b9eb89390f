//! Foreign text inside error messages.

use std::fmt;

/// Characters of foreign text that an error message shows at most: a base64 key (44) and an IPv6 address (45) fit.
const SHOWN: usize = 48;

/// The beginning of a text that somebody else wrote, quoted and escaped: on one line, without control characters
/// or changes of writing direction, and short whatever the length of the text, so that it is safe in a log.
#[derive(Clone, PartialEq, Eq)]
pub struct Excerpt(String);

impl Excerpt {
    /// The first characters of `text`.
    pub fn of(text: &str) -> Self {
        let mut shown: String = text.chars().take(SHOWN).flat_map(char::escape_debug).collect();
        shown.insert(0, '"');
        shown.push('"');
        if text.chars().nth(SHOWN).is_some() {
            shown.push_str(&format!("… ({} bytes)", text.len()));
        }
        Self(shown)
    }

    /// A text of our own, such as a number or the name of a JSON type, without quotes.
    pub(crate) fn plain(text: impl fmt::Display) -> Self {
        Self(text.to_string())
    }
}

impl fmt::Display for Excerpt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Excerpt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_megabyte_of_control_characters_becomes_one_short_line() {
        let shown = Excerpt::of(&"\u{202e}\n\u{1b}[31m".repeat(1 << 18)).to_string();
        assert!(shown.len() < 400, "{} bytes", shown.len());
        assert!(shown.chars().all(|c| !c.is_control() && c != '\u{202e}'), "{shown}");
        assert_eq!(Excerpt::of("a\"b").to_string(), r#""a\"b""#);
    }
}
