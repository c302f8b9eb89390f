//! The text of the files, both ways. Pure; buffers that held a private key are zeroized.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mesh_core::announcement::Epoch;
use mesh_core::key::PublicKey;
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::SlotKey;
use super::error::Damage;
use crate::private::PrivateKey;

/// The format that is written and read.
pub(super) const FORMAT: u32 = 1;
/// Most bytes of a key file: its lines with an epoch of 20 digits take 217.
pub(super) const KEY_MAX: usize = 256;
/// Most bytes of the epoch file: its lines with an epoch of 20 digits take 114.
pub(super) const EPOCH_MAX: usize = 128;

const KEY_WORDS: [&str; 5] = ["hawser-key", "epoch", "public", "private", "sha256"];
const EPOCH_WORDS: [&str; 3] = ["hawser-epoch", "epoch", "sha256"];

/// Why a text is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// It is of another format.
    Version(u32),
    /// It is of no format.
    Damage(Damage),
}

/// The sum that tells a whole file from a half-written one. It covers the public key in place of the private one,
/// so that no hash function's buffer ever holds a secret.
fn sum(word: &str, epoch: Epoch, public: Option<PublicKey>) -> String {
    let mut hash = Sha256::new();
    hash.update(format!("{word} {FORMAT}\nepoch {}\n", epoch.0));
    if let Some(public) = public {
        hash.update(format!("public {public}\n"));
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A key file.
pub(super) fn render_key(key: &SlotKey) -> Zeroizing<Vec<u8>> {
    let [head, epoch, public, private, sha256] = KEY_WORDS;
    let mut encoded = Zeroizing::new([0; 44]);
    let length = STANDARD
        .encode_slice(key.private.expose().as_slice(), encoded.as_mut_slice())
        .expect("invariant: 32 bytes are 44 characters of base64");
    // All room at once: a vector that grows would leave copies behind.
    let mut text = Zeroizing::new(Vec::with_capacity(KEY_MAX));
    let own = key.public();
    text.extend_from_slice(format!("{head} {FORMAT}\n{epoch} {}\n{public} {own}\n", key.epoch.0).as_bytes());
    text.extend_from_slice(private.as_bytes());
    text.push(b' ');
    text.extend_from_slice(&encoded[..length]);
    text.extend_from_slice(format!("\n{sha256} {}\n", sum(head, key.epoch, Some(own))).as_bytes());
    text
}

/// The epoch file.
pub(super) fn render_epoch(epoch: Epoch) -> Zeroizing<Vec<u8>> {
    let [head, word, sha256] = EPOCH_WORDS;
    let text = format!("{head} {FORMAT}\n{word} {}\n{sha256} {}\n", epoch.0, sum(head, epoch, None));
    Zeroizing::new(text.into_bytes())
}

/// Reads what [`render_key`] writes, and nothing else.
pub(super) fn parse_key(text: &[u8]) -> Result<SlotKey, Fault> {
    let [_, epoch, public, private, _] = lines(text, KEY_WORDS, KEY_MAX)?;
    let epoch = number(epoch, 2)?;
    let line = |line, wanted| Fault::Damage(Damage::Line { line, wanted });
    let public: PublicKey =
        std::str::from_utf8(public).ok().and_then(|text| text.parse().ok()).ok_or(line(3, KEY_WORDS[2]))?;
    // The decoder wants room for a whole number of its steps, three bytes for each four characters.
    let mut decoded = Zeroizing::new([0; 33]);
    let mut bytes = Zeroizing::new([0; 32]);
    match STANDARD.decode_slice(private, decoded.as_mut_slice()) {
        Ok(32) => bytes.copy_from_slice(&decoded[..32]),
        Ok(_) | Err(_) => return Err(line(4, KEY_WORDS[3])),
    }
    let key = SlotKey { epoch, private: PrivateKey::from_bytes(&bytes) };
    if key.public() != public {
        return Err(Fault::Damage(Damage::Mismatch));
    }
    // Also catches what no field shows: bits that clamping clears, zeros in front of a number.
    if render_key(&key).as_slice() != text {
        return Err(Fault::Damage(Damage::Checksum));
    }
    Ok(key)
}

/// Reads what [`render_epoch`] writes, and nothing else.
pub(super) fn parse_epoch(text: &[u8]) -> Result<Epoch, Fault> {
    let [_, epoch, _] = lines(text, EPOCH_WORDS, EPOCH_MAX)?;
    let epoch = number(epoch, 2)?;
    if render_epoch(epoch).as_slice() != text {
        return Err(Fault::Damage(Damage::Checksum));
    }
    Ok(epoch)
}

/// The values of the lines, each of which must begin with its word and a space.
pub(super) fn lines<'a, const N: usize>(
    text: &'a [u8],
    words: [&'static str; N],
    max: usize,
) -> Result<[&'a [u8]; N], Fault> {
    if text.is_empty() {
        return Err(Fault::Damage(Damage::Empty));
    }
    // The version first: another one may have other lines and another length.
    let value = |line: &'a [u8], word: &str| line.strip_prefix(word.as_bytes())?.strip_prefix(b" ");
    let first = text.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let version = value(first, words[0]).and_then(|text| std::str::from_utf8(text).ok()?.parse().ok());
    match version {
        Some(FORMAT) => {}
        Some(other) if text.contains(&b'\n') => return Err(Fault::Version(other)),
        Some(_) | None => return Err(Fault::Damage(Damage::Line { line: 1, wanted: words[0] })),
    }
    if text.len() > max {
        return Err(Fault::Damage(Damage::TooLong { max }));
    }
    let mut values = [&[][..]; N];
    let mut rest = text;
    for (index, word) in words.into_iter().enumerate() {
        let Some(end) = rest.iter().position(|byte| *byte == b'\n') else {
            return Err(Fault::Damage(Damage::Truncated { lines: index, wanted: N }));
        };
        let line = index + 1;
        values[index] =
            value(&rest[..end], word).ok_or(Fault::Damage(Damage::Line { line, wanted: word }))?;
        rest = &rest[end + 1..];
    }
    if rest.is_empty() { Ok(values) } else { Err(Fault::Damage(Damage::Surplus { wanted: N })) }
}

/// An epoch from 1.
pub(super) fn number(text: &[u8], line: usize) -> Result<Epoch, Fault> {
    let number = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok());
    match number {
        Some(number) if number > 0 => Ok(Epoch(number)),
        Some(_) | None => Err(Fault::Damage(Damage::Line { line, wanted: "epoch" })),
    }
}

#[cfg(test)]
mod tests;
