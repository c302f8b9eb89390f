//! Which of `Tunn`'s places for sessions are in use, mirrored from the messages that cross its border.
//!
//! ```text
//!   local index:  … 8 9 10 11 12 13 14 15 16 …    each message of a handshake that `Tunn` makes takes the next one
//!   place:        … 0 1  2  3  4  5  6  7  0 …    the session of an index lies at its place, whatever lay there
//! ```
//!
//! An answer makes a session before the initiator has proven that it is there now, so initiations that somebody recorded would
//! push out the session that carries traffic; and `Tunn` would go on to encrypt with whatever took its place. A kernel keeps
//! such sessions apart. Here, indexes whose place is in use are passed over, so that every initiation can be answered:
//! where it could not, two peers with no session in common would refuse each other.
//!
//! An honest peer's newest initiation ends this game: all that were recorded before it have older timestamps.

/// `N_SESSIONS` of boringtun.
pub(super) const PLACES: u32 = 8;
/// Proven sessions that are kept, the last made of them: one to send with, and another where two handshakes crossed. `Tunn`
/// sends with the one that was made last, and of two that were made in one turn of its timers with either.
const KEPT: usize = 2;

#[derive(Clone, Copy, Debug)]
struct Session {
    index: u32,
    /// Grows with each session.
    order: u64,
    /// The peer has shown that it has it, too.
    proven: bool,
}

/// The places of one `Tunn`.
#[derive(Clone, Debug, Default)]
pub(super) struct Places {
    held: [Option<Session>; PLACES as usize],
    /// The index that was taken last. The first is one more than a multiple of [`PLACES`].
    last: u32,
    made: u64,
    /// The session by which the peer was last heard: it may send with an older one than we do.
    heard: Option<u32>,
}

const fn place(index: u32) -> usize {
    (index % PLACES) as usize
}

impl Places {
    /// Takes note of a handshake message that `Tunn` made: an initiation has an index, an answer a session besides.
    pub(super) fn made(&mut self, message: &[u8]) {
        let [kind, _, _, _, index @ ..] = message else { return };
        let Some(index) = index.first_chunk().map(|bytes| u32::from_le_bytes(*bytes)) else { return };
        match kind {
            1 => self.last = index,
            2 => {
                self.last = index;
                self.put(index, false);
            }
            _ => {}
        }
    }

    /// An initiation of ours with this index was answered.
    pub(super) fn answered(&mut self, index: u32) {
        self.put(index, true);
    }

    /// Data of the session with this index was authentic. Whether that was its proof, and no later session has one.
    pub(super) fn heard(&mut self, index: u32) -> bool {
        let Some(session) = self.held[place(index)].as_mut().filter(|s| s.index == index) else {
            return false;
        };
        self.heard = Some(index);
        if std::mem::replace(&mut session.proven, true) {
            return false;
        }
        let order = session.order;
        self.proven().all(|s| s.order <= order)
    }

    /// Whether the next message takes no place in use.
    pub(super) fn next_is_free(&self) -> bool {
        !self.in_use(place(self.last.wrapping_add(1)))
    }

    /// Whether the last message took no place in use; its session is not made yet.
    pub(super) fn last_is_free(&self) -> bool {
        !self.in_use(place(self.last))
    }

    fn put(&mut self, index: u32, proven: bool) {
        self.made += 1;
        self.held[place(index)] = Some(Session { index, order: self.made, proven });
    }

    fn proven(&self) -> impl Iterator<Item = Session> {
        self.held.iter().flatten().copied().filter(|session| session.proven)
    }

    fn in_use(&self, at: usize) -> bool {
        let Some(session) = self.held[at].filter(|session| session.proven) else { return false };
        self.heard == Some(session.index)
            || self.proven().filter(|other| other.order > session.order).count() < KEPT
    }
}
