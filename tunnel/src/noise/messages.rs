//! The four messages (section 5.4): types, lengths and the indexes in them. All numbers are little-endian.

/// Bytes of an initiation.
pub const INITIATION: usize = 148;
/// Bytes of an answer.
pub const RESPONSE: usize = 92;
/// Bytes of a cookie reply.
pub const COOKIE: usize = 64;
/// Bytes before the content of a data message.
pub const HEADER: usize = 16;
/// Bytes behind the content of a data message, and of every encrypted field.
pub const TAG: usize = 16;
/// What a data message has besides its content, and the least length of one.
pub const OVERHEAD: usize = HEADER + TAG;

pub(crate) const TYPE_INITIATION: u8 = 1;
pub(crate) const TYPE_RESPONSE: u8 = 2;
pub(crate) const TYPE_COOKIE: u8 = 3;
/// First byte of a data message.
pub(crate) const TYPE_DATA: u8 = 4;

/// A datagram whose type and length fit each other.
#[derive(Clone, Copy, Debug)]
pub enum Message<'a> {
    /// First message of a handshake.
    Initiation(&'a [u8; INITIATION]),
    /// Second message of a handshake.
    Response(&'a [u8; RESPONSE]),
    /// What one gets who asks too much.
    Cookie(&'a [u8; COOKIE]),
    /// A packet of a session.
    Data(&'a [u8]),
}

/// Reads type and length; `None` of what is no message. The three bytes behind the type are zero.
#[must_use]
pub fn parse(datagram: &[u8]) -> Option<Message<'_>> {
    let [kind, 0, 0, 0] = *datagram.first_chunk()? else { return None };
    match kind {
        TYPE_INITIATION => datagram.try_into().ok().map(Message::Initiation),
        TYPE_RESPONSE => datagram.try_into().ok().map(Message::Response),
        TYPE_COOKIE => datagram.try_into().ok().map(Message::Cookie),
        TYPE_DATA if datagram.len() >= OVERHEAD => Some(Message::Data(datagram)),
        _ => None,
    }
}

/// `N` bytes of a message from `at` on, which it must have.
pub(super) fn field<const N: usize>(message: &[u8], at: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&message[at..at + N]);
    field
}

fn index(message: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(field(message, at))
}

/// The index that the sender of a handshake message goes by.
#[must_use]
pub fn sender(message: &[u8; INITIATION]) -> u32 {
    index(message, 4)
}

/// The index that who answers goes by.
#[must_use]
pub fn response_sender(message: &[u8; RESPONSE]) -> u32 {
    index(message, 4)
}

/// Whose initiation is answered.
#[must_use]
pub fn response_receiver(message: &[u8; RESPONSE]) -> u32 {
    index(message, 8)
}

/// Whose message a cookie is for.
#[must_use]
pub fn cookie_receiver(message: &[u8; COOKIE]) -> u32 {
    index(message, 4)
}

/// Whose session a data message is of; it must be one.
pub(crate) fn data_receiver(message: &[u8]) -> u32 {
    index(message, 4)
}

/// The number of a data message in its session; it must be one.
pub(crate) fn counter(message: &[u8]) -> u64 {
    u64::from_le_bytes(field(message, 8))
}
