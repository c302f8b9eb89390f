//! A pod's policy in a few words: `in deny, in a allow, in x tcp/80 udp/53, out world deny, audit`.
//!
//! `in` and `out` name the direction; then a class (the name of an address, `world`, `unknown`; without one: all that have no
//! row), then `allow`, `deny` or ports: `tcp`, `tcp/80`, `tcp/8080/13` (the first 13 bits), `any`, each with a `-` for denied.

use datapath::abi;

use super::bench::{Bench, class, key};
use super::names::Family;
use super::packet::{SCTP, TCP, UDP};

impl Bench {
    /// Changes a pod's policy as the agent does it: the bank not in use, the epoch, then the other bank.
    pub(crate) fn policy(&mut self, pod: &str, text: &str) {
        self.stage(pod, text);
        self.next_epoch();
        self.settle(pod);
    }

    /// Writes a pod's policy into the bank that no packet reads.
    pub(crate) fn stage(&mut self, pod: &str, text: &str) {
        let side = self.write(text);
        self.sides.insert(pod.to_owned(), side);
        self.endpoint(pod, |endpoint, idle| endpoint.side[idle] = side);
    }

    /// After an epoch: both banks say the same again.
    pub(crate) fn settle(&mut self, pod: &str) {
        let side = self.sides[pod];
        self.endpoint(pod, |endpoint, _| endpoint.side = [side; 2]);
    }

    fn endpoint(&mut self, pod: &str, change: impl FnOnce(&mut abi::Endpoint, usize)) {
        let ifindex = self.device(pod);
        let mut endpoint = self.kernel.get("endpoints", ifindex).expect("every pod has an endpoint");
        change(&mut endpoint, usize::from(self.epoch.is_multiple_of(2)));
        self.kernel.put("endpoints", ifindex, endpoint);
    }

    /// Writes a new table and its port functions, which no side names yet.
    fn write(&mut self, text: &str) -> abi::Side {
        let mut side = abi::Side { table: self.number(), fallback: [abi::HW_FN_ALLOW; 2], flags: 0 };
        for item in text.split(',').map(str::trim).filter(|item| !item.is_empty()) {
            let words: Vec<&str> = item.split_whitespace().collect();
            let direction = match words[0] {
                "in" => abi::HW_INGRESS,
                "out" => abi::HW_EGRESS,
                "audit" => {
                    side.flags |= abi::HW_SIDE_AUDIT;
                    continue;
                }
                "closed" => {
                    side = abi::Side::CLOSED;
                    continue;
                }
                other => panic!("{other:?} is neither in, out, audit nor closed"),
            };
            let is_port = |word: &str| {
                let name = word.trim_start_matches('-').split('/').next().unwrap_or_default();
                ["allow", "deny", "tcp", "udp", "sctp", "icmp", "any"].contains(&name)
            };
            let says = if is_port(words[1]) { &words[1..] } else { &words[2..] };
            let says = self.function(says);
            if is_port(words[1]) {
                side.fallback[usize::try_from(direction).expect("0 or 1")] = says;
            } else {
                let row = abi::RowKey { table: side.table, class: class(words[1]), direction };
                self.kernel.put("rows", row, says);
            }
        }
        side
    }

    pub(crate) fn number(&mut self) -> u32 {
        self.fresh += 1;
        self.fresh
    }

    fn function(&mut self, words: &[&str]) -> u32 {
        match words {
            ["allow"] => return abi::HW_FN_ALLOW,
            ["deny"] => return abi::HW_FN_DENY,
            _ => {}
        }
        let number = self.number();
        for word in words {
            let allowed = !word.starts_with('-');
            let mut parts = word.trim_start_matches('-').split('/');
            let protocol = match parts.next() {
                Some("tcp") => TCP,
                Some("udp") => UDP,
                Some("sctp") => SCTP,
                Some("icmp") if self.family == Family::V4 => 1,
                Some("icmp") => 58,
                Some("any") => 0,
                other => panic!("{other:?} is no protocol"),
            };
            let port: Option<u16> = parts.next().map(|port| port.parse().expect("a port"));
            let bits: u32 = parts.next().map_or(16, |bits| bits.parse().expect("bits of a port"));
            let bits = match (protocol, port) {
                (0, _) => 32,
                (_, None) => 48,
                (_, Some(_)) => 48 + bits,
            };
            let key = port_key(number, protocol, port.unwrap_or(0));
            // The rule's number is the function's, so that events can be told apart.
            self.kernel.put_prefix("ports", bits, key, number << 1 | u32::from(allowed));
        }
        number
    }

    /// Marks the address of a pod that is gone.
    pub(crate) fn gone(&mut self, name: &str) {
        for family in [Family::V4, Family::V6] {
            let mut known: abi::Address =
                self.kernel.get("addresses", key(name, family)).expect("a known address");
            known.flags |= abi::HW_ADDRESS_GONE;
            self.kernel.put("addresses", key(name, family), known);
        }
    }

    /// Nobody has told us of this address.
    pub(crate) fn forget(&mut self, name: &str) {
        for family in [Family::V4, Family::V6] {
            self.kernel.remove::<abi::Addr, abi::Address>("addresses", key(name, family));
        }
    }
}

/// The bytes behind the length in `struct hw_port_key`.
pub(crate) fn port_key(function: u32, protocol: u8, port: u16) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&function.to_ne_bytes());
    bytes[4] = protocol;
    bytes[6..].copy_from_slice(&port.to_be_bytes());
    bytes
}
