/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Where a packet that may pass goes: into a pod, into the mesh, to the stack. From pod to pod is one hop, as in a switch: TTL
 * stays. It cannot go round: what comes out of the tunnel is for a pod here, or dropped.
 */
#ifndef HAWSER_DELIVER_H
#define HAWSER_DELIVER_H

#include <linux/pkt_cls.h>

#include "translate.h"

/* Left to the stack; whoever else is on the hook is asked, too (TC_ACT_OK would pass them by). */
#define HW_PASS TC_ACT_UNSPEC

/* Does the packet travel against the first one of its flow? An ICMP error travels against the packet in it. */
static __always_inline int against(const struct packet *p)
{
	return p->reverse ^ (p->kind == HW_ICMP_ERROR);
}

/* Which edge of the flow its sender, its receiver is. */
static __always_inline __u32 sender_edge(const struct packet *p)
{
	return against(p) ? HW_INGRESS : HW_EGRESS;
}

static __always_inline __u32 receiver_edge(const struct packet *p)
{
	return against(p) ? HW_EGRESS : HW_INGRESS;
}

/* Answers of a service get its address back. */
static __always_inline int answer(struct __sk_buff *skb, struct packet *p, const struct hw_flow *flow)
{
	if (!(flow->flags & HW_FLOW_SERVICE) || !against(p))
		return 0;
	if (p->kind != HW_ICMP_ERROR)
		return translate_back(skb, p, flow);
	return flow->flags & HW_FLOW_HAIRPIN ? HW_DROP_ICMP_UNRELATED : translate_inner(skb, p, flow);
}

/* Into a pod, past the host's end of its link and the program on it. */
static __noinline int into_pod(struct __sk_buff *skb, struct packet *p, const struct hw_endpoint *ep, __u32 ifindex)
{
	__u8 head[14];

	__builtin_memcpy(head, ep->pod_mac, 6);
	__builtin_memcpy(head + 6, ep->host_mac, 6);
	*(__be16 *)(head + 12) = p->ip4 ? bpf_htons(ETH_P_IP) : bpf_htons(ETH_P_IPV6);
	/* What comes out of the tunnel has no Ethernet header. */
	if (!p->l3 && bpf_skb_change_head(skb, sizeof(head), 0))
		return drop(skb, p, HW_DROP_TRANSLATE);
	if (bpf_skb_store_bytes(skb, 0, head, sizeof(head), 0))
		return drop(skb, p, HW_DROP_TRANSLATE);
	count(HW_COUNT_TO_PEER);
	return bpf_redirect_peer(ifindex, 0);
}

/* What the kernel's routes say of the packet: BPF_FIB_LKUP_RET_*, or an error. */
static __noinline long ask_route(struct __sk_buff *skb, struct packet *p, struct bpf_fib_lookup *route)
{
	const struct hw_addr *from = p->kind == HW_ICMP_ERROR ? &p->from : &p->t.src;
	const struct hw_addr *to = p->kind == HW_ICMP_ERROR ? &p->to : &p->t.dst;

	route->ifindex = skb->ifindex;
	route->l4_protocol = p->t.protocol;
	/* What is too long for the way there is the stack's to answer. Segments of a long one (GSO) have room. */
	if (!skb->gso_size)
		route->tot_len = skb->len - p->l3;
	if (p->ip4) {
		route->family = 2 /* AF_INET */;
		route->ipv4_src = from->w[3];
		route->ipv4_dst = to->w[3];
	} else {
		route->family = 10 /* AF_INET6 */;
		__builtin_memcpy(route->ipv6_src, from, 16);
		__builtin_memcpy(route->ipv6_dst, to, 16);
	}
	return bpf_fib_lookup(skb, route, sizeof(*route), 0);
}

/* Where the kernel's routes lead into the tunnel, straight there; everything else is the stack's, also the refusal. */
static __noinline int into_mesh(struct __sk_buff *skb, struct packet *p)
{
	struct bpf_fib_lookup route = {};
	long found = ask_route(skb, p, &route);
	__u32 *kind, device;

	/* A tunnel has no neighbours. */
	if (found != BPF_FIB_LKUP_RET_SUCCESS && found != BPF_FIB_LKUP_RET_NO_NEIGH)
		goto stack;
	device = route.ifindex;
	kind = bpf_map_lookup_elem(&devices, &device);
	if (!kind || *kind != HW_DEVICE_SLOT)
		goto stack;
	count(HW_COUNT_TO_TUNNEL);
	return bpf_redirect(device, 0);
stack:
	count(HW_COUNT_TO_STACK);
	return HW_PASS;
}

/* Out of the tunnel, and for nobody here: dropped; where the route itself refuses (an address of this node's pods that nobody
 * has) by the stack, which tells the sender. */
static __noinline int for_nobody(struct __sk_buff *skb, struct packet *p)
{
	struct bpf_fib_lookup route = {};

	drop(skb, p, HW_DROP_TUNNEL_FOREIGN);
	return ask_route(skb, p, &route) == BPF_FIB_LKUP_RET_UNREACHABLE ? HW_PASS : TC_ACT_SHOT;
}

#endif
