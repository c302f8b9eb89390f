/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What the tables say. mesh_core::policy::tables::judge is the same in Rust. */
#ifndef HAWSER_POLICY_H
#define HAWSER_POLICY_H

#include "event.h"

/* What an address that is known says. */
static __always_inline __u32 class_in(const struct hw_address *known, __u32 bank, int opens)
{
	__u32 class = known->class[bank & 1];

	return !class || (opens && (known->flags & HW_ADDRESS_GONE)) ? HW_CLASS_UNKNOWN : class;
}

/* The class of an address. `opens`: for a flow that is not there yet, for which a vanished pod's address is nobody's. */
static __always_inline __u32 class_of(const struct hw_addr *addr, __u32 bank, int opens)
{
	struct hw_address *known = bpf_map_lookup_elem(&addresses, addr);
	struct hw_prefix prefix = { .bits = 128, .addr = *addr };
	struct hw_block *block;
	__u32 class;

	if (known)
		return class_in(known, bank, opens);
	block = bpf_map_lookup_elem(&blocks, &prefix);
	if (!block)
		return HW_CLASS_WORLD;
	class = block->class[bank & 1];
	return class ? class : HW_CLASS_UNKNOWN;
}

/* What a table says of a class, a protocol and a port: HW_ALLOW and the rule's number. */
static __always_inline __u32 ask(const struct hw_side *side, __u32 class, __u32 direction, __u8 protocol, __be16 port)
{
	struct hw_row_key row = { .table = side->table, .class = class, .direction = direction };
	struct hw_port_key key = { .bits = 64, .protocol = protocol, .port = has_ports(protocol) ? port : 0 };
	__u32 *says = bpf_map_lookup_elem(&rows, &row);
	__u32 fn = says ? *says : side->fallback[direction & 1];

	if (fn == HW_FN_DENY)
		return 0;
	if (fn == HW_FN_ALLOW)
		return HW_ALLOW;
	key.fn = fn;
	says = bpf_map_lookup_elem(&ports, &key);
	return says ? *says : 0;
}

/* Asks the policy of one edge. `t` in the direction of the flow's first packet, after translation. Returns a reason to
 * drop, or 0. */
static __noinline int judge(struct __sk_buff *skb, struct packet *p, const struct hw_endpoint *ep,
			    const struct hw_tuple *t, __u32 direction)
{
	__u32 bank = p->epoch & 1;
	const struct hw_side *side = &ep->side[bank];
	const struct hw_addr *peer = direction == HW_INGRESS ? &t->src : &t->dst;
	__u32 says, class;

	p->direction = direction;
	p->rule = 0;
	count(direction == HW_INGRESS ? p->path : HW_COUNT_EGRESS);
	if (side->flags & HW_SIDE_CLOSED)
		return HW_DROP_CLOSED;
	if (direction == HW_EGRESS && p->opens && p->peer_class && same(peer, &p->t.dst))
		class = p->peer_class;
	else
		class = class_of(peer, bank, p->opens);
	p->classes[direction == HW_INGRESS ? 0 : 1] = class;
	p->stranger[direction & 1] = class == HW_CLASS_UNKNOWN;
	if (class == HW_CLASS_UNKNOWN)
		tell(skb, p, HW_EVENT_UNKNOWN, 0);
	says = ask(side, class, direction, t->protocol, t->dport);
	p->rule = says >> 1;
	if (says & HW_ALLOW)
		return 0;
	if (side->flags & HW_SIDE_AUDIT) {
		count(HW_COUNT_AUDITED);
		tell(skb, p, HW_EVENT_AUDIT, direction == HW_INGRESS ? HW_DROP_POLICY_INGRESS : HW_DROP_POLICY_EGRESS);
		return 0;
	}
	if (class == HW_CLASS_UNKNOWN)
		return direction == HW_INGRESS ? HW_DROP_UNKNOWN_INGRESS : HW_DROP_UNKNOWN_EGRESS;
	return direction == HW_INGRESS ? HW_DROP_POLICY_INGRESS : HW_DROP_POLICY_EGRESS;
}

/* Longest packet that is held: more than any MTU but a jumbo frame's. */
#define HW_HOLD_LENGTH 9216

/* Drops what may not pass. The first packet of a flow whose peer nobody has told us of yet is kept for a moment instead: its
 * pod may be so young that its own node knows it alone. What was translated is not: a second look would not know how. */
static __noinline int refuse(struct __sk_buff *skb, struct packet *p, __u32 reason)
{
	__u32 zero = 0;
	struct hw_state *now;

	if (reason != HW_DROP_UNKNOWN_EGRESS && reason != HW_DROP_UNKNOWN_INGRESS)
		return drop(skb, p, reason);
	now = bpf_map_lookup_elem(&state, &zero);
	if (!now || !now->hold || p->kind == HW_LATER_FRAGMENT || p->translated || skb->len > HW_HOLD_LENGTH ||
	    skb->ifindex == now->hold)
		return drop(skb, p, reason);
	count(HW_COUNT_HELD);
	return bpf_redirect(now->hold, 0);
}

#endif
