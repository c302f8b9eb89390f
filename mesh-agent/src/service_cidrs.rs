//! Where Services have their addresses: ServiceCIDR objects (`networking.k8s.io/v1`, KEP-1880, served by every Kubernetes from 1.33
//! on) and the configuration's `serviceCIDRs`. What pods send to an address in them that no Service has, or one that this node
//! has not heard of yet, is nobody's, and above all not the uplink's.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use crate::cache::Cache;

/// `spec.cidrs` of a ServiceCIDR, or why that cannot be read.
pub type ServiceCidr = Result<Vec<String>, String>;

/// ServiceCIDRs by name, and whether the list was complete.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceCidrs {
    /// As they are written.
    pub objects: BTreeMap<String, ServiceCidr>,
    /// A complete list has been seen, or the server has no such kind, or lets nobody see it.
    pub synced: bool,
    /// The server does not let the agent read them.
    pub forbidden: bool,
}

/// Least prefix length: a mistake must not take the world from pods.
pub const MIN_PREFIX: u8 = 8;

impl ServiceCidrs {
    /// What is closed, with what the configuration names, and what is to be said of it.
    pub fn judge(&self, configured: &[IpNet]) -> (Vec<IpNet>, Vec<(String, String)>) {
        let mut closed: BTreeSet<IpNet> = configured.iter().copied().collect();
        let mut findings = Vec::new();
        for (name, object) in &self.objects {
            let mut refuse = |what: String| {
                let text = format!(
                    "ServiceCIDR {name}: {what}: what pods send to addresses of it that no Service has leaves by the uplink"
                );
                findings.push(("service-cidr-refused".to_owned(), text));
            };
            match object {
                Err(reason) => refuse(format!("field spec cannot be read: {reason}")),
                Ok(cidrs) => {
                    for (place, text) in cidrs.iter().enumerate() {
                        match text.parse::<IpNet>() {
                            Ok(net) if net.prefix_len() >= MIN_PREFIX => {
                                closed.insert(net.trunc());
                            }
                            Ok(_) => refuse(format!(
                                "spec.cidrs[{place}]: {text:?} is larger than a /{MIN_PREFIX}; name the smaller prefix in serviceCIDRs of Hawser's configuration"
                            )),
                            Err(_) => {
                                refuse(format!("spec.cidrs[{place}]: {text:?} is no prefix; correct it"))
                            }
                        }
                    }
                }
            }
        }
        if self.synced && closed.is_empty() {
            let (why, cure) = if self.forbidden {
                (
                    "the API server does not let mesh-agent read ServiceCIDRs",
                    "apply the ClusterRole hawser-mesh-agent of this version (deploy/rbac.yaml)",
                )
            } else {
                (
                    "the API server tells of no ServiceCIDR (Kubernetes before 1.33 has none)",
                    "set serviceCIDRs to the API server's --service-cluster-ip-range",
                )
            };
            let text = format!(
                "{why}, and serviceCIDRs of the configuration is empty: what pods send to a Service's address that is nobody's leaves by the uplink in plaintext; {cure}"
            );
            findings.push(("service-cidrs-unknown".to_owned(), text));
        }
        (closed.into_iter().collect(), findings)
    }

    /// Follows a watch. Objects that are all gone are believed as little as a server that knows no such kind any more: there is always
    /// the one that the API server makes of its own flag, and of several servers one may be older. True: there is news.
    pub fn fold(&mut self, cache: &Cache<String, ServiceCidr>, keys: &[String]) -> bool {
        let mut news = std::mem::replace(&mut self.synced, cache.complete()) != cache.complete();
        news |= std::mem::replace(&mut self.forbidden, false);
        if cache.iter().next().is_none() {
            return news;
        }
        for key in keys {
            news |= match cache.get(key) {
                Some(cidrs) => self.objects.insert(key.clone(), cidrs.clone()).as_ref() != Some(cidrs),
                None => self.objects.remove(key).is_some(),
            };
        }
        // What went while nobody was left is no longer among what has changed.
        let before = self.objects.len();
        self.objects.retain(|name, _| cache.get(name).is_some());
        news || self.objects.len() != before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(objects: &[(&str, ServiceCidr)], configured: &[&str]) -> (String, Vec<(String, String)>) {
        let objects = objects.iter().map(|(name, cidrs)| ((*name).to_owned(), cidrs.clone())).collect();
        let configured: Vec<IpNet> = configured.iter().map(|text| text.parse().unwrap()).collect();
        let (closed, findings) =
            ServiceCidrs { objects, synced: true, ..ServiceCidrs::default() }.judge(&configured);
        (closed.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "), findings)
    }

    fn cidrs(list: &[&str]) -> ServiceCidr {
        Ok(list.iter().map(|text| (*text).to_owned()).collect())
    }

    #[test]
    fn all_that_objects_and_configuration_name_is_closed() {
        let objects = [
            ("kubernetes", cidrs(&["10.96.0.0/16", "fd00:96::/112"])),
            ("more", cidrs(&["10.97.0.9/16", "10.96.0.0/16"])),
        ];
        let (closed, findings) = judge(&objects, &["10.98.0.0/24"]);
        assert_eq!(closed, "10.96.0.0/16 10.97.0.0/16 10.98.0.0/24 fd00:96::/112");
        assert_eq!(findings, []);
    }

    #[test]
    fn what_cannot_be_closed_is_named_and_the_rest_is_closed() {
        let objects = [
            ("a", Err("cidrs: wanted a list".to_owned())),
            ("b", cidrs(&["10.0.0.0/7", "nothing", "10.96.0.0/16"])),
        ];
        let (closed, findings) = judge(&objects, &[]);
        assert_eq!(closed, "10.96.0.0/16");
        let starts = [
            "ServiceCIDR a: field spec cannot be read: cidrs: wanted a list",
            "ServiceCIDR b: spec.cidrs[0]: \"10.0.0.0/7\" is larger than a /8",
            "ServiceCIDR b: spec.cidrs[1]: \"nothing\" is no prefix",
        ];
        assert_eq!(findings.len(), 3);
        for ((code, text), start) in findings.iter().zip(starts) {
            assert_eq!(code, "service-cidr-refused");
            assert!(text.starts_with(start), "{text}");
        }
    }

    #[test]
    fn who_knows_none_says_so_once_it_has_heard() {
        assert_eq!(judge(&[], &[]).1[0].0, "service-cidrs-unknown");
        assert_eq!(judge(&[], &["10.96.0.0/12"]).1, []);
        assert_eq!(ServiceCidrs::default().judge(&[]), (Vec::new(), Vec::new()));
        let forbidden = ServiceCidrs { synced: true, forbidden: true, ..ServiceCidrs::default() };
        let (_, findings) = forbidden.judge(&[]);
        assert!(findings[0].1.contains("apply the ClusterRole hawser-mesh-agent"), "{findings:?}");
    }
}
