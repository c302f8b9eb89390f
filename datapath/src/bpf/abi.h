/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What the programs and the agent say to each other: layouts and numbers of all maps. The Rust side is abi.rs; a test
 * compares sizes and offsets by the object's BTF. Whoever changes a layout raises HW_ABI, which names the directory of the pins.
 *
 * Addresses are 16 bytes; IPv4 is mapped (::ffff:a.b.c.d). A packet that wears a mapped address itself is dropped.
 * Ports and addresses are in network order, everything else in the host's.
 *
 * Policy is kept twice, in two banks. A packet reads `epoch` once and uses bank epoch & 1 all the way, so it meets
 * either the policy before a change or the one after it. The agent writes the bank not in use, then the epoch; it
 * writes that bank again only after an RCU grace period.
 */
#ifndef HAWSER_ABI_H
#define HAWSER_ABI_H

#define HW_ABI 3

struct hw_addr {
	__u32 w[4];
};

/* ------------------------------------------------------------------ policy */

/* What a table says of a class: HW_FN_* or a key of `ports`. Zero, an absent row's, denies. */
#define HW_FN_DENY 0
#define HW_FN_ALLOW 1
#define HW_FN_FIRST 2

/* Classes that are not found by looking up an address. */
#define HW_CLASS_UNKNOWN 1 /* inside a guarded prefix, and nobody's that we know */
#define HW_CLASS_WORLD 2   /* outside, and in no block */
#define HW_CLASS_FIRST 16

/* addresses: hash, struct hw_addr -> this. Pods and nodes of the cluster. */
struct hw_address {
	__u32 class[2]; /* by bank */
	__u32 flags;
	__u32 pad;
};
#define HW_ADDRESS_GONE 1 /* its pod is gone: judges flows that were there, opens none (unknown to those) */
#define HW_ADDRESS_NODE 2 /* of a node */

/* blocks: LPM over mapped addresses; value for addresses that are not in `addresses`. Guarded prefixes and what lies in
 * them carry HW_CLASS_UNKNOWN. A prefix that only one bank has still hides the shorter ones from the other: there it
 * carries the class that the other bank's longest match gives (HW_CLASS_WORLD for none). */
struct hw_prefix {
	__u32 bits; /* 96 + n for IPv4 */
	struct hw_addr addr;
};
struct hw_block {
	__u32 class[2];
};

/* rows: hash */
struct hw_row_key {
	__u32 table;
	__u32 class;
	__u32 direction; /* HW_INGRESS, HW_EGRESS */
};
#define HW_INGRESS 0
#define HW_EGRESS 1
/* value: __u32, what the table says */

/* ports: LPM. bits: 32 any protocol; 48 that protocol; 48 + n a prefix of its ports. */
struct hw_port_key {
	__u32 bits;
	__u32 fn;
	__u8 protocol;
	__u8 pad;
	__be16 port;
};
/* value: __u32: bit 0 allows; the rest is the rule's number, for people. Nothing found denies. */
#define HW_ALLOW 1

/* ------------------------------------------------------------------ links */

struct hw_side {
	__u32 table;
	__u32 fallback[2]; /* by direction: for classes without a row of their own */
	__u32 flags;
};
#define HW_SIDE_AUDIT 1 /* what policy denies is reported and passes */
#define HW_SIDE_CLOSED 2 /* no policy known yet: nothing but its own node's traffic */

/* endpoints: hash, ifindex of the host's end of a pod's veth -> this */
struct hw_endpoint {
	struct hw_addr ip4; /* zero: none */
	struct hw_addr ip6;
	__u8 pod_mac[6];
	__u8 host_mac[6];
	__u32 flags;
	struct hw_side side[2]; /* by bank */
};
#define HW_ENDPOINT_SLOW 1 /* everything by the stack (its link is shaped) */

/* locals: hash, struct hw_addr -> this. Where an address of this node lives. */
struct hw_local {
	__u32 ifindex; /* of the host's end; 0: the node's own (InternalIPs, mesh addresses) */
	__u32 flags;
};

/* devices: hash, ifindex -> __u32 */
#define HW_DEVICE_SLOT 1
#define HW_DEVICE_UPLINK 2 /* the guard is on it */
#define HW_DEVICE_POD 3
#define HW_DEVICE_HOLD 4

/* guarded, exempt: LPM, struct hw_prefix -> __u32 (1). What the guard keeps from uplinks, and the other ends for which
 * it does not. */

/* state: array of one */
struct hw_state {
	__u32 epoch; /* from 1 */
	__u32 flags;
	/* Device (TUN, layer 3) of the agent that holds first packets of peers nobody has told us of yet: it writes them back
	 * when they are known. 0: none, they are dropped. */
	__u32 hold;
	__u32 pad;
};
#define HW_STATE_FLOWS 1 /* write flow events */

