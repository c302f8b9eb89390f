//! Counters of one device, by reason. They only grow and are read without stopping traffic.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $variant:ident => $group:literal . $name:literal,)*) => {
        /// What is counted.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Counter { $($(#[$doc])* $variant,)* }

        impl Counter {
            /// All counters, in the order in which they are shown.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// Group and name as shown by the statistics socket.
            #[must_use]
            pub const fn name(self) -> (&'static str, &'static str) {
                match self { $(Self::$variant => ($group, $name),)* }
            }
        }
    };
}

counters! {
    /// Inner packet whose destination belongs to no peer.
    NoPeer => "drops"."no_peer",
    /// Inner packet for a peer whose endpoint is not known.
    NoEndpoint => "drops"."no_endpoint",
    /// Packet while the device has no private key, or the peer's key is unusable.
    NoKey => "drops"."no_key",
    /// Decrypted packet whose inner source is not an allowed IP of the peer that sent it.
    WrongSource => "drops"."wrong_source",
    /// Datagram that was seen before, is too old, or fails authentication.
    ReplayOrAuth => "drops"."replay_or_auth",
    /// Datagram for a session or handshake that we do not have.
    UnknownSession => "drops"."unknown_session",
    /// Valid initiation from a static key that is not a peer's.
    UnknownPeer => "drops"."unknown_peer",
    /// Datagram or inner packet that is not well-formed.
    Malformed => "drops"."malformed",
    /// Handshake message dropped under load, with or without a cookie reply.
    RateLimited => "drops"."rate_limited",
    /// Inner packet that did not fit the queue of a peer without a session.
    QueueFull => "drops"."queue_full",
    /// Packet whose thread had more to do than it was done with, of a peer that had its share ([`crate::engine::verdict`]); or datagram
    /// that came to another thread than its peer's, while that had too much to do.
    Busy => "drops"."busy",
    /// Inner packet that is longer than the path to its peer takes in one piece, whose sender was told so by ICMP.
    TooLong => "drops"."too_long",
    /// Inner packets discarded because the handshake they waited for was given up.
    HandshakeTimeout => "drops"."handshake_timeout",
    /// Decrypted packet that the TUN device did not take (down, or gone).
    TunWrite => "drops"."tun_write",
    /// Datagram that the underlay did not take (no route, no socket of that family).
    UdpSend => "drops"."udp_send",
    /// Handshake initiations sent.
    InitiationSent => "handshakes"."initiations_sent",
    /// Handshake responses sent.
    ResponseSent => "handshakes"."responses_sent",
    /// Handshakes completed and confirmed by the other side.
    HandshakeDone => "handshakes"."completed",
    /// Cookie replies sent because of load.
    CookieSent => "handshakes"."cookies_sent",
    /// Cookie replies received and accepted.
    CookieReceived => "handshakes"."cookies_received",
    /// Data packets encrypted and handed to the underlay, keepalives included.
    DataSent => "packets"."sent",
    /// Inner packets delivered to the TUN device.
    DataDelivered => "packets"."delivered",
    /// Authenticated keepalives received.
    KeepaliveReceived => "packets"."keepalives_received",
    /// Datagrams that the kernel gave to another thread than their peer's.
    Strayed => "packets"."strayed",
    /// Endpoint changes learnt from authenticated packets.
    Roamed => "packets"."roamed",
}

/// The counters of one device, apart from what is read for each packet.
#[derive(Debug)]
#[repr(align(128))]
pub struct Counters([AtomicU64; Counter::ALL.len()]);

impl Default for Counters {
    fn default() -> Self {
        Self(std::array::from_fn(|_| AtomicU64::new(0)))
    }
}

impl Counters {
    /// Adds one.
    pub fn add(&self, counter: Counter) {
        self.add_many(counter, 1);
    }

    /// Adds `n`.
    pub fn add_many(&self, counter: Counter, n: u64) {
        // Most that could be counted for a burst is not there, and a locked addition costs more than a look.
        if n == 0 {
            return;
        }
        self.0[counter as usize].fetch_add(n, Ordering::Relaxed);
    }

    /// The present value.
    #[must_use]
    pub fn get(&self, counter: Counter) -> u64 {
        self.0[counter as usize].load(Ordering::Relaxed)
    }

    /// All counters as JSON: `{"interface":NAME,"drops":{…},"handshakes":{…},"packets":{…}}`.
    #[must_use]
    pub fn to_json(&self, interface: &str) -> String {
        let mut root = serde_json::json!({ "interface": interface });
        for &counter in Counter::ALL {
            let (group, name) = counter.name();
            root[group][name] = self.get(counter).into();
        }
        root.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_shown_by_group_and_name() {
        let c = Counters::default();
        c.add_many(Counter::WrongSource, 3);
        let json: serde_json::Value = serde_json::from_str(&c.to_json("hawser0")).unwrap();
        assert_eq!(json["interface"], "hawser0");
        assert_eq!(json["drops"]["wrong_source"], 3);
        assert_eq!(json["handshakes"]["completed"], 0);
    }
}
