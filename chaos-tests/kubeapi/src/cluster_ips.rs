//! Cluster IPs: given to Services as the API server does (`pkg/registry/core/service`), from the first Service CIDR of each
//! family. Who else has one is seen in the store, so nothing is remembered.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::{Value, json};

use crate::error::ApiError;

fn family(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "IPv4" } else { "IPv6" }
}

/// Addresses that a Service has.
pub(crate) fn of(service: &Value) -> impl Iterator<Item = IpAddr> {
    let all = service["spec"]["clusterIPs"].as_array().into_iter().flatten();
    all.filter_map(|ip| ip.as_str()?.parse().ok())
}

fn texts(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(|one| one.as_str().map(str::to_owned)).collect()
}

/// Fills in `clusterIP`, `clusterIPs`, `ipFamilies` and `ipFamilyPolicy`. `taken`: addresses of all other Services.
pub(crate) fn complete(
    service: &mut Value,
    cidrs: &[IpNet],
    taken: &BTreeSet<IpAddr>,
) -> Result<(), ApiError> {
    let name = service["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let invalid = |field: &str, message: &str| ApiError::invalid("Service", &name, field, message);
    let spec = &mut service["spec"];
    if spec["type"] == "ExternalName" {
        return Ok(());
    }
    let served: Vec<&str> = cidrs.iter().map(|cidr| family(cidr.network())).collect();
    let policy = spec["ipFamilyPolicy"].as_str().unwrap_or("SingleStack").to_owned();
    let mut families = texts(&spec["ipFamilies"]);
    if families.is_empty() {
        families = of(&json!({ "spec": spec })).map(|ip| family(ip).to_owned()).collect();
    }
    if families.is_empty() {
        families = served.iter().take(1).map(|one| (*one).to_owned()).collect();
    }
    if let Some(other) = families.iter().find(|one| !served.contains(&one.as_str())) {
        let message = format!("Invalid value: \"{other}\": not configured on this cluster");
        return Err(invalid("spec.ipFamilies[0]", &message));
    }
    match policy.as_str() {
        "SingleStack" => families.truncate(1),
        "RequireDualStack" if served.len() < 2 => {
            return Err(invalid("spec.ipFamilyPolicy", "Invalid value: this cluster is not dual-stack"));
        }
        _ => {
            for one in &served {
                if !families.iter().any(|family| family == one) {
                    families.push((*one).to_owned());
                }
            }
        }
    }
    if spec["clusterIP"] == "None" {
        spec["clusterIPs"] = json!(["None"]);
    } else {
        let present: Vec<IpAddr> = of(&json!({ "spec": spec })).collect();
        let mut ips = Vec::new();
        for wanted in &families {
            let kept = present.iter().find(|ip| family(**ip) == wanted).copied();
            if let Some(clash) = kept.filter(|ip| taken.contains(ip)) {
                let message = format!("Invalid value: \"{clash}\": provided IP is already allocated");
                return Err(invalid("spec.clusterIPs", &message));
            }
            let cidr = cidrs.iter().find(|cidr| family(cidr.network()) == wanted);
            // Not the network's own, nor the next, which is that of the Service `kubernetes`.
            let hosts = |cidr: IpNet| cidr.hosts().filter(move |ip| *ip != cidr.network()).skip(1);
            let free = || cidr.copied().into_iter().flat_map(hosts).find(|ip| !taken.contains(ip));
            let full = || invalid("spec.clusterIPs", "Internal error: range is full");
            ips.push(kept.or_else(free).ok_or_else(full)?);
        }
        spec["clusterIP"] = json!(ips.first());
        spec["clusterIPs"] = json!(ips);
    }
    spec["ipFamilies"] = json!(families);
    spec["ipFamilyPolicy"] = json!(policy);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn completed(spec: &Value, cidrs: &[&str], taken: &[&str]) -> Result<Value, String> {
        let mut service = json!({"metadata": {"name": "web"}, "spec": spec});
        let cidrs: Vec<IpNet> = cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect();
        let taken = taken.iter().map(|ip| ip.parse().unwrap()).collect();
        complete(&mut service, &cidrs, &taken).map_err(|error| error.to_string())?;
        Ok(json!([service["spec"]["clusterIPs"], service["spec"]["ipFamilies"]]))
    }

    #[test]
    fn a_service_gets_an_address_of_each_family_that_it_asks_for_and_keeps_it() {
        let dual = ["10.96.0.0/29", "fd00:96::/112"];
        let (v4, v6) = (json!(["10.96.0.2"]), json!(["IPv4"]));
        assert_eq!(completed(&json!({}), &dual, &[]), Ok(json!([v4, v6])));
        let second = completed(&json!({}), &dual, &["10.96.0.2"]);
        assert_eq!(second, Ok(json!([["10.96.0.3"], ["IPv4"]])));
        let both = json!({"ipFamilyPolicy": "PreferDualStack", "ipFamilies": ["IPv6"]});
        let ips = json!([["fd00:96::2", "10.96.0.2"], ["IPv6", "IPv4"]]);
        assert_eq!(completed(&both, &dual, &[]), Ok(ips));
        let grown = json!({"clusterIPs": ["10.96.0.5"], "clusterIP": "10.96.0.5", "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "PreferDualStack"});
        let ips = json!([["10.96.0.5", "fd00:96::2"], ["IPv4", "IPv6"]]);
        assert_eq!(completed(&grown, &dual, &[]), Ok(ips));
        let shrunk = json!({"clusterIPs": ["10.96.0.5", "fd00:96::9"], "ipFamilies": ["IPv4", "IPv6"],
            "ipFamilyPolicy": "SingleStack"});
        assert_eq!(completed(&shrunk, &dual, &[]), Ok(json!([["10.96.0.5"], ["IPv4"]])));
        assert_eq!(completed(&json!({"clusterIP": "None"}), &dual, &[]), Ok(json!([["None"], ["IPv4"]])));
    }

    #[test]
    fn what_the_cluster_does_not_have_is_refused() {
        let v4 = ["10.96.0.0/30"];
        let error = completed(&json!({"ipFamilies": ["IPv6"]}), &v4, &[]).unwrap_err();
        assert!(error.contains("not configured on this cluster"), "{error}");
        let error = completed(&json!({"ipFamilyPolicy": "RequireDualStack"}), &v4, &[]).unwrap_err();
        assert!(error.contains("not dual-stack"), "{error}");
        let error = completed(&json!({}), &v4, &["10.96.0.2"]).unwrap_err();
        assert!(error.contains("range is full"), "{error}");
        let error = completed(&json!({"clusterIPs": ["10.96.0.2"]}), &v4, &["10.96.0.2"]).unwrap_err();
        assert!(error.contains("already allocated"), "{error}");
    }
}