/* ------------------------------------------------------------------ flows known: conntrack */

struct hw_tuple {
	struct hw_addr src;
	struct hw_addr dst;
	__be16 sport;
	__be16 dport;
	__u8 protocol;
	__u8 scope; /* HW_SCOPE_* */
	__u16 pad;
};
#define HW_SCOPE_FLOW 0    /* as on the wire after translation, the smaller end as src: one key for both directions */
#define HW_SCOPE_SERVICE 1 /* as the client says it, before translation */

struct hw_flow {
	__u64 until;  /* ns of the boot-independent monotonic clock (bpf_ktime_get_ns) */
	/* By direction (the destination's ingress, the source's egress): epoch at which it was judged << 1, and 1 if denied;
	 * 0: never asked. One word, since CPUs write without locks. A flow denied after it was allowed stays as a
	 * tombstone. */
	__u32 judged[2];
	__u8 state;
	__u8 flags;
	__be16 nat_port;
	__u32 service; /* backend's number; 0: said to a pod itself, and only the client's port is another */
	struct hw_addr nat; /* FLOW with HW_FLOW_SERVICE: what the client called it (source of replies).
			       SERVICE: the backend's address. */
	struct hw_addr client; /* HW_FLOW_HAIRPIN: the pod itself (the tuple has the service's address as source) */
	__be16 client_port; /* FLOW with HW_FLOW_SERVICE: the client's own. SERVICE: that of the flow, the same unless it was taken. */
	/* By direction: its peer was nobody that we know when it was judged, and is nobody until somebody has the address. A byte each,
	 * since CPUs write without locks. */
	__u8 stranger[2];
	__u8 revived; /* directions in which it went on after a reset: 1 that of its first packet, 2 the other */
	__u8 pad[3];
};
#define HW_FLOW_STACK 1   /* goes by the stack, both ways */
#define HW_FLOW_SERVICE 2
#define HW_FLOW_HAIRPIN 4
#define HW_FLOW_SWAPPED 8 /* the first packet went from the key's dst to its src */
#define HW_FLOW_HOST 16   /* opened by the pod's own node */
#define HW_FLOW_FIN_WITH 32    /* FIN seen in the direction of the first packet */
#define HW_FLOW_FIN_AGAINST 64 /* ... in the other */
#define HW_FLOW_MOVED 128      /* its source port is not the client's own */

/* state, for timeouts */
#define HW_NEW 0         /* one direction seen */
#define HW_ESTABLISHED 1 /* both */
#define HW_CLOSING 2     /* FIN or RST seen */

/* fragments: LRU hash */
struct hw_fragment_key {
	struct hw_addr src;
	struct hw_addr dst;
	__u32 id;
	__u32 protocol; /* of IPv4; IPv6: 0 */
};
struct hw_fragment {
	__be16 sport;
	__be16 dport;
	__u32 protocol;
	__u64 until;
};

/* ------------------------------------------------------------------ services */

/* frontends: hash */
struct hw_frontend_key {
	struct hw_addr addr; /* NodePorts: any InternalIP of any node is :: for IPv6, ::ffff:0.0.0.0 for IPv4 */
	__be16 port;
	__u8 protocol;
	__u8 pad;
};
struct hw_frontend {
	__u32 base;  /* first place in `places` */
	__u32 count; /* how many; 0: no endpoint, answer with a reset or an ICMP error */
	__u32 service;  /* number, for affinity and flows */
	__u32 affinity; /* seconds; 0: none */
	__u32 flags;
	__u32 pad;
};
#define HW_FRONT_DROP 1   /* count == 0 because of a local traffic policy: drop without a word */
#define HW_FRONT_ADDRESS 2 /* port 0: this address is a service's, whatever has no frontend of its own is rejected */

/* places: array of __u32, number of a backend. Region [base, base + count) is a frontend's Maglev table. */

/* backends: hash, __u32 -> this */
struct hw_backend {
	struct hw_addr addr;
	__be16 port;
	__u16 flags;
	__u32 pad;
};
#define HW_BACKEND_LEAVING 1 /* keeps the flows it has, gets no new ones */

/* affinities: LRU hash */
struct hw_affinity_key {
	struct hw_addr client;
	__u32 service;
	__u32 pad;
};
struct hw_affinity {
	__u64 until;
	__u32 backend;
	__u32 pad;
};

/* Mark of a packet that the stack shall refuse with a reset or an ICMP error (nf_tables rule of ours): a service without
 * endpoints. */
#define HW_MARK_REJECT 0x20

/* ------------------------------------------------------------------ what happened */

