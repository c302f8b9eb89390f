// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Hawser's data path. Programs:
 *
 *   from_pod     ingress of the host's end of a pod's link: all that a pod sends
 *   to_pod       egress of the same: what the stack delivers to it
 *   from_tunnel  ingress of the slots
 *   from_hold    ingress of the agent's device for first packets of peers that were not known
 *   guard_in, guard_out   both directions of every uplink
 *
 * Ingress policy is asked once for each flow, by whichever program delivers it: from_pod to a pod of the same node,
 * from_tunnel, or to_pod (bpf_redirect_peer passes the receiving link's own program by).
 */
#include "deliver.h"

/* Where a packet of the tunnel begins. BPF_PROG_TEST_RUN knows Ethernet alone, so its tests compile with ETH_HLEN here. */
#ifndef HW_TUNNEL_L3
#define HW_TUNNEL_L3 0
#endif
#define ARPHRD_ETHER 1 /* linux/if_arp.h wants the C library's headers */

/* A clean scratch for one packet. */
static __always_inline struct scratch *begin(struct __sk_buff *skb, __u32 l3, __u32 path)
{
	__u32 zero = 0;
	struct hw_state *now = bpf_map_lookup_elem(&state, &zero);
	struct scratch *s = scratch();

	if (!now || !s)
		return 0;
	__builtin_memset(&s->p, 0, sizeof(s->p));
	s->p.l3 = l3;
	s->p.path = path;
	s->p.ifindex = skb->ifindex;
	s->p.opens = 1;
	/* Read once: everything about this packet is decided by one bank. */
	s->p.epoch = *(volatile __u32 *)&now->epoch;
	return s;
}

/* ---------------------------------------------------------------- from_pod */

struct arp_ip4 {
	__be16 hardware;
	__be16 protocol;
	__u8 lengths[2];
	__be16 operation;
	__u8 sender_mac[6];
	__u8 sender[4];
	__u8 target_mac[6];
	__u8 target[4];
} __attribute__((packed));

/* A pod speaks for its own address alone. */
static __always_inline int arp_from_pod(struct __sk_buff *skb, struct packet *p, const struct hw_endpoint *ep)
{
	struct arp_ip4 arp;
	__be32 sender;
	int i, differ = 0;

	if (bpf_skb_load_bytes(skb, ETH_HLEN, &arp, sizeof(arp)) || arp.hardware != bpf_htons(ARPHRD_ETHER) ||
	    arp.protocol != bpf_htons(ETH_P_IP) || arp.lengths[0] != 6 || arp.lengths[1] != 4)
		return drop(skb, p, HW_DROP_MALFORMED);
	__builtin_memcpy(&sender, arp.sender, 4);
#pragma unroll
	for (i = 0; i < 6; i++)
		differ |= arp.sender_mac[i] ^ ep->pod_mac[i];
	/* Zero asks whether an address is free (RFC 5227), and claims none. */
	if (differ || (sender && (sender != ep->ip4.w[3] || is_zero(&ep->ip4))))
		return drop(skb, p, HW_DROP_SPOOFED_ARP);
	return HW_PASS;
}

/* Neighbour and listener discovery of a pod: it asks, and speaks for its own address; it is no router. */
static __always_inline int discovery_from_pod(struct __sk_buff *skb, struct packet *p, const struct hw_endpoint *ep)
{
	struct hw_addr target;
	struct hw_local *local = bpf_map_lookup_elem(&locals, &p->to);
	int own = !is_zero(&p->from) && (same(&p->from, &ep->ip6) || is_link_local6(&p->from));

	if (!own && !is_zero(&p->from))
		return drop(skb, p, HW_DROP_SPOOFED_ND);
	/* No policy is asked, so it goes to the link's groups, and to its other end, and nowhere else. */
	if (!is_link_group6(&p->to) && !is_link_local6(&p->to) && (!local || local->ifindex))
		return drop(skb, p, HW_DROP_SPOOFED_ND);
	switch (p->icmp_type) {
	case 133: /* router solicitation */
	case 135: /* neighbour solicitation; from nobody: is this address free? */
	case 130: /* listener discovery */
	case 131:
	case 132:
	case 143:
		return HW_PASS;
	case 136: /* neighbour advertisement */
		if (!own || bpf_skb_load_bytes(skb, p->l4 + 8, &target, sizeof(target)))
			break;
		if (is_link_local6(&target) || same(&target, &ep->ip6))
			return HW_PASS;
		break;
	}
	return drop(skb, p, HW_DROP_SPOOFED_ND);
}

/* Translates what is said to a service; with `other`, also what is said to a backend itself by ports with which the same pod speaks to
 * it by a service. Returns the flow if it is known. *bad: a reason to drop; 0: there is no service, or it is done, with
 * s->fresh set up for the flow to remember; -1: the stack shall refuse it. */
static __noinline struct hw_flow *to_service(struct __sk_buff *skb, struct scratch *s, int other, int *bad)
{
	struct packet *p = &s->p;
	struct choice *c = &s->choice;
	struct hw_flow *fresh = &s->fresh;
	struct hw_flow *flow = 0, *said;
	struct hw_frontend *front;
	int recalled = 0;

	*bad = 0;
	if (!has_ports(p->t.protocol))
		return 0;
	c->sport = p->t.sport;
	said = words_of(s);
	if (said)
		recalled = recall(s, said, &flow);
	if (!recalled) {
		front = frontend_of(p);
		if (!front && !other) {
			if (said) {
				/* They mean nothing any more, and shall not be found by this flow later. */
				s->t = p->t;
				s->t.scope = HW_SCOPE_SERVICE;
				bpf_map_delete_elem(&flows, &s->t);
			}
			p->reverse = 0;
			p->swapped = key_of(&p->t, &s->key);
			return 0;
		}
		if (front) {
			p->service = p->t.dst;
			p->service_port = p->t.dport;
		}
		if (front && !front->count) {
			*bad = front->flags & HW_FRONT_DROP ? HW_DROP_NO_BACKEND : -1;
			return 0;
		}
		*bad = front ? choose(s, front) : set_aside(s);
		if (*bad)
			return 0;
		flow = find_by(s, &s->t);
		remember_choice(s);
		if (front)
			count(HW_COUNT_TRANSLATED);
		if (!flow && c->sport != p->t.sport)
			count(HW_COUNT_PORT_MOVED);
	}
	if (c->backend) {
		p->service = p->t.dst;
		p->service_port = p->t.dport;
	}
	if (flow && (p->reverse || !is_flow_of_words(p, flow))) {
		*bad = HW_DROP_COLLISION;
		return 0;
	}
	fresh->flags = HW_FLOW_SERVICE;
	fresh->nat = p->t.dst;
	fresh->nat_port = p->t.dport;
	fresh->client_port = p->t.sport;
	fresh->service = c->backend;
	if (c->sport != p->t.sport)
		fresh->flags |= HW_FLOW_MOVED;
	if (c->hairpin) {
		fresh->flags |= HW_FLOW_HAIRPIN;
		fresh->client = c->client;
		*bad = rewrite(skb, p, &fresh->nat, c->sport, HW_SOURCE);
	} else if (c->sport != p->t.sport) {
		*bad = rewrite(skb, p, &p->from, c->sport, HW_SOURCE);
	}
	if (!*bad)
		*bad = rewrite(skb, p, &c->addr, c->port, HW_DESTINATION);
	return flow;
}

/* What is said to another node itself goes by the stack, both ways, so that this node's conntrack and nf_tables see it, as its
 * administrators expect of what leaves for a machine. */
static __always_inline int is_node(const struct hw_addr *addr)
{
	struct hw_address *known = bpf_map_lookup_elem(&addresses, addr);

	return known && (known->flags & HW_ADDRESS_NODE);
}

/* Delivers what a pod may send. `flow`: known, else s->fresh is to be remembered. */
static __always_inline int forward(struct __sk_buff *skb, struct scratch *s, const struct hw_endpoint *ep,
				   struct hw_flow *flow)
{
	struct packet *p = &s->p;
	struct hw_flow *fresh = &s->fresh;
	struct hw_addr to = p->kind == HW_ICMP_ERROR ? p->to : p->t.dst;
	struct hw_endpoint *receiver = 0;
	struct hw_local *local;
	__u32 ifindex = 0;
	int bad, by_stack;

	if (flow && (flow->flags & HW_FLOW_HAIRPIN) && against(p))
		to = flow->client;
	local = bpf_map_lookup_elem(&locals, &to);
	if (local && local->ifindex) {
		ifindex = local->ifindex;
		receiver = bpf_map_lookup_elem(&endpoints, &ifindex);
		if (!receiver)
			return drop(skb, p, HW_DROP_ENDPOINT);
	}
	by_stack = flow ? flow->flags & HW_FLOW_STACK : 0;
	by_stack |= (ep->flags & HW_ENDPOINT_SLOW) || (receiver && (receiver->flags & HW_ENDPOINT_SLOW));
	if (!flow && !local && !(fresh->flags & HW_FLOW_SERVICE) && is_node(&to))
		by_stack = 1;
	/* The stack has no way for the service's address that a pod wears on its way to itself. */
	if ((flow ? flow->flags : fresh->flags) & HW_FLOW_HAIRPIN)
		by_stack = 0;

	if (receiver && !by_stack) {
		if (flow) {
			bad = edge(skb, s, flow, receiver, receiver_edge(p));
		} else {
			/* s->t is as packet_from_pod left it. */
			bad = judge(skb, p, receiver, &s->t, HW_INGRESS);
			fresh->judged[HW_INGRESS] = p->epoch << 1;
		}
		if (bad) {
			p->ifindex = ifindex;
			return refuse(skb, p, bad);
		}
	}
	if (flow) {
		touch(p, flow);
		/* What the stack will deliver is translated by to_pod, which must find its flow. */
		bad = by_stack ? 0 : answer(skb, p, flow);
		if (bad)
			return drop(skb, p, bad);
	} else if (p->kind != HW_ICMP_ERROR && !(p->tcp_flags & HW_TCP_RST)) {
		if (by_stack)
			fresh->flags |= HW_FLOW_STACK;
		remember(skb, s);
	}
	if (by_stack || (local && !receiver)) {
		count(HW_COUNT_TO_STACK);
		return HW_PASS;
	}
	if (receiver)
		return into_pod(skb, p, receiver, ifindex);
	return into_mesh(skb, p);
}

/* Wears the tuple that a flow to a service has after translation: said to a backend itself, by the ports with which the same
 * pod speaks to it by a service. */
static __always_inline int is_other_flow(const struct packet *p, const struct hw_flow *flow)
{
	return (flow->flags & HW_FLOW_SERVICE) && !p->reverse && !is_flow_of_words(p, flow);
}

/* Looks like the first answer to a flow that a backend began, and is said in a conversation that was given another source port: the
 * backend had spoken to the flow in whose way this was, after that was forgotten. */
static __always_inline int is_aside(struct scratch *s, const struct hw_flow *flow)
{
	struct hw_flow *said;

	if (!s->p.reverse || flow->state != HW_NEW || (flow->flags & HW_FLOW_SERVICE) || !has_ports(s->p.t.protocol))
		return 0;
	said = words_of(s);
	return said && !said->service && said->until >= s->p.now;
}

/* Is a client's ICMP error about an answer of just this flow? Answers of services bear other ends, and answers of a conversation
 * that was given another port the ends of the one in whose way it was. */
static __always_inline int about_own_answer(const struct packet *p, const struct hw_flow *flow)
{
	return !p->reverse || !(flow->flags & HW_FLOW_SERVICE) ||
	       (same(&flow->nat, &p->t.src) && flow->nat_port == p->t.sport && flow->client_port == p->t.dport);
}

/* Nobody ever answered, and meanwhile it is a service: a resolver that asks again and again would never find it. */
static __always_inline int is_service_now(struct packet *p, const struct hw_flow *flow)
{
	return flow->state == HW_NEW && !p->reverse && !(flow->flags & HW_FLOW_SERVICE) && has_ports(p->t.protocol) &&
	       frontend_of(p);
}

static __always_inline int packet_from_pod(struct __sk_buff *skb, struct scratch *s, struct hw_endpoint *ep)
{
	struct packet *p = &s->p;
	struct hw_flow *fresh = &s->fresh;
	const struct hw_addr *own = p->ip4 ? &ep->ip4 : &ep->ip6;
	struct hw_flow *flow;
	int bad;

	if (p->kind == HW_ND)
		return discovery_from_pod(skb, p, ep);
	if (is_zero(own) || !same(&p->from, own))
		return drop(skb, p, HW_DROP_SPOOFED_SOURCE);
	/* For hostPorts at 127.0.0.1 the node's own loopback can be reached from this link (route_localnet). */
	if (p->ip4 && (p->to.w[3] & bpf_htonl(0xff000000)) == bpf_htonl(0x7f000000))
		return drop(skb, p, HW_DROP_MALFORMED);
	note_fragment(p);
	flow = find(s);
	if (p->kind == HW_ICMP_ERROR) {
		/* About a packet that came to this pod, or about nothing. */
		if (!about_receivers(p, flow) || !same(&p->t.dst, own) || !about_own_answer(p, flow))
			return drop(skb, p, HW_DROP_ICMP_UNRELATED);
	} else {
		int other = flow && (is_other_flow(p, flow) || is_aside(s, flow));

		if (!flow || other || is_service_now(p, flow)) {
			__builtin_memset(fresh, 0, sizeof(*fresh));
			flow = to_service(skb, s, other, &bad);
			if (bad < 0) {
				count(HW_COUNT_REJECTED);
				skb->mark |= HW_MARK_REJECT;
				return HW_PASS;
			}
			if (bad)
				return drop(skb, p, bad);
		}
	}
	if (flow) {
		bad = edge(skb, s, flow, ep, sender_edge(p));
	} else {
		s->t = p->t;
		if (fresh->flags & HW_FLOW_HAIRPIN)
			s->t.src = fresh->client;
		bad = judge(skb, p, ep, &s->t, HW_EGRESS);
		fresh->judged[HW_EGRESS] = p->epoch << 1;
	}
	if (bad)
		return refuse(skb, p, bad);
	return forward(skb, s, ep, flow);
}

SEC("classifier")
int from_pod(struct __sk_buff *skb)
{
	struct scratch *s = begin(skb, ETH_HLEN, HW_COUNT_INGRESS_FAST);
	__u32 ifindex = skb->ifindex;
	struct hw_endpoint *ep = bpf_map_lookup_elem(&endpoints, &ifindex);
	int bad;

	if (!s)
		return TC_ACT_SHOT;
	if (!ep)
		return drop(skb, &s->p, HW_DROP_ENDPOINT);
	if (skb->vlan_present)
		return drop(skb, &s->p, HW_DROP_ETHERTYPE);
	if (skb->protocol == bpf_htons(ETH_P_ARP))
		return arp_from_pod(skb, &s->p, ep);
	s->p.ip4 = skb->protocol == bpf_htons(ETH_P_IP);
	if (!s->p.ip4 && skb->protocol != bpf_htons(ETH_P_IPV6))
		return drop(skb, &s->p, HW_DROP_ETHERTYPE);
	bad = read_packet(skb, &s->p);
	if (bad)
		return drop(skb, &s->p, bad);
	return packet_from_pod(skb, s, ep);
}

/* ------------------------------------------------------------------ to_pod */

/* A flow that the stack brings and that we do not know. */
static __always_inline int opened_by_stack(struct __sk_buff *skb, struct scratch *s, struct hw_endpoint *ep, int host)
{
	struct packet *p = &s->p;
	struct hw_flow *fresh = &s->fresh;
	__u32 from = skb->ingress_ifindex;
	int bad;

	__builtin_memset(fresh, 0, sizeof(*fresh));
	fresh->flags = HW_FLOW_STACK;
	if (host) {
		/* Whatever the pod's own node itself sends: probes of the kubelet above all. */
		fresh->flags |= HW_FLOW_HOST;
		count(HW_COUNT_INGRESS_HOST);
	} else {
		/* From a link that nobody guards anything could be injected. Where a piece comes from nobody knows. */
		if (from && !bpf_map_lookup_elem(&devices, &from))
			return drop(skb, p, HW_DROP_UNGUARDED);
		bad = judge(skb, p, ep, &p->t, HW_INGRESS);
		if (bad)
			return drop(skb, p, bad);
		fresh->judged[HW_INGRESS] = p->epoch << 1;
	}
	if (!(p->tcp_flags & HW_TCP_RST))
		remember(skb, s);
	return HW_PASS;
}

static __always_inline int packet_to_pod(struct __sk_buff *skb, struct scratch *s, struct hw_endpoint *ep)
{
	struct packet *p = &s->p;
	struct hw_flow *flow;
	int bad, host;

	bad = read_packet(skb, p);
	if (bad)
		return drop(skb, p, bad);
	/* What the kernel cuts anew of IPv6 (ip6_fragment) has lost where it came in, as if it were the node's own: what might be
	 * such a piece is judged as everybody's. */
	host = !skb->ingress_ifindex && !p->piece;
	if (p->kind == HW_ND)
		return host ? HW_PASS : drop(skb, p, HW_DROP_SPOOFED_ND);
	if (!same(&p->to, p->ip4 ? &ep->ip4 : &ep->ip6)) {
		/* The node's own talk on the link itself. */
		if (host && !p->ip4 && (p->to.w[0] & bpf_htonl(0xff000000)) == bpf_htonl(0xff000000))
			return HW_PASS;
		return drop(skb, p, HW_DROP_TUNNEL_FOREIGN);
	}
	note_fragment(p);
	flow = find(s);
	if (p->kind == HW_ICMP_ERROR && !about_receivers(p, flow))
		return host ? HW_PASS : drop(skb, p, HW_DROP_ICMP_UNRELATED);
	if (!flow)
		return opened_by_stack(skb, s, ep, host);
	if (host && !p->reverse && p->kind != HW_ICMP_ERROR) {
		/* Whoever wore this tuple before, and whatever policy said of that: now the node itself speaks. */
		if (!(flow->flags & HW_FLOW_HOST)) {
			flow->flags |= HW_FLOW_HOST;
			count(HW_COUNT_INGRESS_HOST);
		}
		bad = 0;
	} else if (!host && (flow->flags & HW_FLOW_HOST) && !against(p)) {
		/* Wears the tuple of a flow of the node itself, and is not from there. */
		bad = judge(skb, p, ep, &p->t, HW_INGRESS);
	} else {
		bad = edge(skb, s, flow, ep, receiver_edge(p));
	}
	if (bad)
		return drop(skb, p, bad);
	touch(p, flow);
	bad = answer(skb, p, flow);
	return bad ? drop(skb, p, bad) : HW_PASS;
}

SEC("classifier")
int to_pod(struct __sk_buff *skb)
{
	struct scratch *s = begin(skb, ETH_HLEN, HW_COUNT_INGRESS_STACK);
	__u32 ifindex = skb->ifindex;
	struct hw_endpoint *ep = bpf_map_lookup_elem(&endpoints, &ifindex);

	if (!s)
		return TC_ACT_SHOT;
	if (!ep)
		return drop(skb, &s->p, HW_DROP_ENDPOINT);
	if (skb->protocol == bpf_htons(ETH_P_ARP))
		return skb->ingress_ifindex ? drop(skb, &s->p, HW_DROP_SPOOFED_ARP) : HW_PASS;
	s->p.ip4 = skb->protocol == bpf_htons(ETH_P_IP);
	if (!s->p.ip4 && skb->protocol != bpf_htons(ETH_P_IPV6))
		return drop(skb, &s->p, HW_DROP_ETHERTYPE);
	return packet_to_pod(skb, s, ep);
}

/* ------------------------------------------------------------- from_tunnel */

static __always_inline int packet_from_tunnel(struct __sk_buff *skb, struct scratch *s)
{
	struct packet *p = &s->p;
	struct hw_flow *fresh = &s->fresh;
	struct hw_endpoint *ep;
	struct hw_local *local;
	struct hw_flow *flow;
	__u32 ifindex;
	int bad;

	/* Cryptokey routing has proved whose it is; it is not ours. */
	if (bpf_map_lookup_elem(&locals, &p->from))
		return drop(skb, p, HW_DROP_SOURCE_LOCAL);
	local = bpf_map_lookup_elem(&locals, &p->to);
	if (p->kind == HW_ND)
		return drop(skb, p, HW_DROP_TUNNEL_FOREIGN);
	if (!local)
		return for_nobody(skb, p);
	/* Also of what the stack gets: its later pieces come by here. */
	note_fragment(p);
	ifindex = local->ifindex;
	if (!ifindex)
		return HW_PASS;
	p->ifindex = ifindex;
	ep = bpf_map_lookup_elem(&endpoints, &ifindex);
	if (!ep)
		return drop(skb, p, HW_DROP_ENDPOINT);
	/* What the stack will deliver is judged by to_pod. */
	if (ep->flags & HW_ENDPOINT_SLOW)
		return HW_PASS;
	flow = find(s);
	if (p->kind == HW_ICMP_ERROR && !about_receivers(p, flow))
		return drop(skb, p, HW_DROP_ICMP_UNRELATED);
	if (flow && (flow->flags & HW_FLOW_STACK))
		return HW_PASS;
	if (flow) {
		bad = edge(skb, s, flow, ep, receiver_edge(p));
		if (bad)
			return drop(skb, p, bad);
		touch(p, flow);
		bad = answer(skb, p, flow);
		return bad ? drop(skb, p, bad) : into_pod(skb, p, ep, ifindex);
	}
	__builtin_memset(fresh, 0, sizeof(*fresh));
	bad = judge(skb, p, ep, &p->t, HW_INGRESS);
	if (bad)
		return refuse(skb, p, bad);
	fresh->judged[HW_INGRESS] = p->epoch << 1;
	if (!(p->tcp_flags & HW_TCP_RST))
		remember(skb, s);
	return into_pod(skb, p, ep, ifindex);
}

SEC("classifier")
int from_tunnel(struct __sk_buff *skb)
{
	struct scratch *s = begin(skb, HW_TUNNEL_L3, HW_COUNT_INGRESS_TUNNEL);
	int bad;

	if (!s)
		return TC_ACT_SHOT;
	s->p.ip4 = skb->protocol == bpf_htons(ETH_P_IP);
	if (!s->p.ip4 && skb->protocol != bpf_htons(ETH_P_IPV6))
		return drop(skb, &s->p, HW_DROP_ETHERTYPE);
	bad = read_packet(skb, &s->p);
	if (bad)
		return drop(skb, &s->p, bad);
	return packet_from_tunnel(skb, s);
}

/* --------------------------------------------------------------- from_hold */

/* What was held comes back when its peer is known: from a pod of this node, or out of the tunnel. */
SEC("classifier")
int from_hold(struct __sk_buff *skb)
{
	struct scratch *s = begin(skb, HW_TUNNEL_L3, HW_COUNT_INGRESS_TUNNEL);
	struct hw_endpoint *ep;
	struct hw_local *local;
	__u32 ifindex;
	int bad;

	if (!s)
		return TC_ACT_SHOT;
	s->p.ip4 = skb->protocol == bpf_htons(ETH_P_IP);
	if (!s->p.ip4 && skb->protocol != bpf_htons(ETH_P_IPV6))
		return drop(skb, &s->p, HW_DROP_ETHERTYPE);
	bad = read_packet(skb, &s->p);
	if (bad)
		return drop(skb, &s->p, bad);
	local = bpf_map_lookup_elem(&locals, &s->p.from);
	if (!local)
		return packet_from_tunnel(skb, s);
	ifindex = local->ifindex;
	ep = bpf_map_lookup_elem(&endpoints, &ifindex);
	if (!ep)
		return drop(skb, &s->p, HW_DROP_ENDPOINT);
	s->p.ifindex = ifindex;
	s->p.path = HW_COUNT_INGRESS_FAST;
	return packet_from_pod(skb, s, ep);
}

/* ------------------------------------------------------------------- guard */

static __always_inline int listed(void *map, const struct hw_addr *addr)
{
	struct hw_prefix key = { .bits = 128, .addr = *addr };

	return !!bpf_map_lookup_elem(map, &key);
}

static __always_inline int is_tag(__be16 protocol)
{
	return protocol == bpf_htons(ETH_P_8021Q) || protocol == bpf_htons(ETH_P_8021AD);
}

/* More tags in a packet than any link has. */
#define HW_TAGS 5
/* All headers that the guard reads lie in these first bytes. */
#define HW_GUARD_HEADERS 128

/* Reads a header, also where the kernel keeps it in pages. Returns 0, or not if there is none. */
static __always_inline int load_header(struct __sk_buff *skb, __u32 at, void *to, __u32 length, __u32 start)
{
	__u32 all = skb->len < HW_GUARD_HEADERS ? skb->len : HW_GUARD_HEADERS;

	if (!bpf_skb_load_bytes_relative(skb, at, to, length, start))
		return 0;
	return bpf_skb_pull_data(skb, all) || bpf_skb_load_bytes_relative(skb, at, to, length, start);
}

/* Reads the two ends. Headers are where the kernel says that the network layer begins: it knows links without Ethernet and the
 * first tag. More tags are read from the link's header on, since of what is sent raw it says another thing. Returns 1 for
 * an IP packet, 0 for another, -1 if it cannot be read. */
static __always_inline int read_ends(struct __sk_buff *skb, struct packet *p)
{
	__u32 at = 0, start = BPF_HDR_START_NET;
	__be16 protocol = skb->protocol, tag[2];
	int i;

	if (is_tag(protocol)) {
		at = ETH_HLEN;
		start = BPF_HDR_START_MAC;
	}
#pragma unroll
	for (i = 0; i < HW_TAGS; i++) {
		if (!is_tag(protocol))
			break;
		if (load_header(skb, at, tag, sizeof(tag), start))
			return -1;
		protocol = tag[1];
		at += sizeof(tag);
	}
	if (protocol == bpf_htons(ETH_P_IP)) {
		struct iphdr ip;

		if (load_header(skb, at, &ip, sizeof(ip), start))
			return -1;
		p->ip4 = 1;
		p->t.protocol = ip.protocol;
		map_ip4(&p->t.src, ip.saddr);
		map_ip4(&p->t.dst, ip.daddr);
		return 1;
	}
	if (protocol == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr ip;

		if (load_header(skb, at, &ip, sizeof(ip), start))
			return -1;
		p->t.protocol = ip.nexthdr;
		__builtin_memcpy(&p->t.src, &ip.saddr, 16);
		__builtin_memcpy(&p->t.dst, &ip.daddr, 16);
		return 1;
	}
	return is_tag(protocol) ? -1 : 0;
}

/* Nothing with a guarded address at either end crosses an uplink in clear, nor what hides its ends. */
static __always_inline int guard(struct __sk_buff *skb, __u32 reason)
{
	struct scratch *s = begin(skb, 0, 0);
	struct packet *p;
	int is_ip;

	if (!s)
		return TC_ACT_SHOT;
	p = &s->p;
	is_ip = read_ends(skb, p);
	if (is_ip < 0)
		return drop(skb, p, reason);
	if (!is_ip)
		return HW_PASS;
	if (listed(&guarded, &p->t.src)) {
		if (!listed(&exempt, &p->t.dst) || listed(&guarded, &p->t.dst))
			return drop(skb, p, reason);
	} else if (listed(&guarded, &p->t.dst)) {
		if (!listed(&exempt, &p->t.src))
			return drop(skb, p, reason);
	} else {
		return HW_PASS;
	}
	count(HW_COUNT_EXEMPT);
	return HW_PASS;
}

SEC("classifier")
int guard_in(struct __sk_buff *skb)
{
	return guard(skb, HW_DROP_GUARD_IN);
}

SEC("classifier")
int guard_out(struct __sk_buff *skb)
{
	return guard(skb, HW_DROP_GUARD_OUT);
}

char _license[] SEC("license") = "Dual BSD/GPL";
