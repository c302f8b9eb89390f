//! What the readers of both kinds share: fields, and what is said of wrong ones.

use ipnet::IpNet;

use crate::policy::model::{LabelSelector, Protocol};
use crate::policy::problems::{HUGE_SELECTOR, PolicyProblem, PolicyRef};
use crate::policy::selector::Selector;

/// Reads one object and remembers what was wrong.
#[derive(Debug)]
pub(crate) struct Reader {
    pub(crate) object: PolicyRef,
    pub(crate) problems: Vec<PolicyProblem>,
}

impl Reader {
    pub(crate) const fn new(object: PolicyRef) -> Self {
        Self { object, problems: Vec::new() }
    }

    /// `wrong` says what is wrong with the value, `then` what happens meanwhile.
    pub(crate) fn report(&mut self, field: &str, value: impl ToString, wrong: &str, then: &str) {
        self.problems.push(PolicyProblem::FieldMalformed {
            object: self.object.clone(),
            field: field.to_owned(),
            value: value.to_string(),
            reason: format!("{wrong}; {then}"),
        });
    }

    pub(crate) fn selector(&mut self, field: &str, selector: &LabelSelector, then: &str) -> Option<Selector> {
        let values: usize = selector.match_expressions.iter().map(|r| r.values.len()).sum();
        let size = values + selector.match_labels.len() + selector.match_expressions.len();
        if size > HUGE_SELECTOR {
            self.report(
                field,
                format!("{size} labels, requirements and values"),
                &format!(
                    "is a huge selector (more than {HUGE_SELECTOR}), which slows every change of a pod down"
                ),
                "it is obeyed; give the pods a label of their own instead",
            );
        }
        match Selector::read(selector) {
            Ok(selector) => Some(selector),
            Err(fault) => {
                self.report(&format!("{field}.{}", fault.field), fault.value, fault.wrong, then);
                None
            }
        }
    }

    pub(crate) fn cidr(&mut self, field: &str, text: &str, then: &str) -> Option<IpNet> {
        let Ok(net) = text.parse::<IpNet>() else {
            self.report(field, text, "is not a CIDR", then);
            return None;
        };
        if is_mapped(&net) {
            self.report(
                field,
                text,
                "lies inside ::ffff:0:0/96, and no packet wears such an address",
                "it contains nothing; write it as IPv4",
            );
        }
        Some(net.trunc())
    }

    pub(crate) fn port(&mut self, field: &str, number: i64, then: &str) -> Option<u16> {
        match u16::try_from(number) {
            Ok(port) if port > 0 => Some(port),
            Ok(_) | Err(_) => {
                self.report(field, number, "is not a port from 1 to 65535", then);
                None
            }
        }
    }

    pub(crate) fn protocol(&mut self, field: &str, text: &str, then: &str) -> Option<Protocol> {
        match text {
            "TCP" => Some(Protocol::Tcp),
            "UDP" => Some(Protocol::Udp),
            "SCTP" => Some(Protocol::Sctp),
            other => {
                self.report(field, other, "is none of TCP, UDP, SCTP", then);
                None
            }
        }
    }
}

/// Is it an IPv6 prefix of IPv4-mapped addresses alone?
pub(crate) fn is_mapped(net: &IpNet) -> bool {
    match net {
        IpNet::V4(_) => false,
        IpNet::V6(net) => net.prefix_len() >= 96 && net.network().to_ipv4_mapped().is_some(),
    }
}

/// The place of an entry in a list of the API, which has far fewer.
pub(crate) fn position(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}
