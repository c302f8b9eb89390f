//! Numbers and names that others could collide with, in one place, each with its reason
//! (taken by others: Cilium, Calico, Flannel, Kilo, kube-proxy, wg-quick, AWS VPC CNI).

/// UDP port of slot zero. WireGuard's usual 51820 and 51821 belong to wg-quick, Calico and Flannel, 51871 to Cilium.
pub const SLOT_PORTS: [u16; 2] = [51880, 51881];
/// `rtm_protocol` of our routes and rules: above the kernel's and the routing daemons' registered numbers
/// (`/etc/iproute2/rt_protos` ends at 192 but for EIGRP), so that a route of ours is known as ours.
pub const ROUTE_PROTOCOL: u8 = 202;
/// Routing table with everything under the cluster's pod CIDRs: pods of this node, prefixes of others, and
/// `unreachable` beneath. Over 255, and not 1107, 2004, 2005 or 51820.
pub const TABLE_PODS: u32 = 51880;
/// Routing table for this node's pods towards the addresses of other nodes.
pub const TABLE_NODES: u32 = 51881;
/// Routing table for this node's own traffic to the addresses of other nodes.
pub const TABLE_HOSTS: u32 = 51882;
/// Priority of the rule "to a cluster pod CIDR: [`TABLE_PODS`]". Free of 0, 1, 9, 20, 99, 100 and 109 to 112.
pub const RULE_PODS: u32 = 50;
/// Priority of the rule "from a pod of this node: [`TABLE_NODES`]".
pub const RULE_NODES: u32 = 51;
/// Priority of rules that lead past [`RULE_HOSTS`].
pub const RULE_EXEMPT: u32 = 52;
/// Priority of rules "from this node: [`TABLE_HOSTS`]".
pub const RULE_HOSTS: u32 = 53;
/// Priority of the rule behind them, which does nothing.
pub const RULE_HOSTS_END: u32 = 54;
/// Metric of an `unreachable` route: beneath every other route to the same prefix.
pub const METRIC_UNREACHABLE: u32 = 4_294_967_000;
/// kube-proxy's mark of packets that it will masquerade; read, never set.
pub const KUBE_PROXY_MASQUERADE: u32 = 0x4000;
/// Mark of a pod's packet that nf_tables shall refuse with a reset or an ICMP error (`HW_MARK_REJECT` of the data path):
/// a bit that neither Calico (0xffff0000), kube-proxy (0xc000), Cilium (0x1f00) nor the AWS VPC CNI (0x80) uses.
pub const MARK_REJECT: u32 = 0x20;
/// Mark of WireGuard's own packets: a bit that is free as that of [`MARK_REJECT`] is.
pub const MARK_WIREGUARD: u32 = 0x40;
/// Bytes that WireGuard adds to a packet over IPv6: 40 (IPv6) + 8 (UDP) + 16 (header) + 16 (tag). Over IPv4 it is
/// 20 less; one number for both, so that a pair may talk over either.
pub const OVERHEAD: u32 = 80;
/// Least MTU with which IPv6 works (RFC 8200, section 5).
pub const MIN_MTU: u32 = 1280;
/// First letters of a pod's veth on the host.
pub const POD_VETH_PREFIX: &str = "hw";
/// First letters of the device through which a pod with a rate sends; not those of [`POD_VETH_PREFIX`], since it is no pod's.
pub const SHAPER_PREFIX: &str = "hs";
/// Annotation of a Node: its announcement.
pub const ANNOTATION_WIREGUARD: &str = "hawser.dev/wireguard";
/// Annotation of a Node: overrides the tunnel endpoint, a comma-separated list of addresses.
pub const ANNOTATION_ENDPOINT: &str = "hawser.dev/endpoint";
/// Annotation of a Node: any value other than the one that was done last asks its agent to rotate both keys.
pub const ANNOTATION_ROTATE: &str = "hawser.dev/rotate";
/// Annotation of a Pod: its addresses, comma-separated, written at ADD.
pub const ANNOTATION_IPS: &str = "hawser.dev/ips";
/// Annotation of a Pod: the ports that its containers name, `http=TCP/80,dns=UDP/53`, written at ADD beside
/// [`ANNOTATION_IPS`]. Egress rules of other nodes' pods name them.
pub const ANNOTATION_PORTS: &str = "hawser.dev/ports";
/// Annotation of a Namespace: [`POLICY_AUDIT`] reports what policy denies to or from its pods, and lets it pass.
pub const ANNOTATION_POLICY: &str = "hawser.dev/policy";
/// The one value of [`ANNOTATION_POLICY`] that changes anything.
pub const POLICY_AUDIT: &str = "audit";
/// Label of namespaces in the eyes of policy: the name of their cluster, whatever the objects say. A `namespaceSelector` (or
/// `namespaces` of a ClusterNetworkPolicy) that mentions it looks at namespaces of all joined clusters; one that does not, at
/// this cluster's alone.
pub const LABEL_CLUSTER: &str = "hawser.dev/cluster";
/// Namespace of our own objects.
pub const NAMESPACE: &str = "hawser-system";
/// Lease in [`NAMESPACE`]: its holder writes Events and status of cluster-wide objects.
pub const LEASE_STATUS: &str = "hawser-status";
/// Loopback port of `/healthz` and `/readyz`.
pub const PORT_HEALTH: u16 = 51890;
/// Port of `/metrics`, `/debug/plan` and `/audit`.
pub const PORT_METRICS: u16 = 51891;
/// Port of the post-quantum key exchange on the mesh address.
pub const PORT_KEY_EXCHANGE: u16 = 51892;
/// Port of clustermesh.
pub const PORT_CLUSTERMESH: u16 = 51893;
