//! The life of WireGuard keys on a node.
//!
//! - [`PrivateKey`]: an X25519 private key that cannot be printed, copied, compared or serialized.
//! - [`validate_public`]: what a public key must be before it is given to WireGuard.
//! - [`codec`]: the `hawser.dev/wireguard` annotation of a Node, both ways.
//! - [`psk`]: post-quantum pre-shared keys: cryptography, exchange, files.
//! - [`store`]: the two key files of a node.
//! - [`rotation`]: replacing both keys while pairs go on talking, as a pure machine.

pub mod codec;
mod excerpt;
mod private;
pub mod psk;
mod public;
pub mod rotation;
pub mod store;

pub use codec::{AnnouncementError, decode, encode};
pub use excerpt::Excerpt;
pub use private::{PrivateKey, RandomError};
pub use public::{RefusedKey, validate_public};
pub use store::{LoadedStore, SlotKey, Store, StoreError};