#define HW_REASONS 40
/* counters: per-CPU array of HW_COUNTERS __u64; index = HW_COUNT_*, drops are HW_COUNT_DROP + reason */
enum hw_count {
	HW_COUNT_FLOWS_LOST = 0, /* events that found the ring full */
	HW_COUNT_INGRESS_FAST,   /* ingress policy asked on the fast path of one node */
	HW_COUNT_INGRESS_TUNNEL, /* ... for what came out of the tunnel */
	HW_COUNT_INGRESS_STACK,  /* ... for what the stack delivers */
	HW_COUNT_INGRESS_HOST,   /* from the own node: not asked */
	HW_COUNT_EGRESS,         /* egress policy asked */
	HW_COUNT_TO_PEER,        /* delivered by redirect_peer */
	HW_COUNT_TO_TUNNEL,      /* redirected into a slot */
	HW_COUNT_TO_STACK,       /* left to the stack by a pod's program */
	HW_COUNT_REJUDGED,
	HW_COUNT_REVOKED,
	HW_COUNT_FLOWS_FULL,     /* conntrack had no room */
	HW_COUNT_TRANSLATED,     /* new flows to a service */
	HW_COUNT_REJECTED,       /* service without endpoints: handed to the stack to be refused */
	HW_COUNT_EXEMPT,         /* passed the guard because of the other end */
	HW_COUNT_AUDITED,
	HW_COUNT_HELD,           /* first packets given to the device that holds them */
	HW_COUNT_PORT_MOVED,     /* new flows that got another source port, since another flow had theirs at the backend */
	HW_COUNT_DROP = 24,
	HW_COUNTERS = 24 + HW_REASONS,
};

enum hw_reason {
	HW_DROP_NONE = 0,
	HW_DROP_MALFORMED,       /* headers that cannot be read */
	HW_DROP_ETHERTYPE,       /* neither IPv4, IPv6 nor ARP from a pod */
	HW_DROP_SPOOFED_SOURCE,  /* not an address of the attachment */
	HW_DROP_SPOOFED_ARP,
	HW_DROP_SPOOFED_ND,
	HW_DROP_MAPPED,          /* an IPv6 packet with an IPv4-mapped address */
	HW_DROP_ENDPOINT,        /* a link of ours without an endpoint: not ready or being removed */
	HW_DROP_POLICY_EGRESS,
	HW_DROP_POLICY_INGRESS,
	HW_DROP_REVOKED,         /* a flow that was allowed before */
	HW_DROP_FRAGMENT,        /* its first was not seen */
	HW_DROP_TUNNEL_FOREIGN,  /* out of the tunnel, and for nobody here */
	HW_DROP_UNGUARDED,       /* to a pod from a link without a guard */
	HW_DROP_GUARD_OUT,       /* a guarded address in clear on an uplink, leaving */
	HW_DROP_GUARD_IN,
	HW_DROP_NO_BACKEND,      /* a service whose local policy leaves none */
	HW_DROP_COLLISION,       /* two flows would be one after translation, and no source port was free */
	HW_DROP_CLOSED,          /* no policy known yet for the pod */
	HW_DROP_TRANSLATE,       /* the kernel refused to change the packet */
	HW_DROP_SOURCE_LOCAL,    /* out of the tunnel with an address of this node */
	HW_DROP_ICMP_UNRELATED,  /* an ICMP error about nothing we know */
	HW_DROP_UNKNOWN_EGRESS,  /* policy denies, and the peer is nobody that we know (yet) */
	HW_DROP_UNKNOWN_INGRESS,
};

/* events: ring buffer of these */
struct hw_event {
	__u64 at; /* ns, bpf_ktime_get_ns */
	struct hw_addr src;
	struct hw_addr dst;
	struct hw_addr service; /* what the client called it; zero: no service */
	__be16 sport;
	__be16 dport;
	__be16 service_port;
	__u8 protocol;
	__u8 kind;      /* HW_EVENT_* */
	__u8 reason;    /* hw_reason */
	__u8 direction; /* of the policy that judged */
	__u8 tcp_flags;
	__u8 flags;     /* HW_EVENT_REPLY.. */
	__u32 ifindex;  /* of the pod concerned, the host's end; or of the device */
	__u32 rule;     /* number of the rule, 0: none */
	__u32 classes[2]; /* of source and destination where they were looked up */
	__u32 length;   /* of the packet in bytes */
	__u32 epoch;
};
#define HW_EVENT_NEW 1
#define HW_EVENT_DROP 2
#define HW_EVENT_CHANGED 3 /* judged again, another verdict that passes (audit) */
#define HW_EVENT_REVOKED 4
#define HW_EVENT_UNKNOWN 5 /* an address inside a guarded prefix that nobody has told us of: look it up */
#define HW_EVENT_AUDIT 6   /* denied by policy, passes */

#endif
