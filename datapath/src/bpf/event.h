/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What is told to the agent: one event for each new flow, drop, revocation and change, none for other packets. */
#ifndef HAWSER_EVENT_H
#define HAWSER_EVENT_H

#include "packet.h"

static __noinline int tell(struct __sk_buff *skb, struct packet *p, __u32 kind, __u32 reason)
{
	struct hw_event *event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);

	if (!event) {
		count(HW_COUNT_FLOWS_LOST);
		return 0;
	}
	event->at = bpf_ktime_get_ns();
	event->src = p->kind == HW_ICMP_ERROR ? p->from : p->t.src;
	event->dst = p->kind == HW_ICMP_ERROR ? p->to : p->t.dst;
	event->service = p->service;
	event->sport = p->t.sport;
	event->dport = p->t.dport;
	event->service_port = p->service_port;
	event->protocol = p->kind == HW_ICMP_ERROR ? (p->ip4 ? IPPROTO_ICMP : IPPROTO_ICMPV6) : p->t.protocol;
	event->kind = kind;
	event->reason = reason;
	event->direction = p->direction;
	event->tcp_flags = p->tcp_flags;
	event->flags = p->reverse;
	event->ifindex = p->ifindex;
	event->rule = p->rule;
	event->classes[0] = p->classes[0];
	event->classes[1] = p->classes[1];
	event->length = skb->len - p->l3;
	event->epoch = p->epoch;
	/* Waking the reader for each would cost more than all the rest; it polls. */
	bpf_ringbuf_submit(event, BPF_RB_NO_WAKEUP);
	return 0;
}

/* Counts and reports a drop. Returns the verdict. */
static __noinline int drop(struct __sk_buff *skb, struct packet *p, __u32 reason)
{
	if (reason < HW_REASONS)
		count(HW_COUNT_DROP + reason);
	tell(skb, p, HW_EVENT_DROP, reason);
	return 2 /* TC_ACT_SHOT */;
}

#endif
