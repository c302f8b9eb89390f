/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Flows that are known. An entry's key is the tuple after translation, as it is between the two ends, the smaller end first, so that
 * both directions find it at once. It says at which epoch each edge of ours (the source's egress, the destination's ingress) was
 * judged; a packet that meets an older epoch has that edge judged again. What was allowed and is denied now stays as
 * a tombstone, so that the other side cannot go on as if it had begun a flow of its own.
 */
#ifndef HAWSER_FLOW_H
#define HAWSER_FLOW_H

#include "policy.h"

#define HW_SECOND 1000000000ull
/* Idle times. Established TCP: two hours and a bit, over the usual keepalive (RFC 1122 4.2.3.6); half closed as kube-proxy has
 * it (--conntrack-tcp-timeout-close-wait); the others as nf_conntrack. */
#define HW_TCP_OPENING (60 * HW_SECOND)
#define HW_TCP_ESTABLISHED (8000 * HW_SECOND)
#define HW_TCP_CLOSING (10 * HW_SECOND)
#define HW_TCP_HALF_CLOSED (3600 * HW_SECOND)
#define HW_UDP_NEW (30 * HW_SECOND)
#define HW_UDP_ESTABLISHED (180 * HW_SECOND)
#define HW_OTHER (60 * HW_SECOND)
/* A cut connection's ends try again for about a quarter of an hour (tcp_retries2); each try renews this. */
#define HW_REVOKED_IDLE (300 * HW_SECOND)

#define HW_FLOW_FIN_BOTH (HW_FLOW_FIN_WITH | HW_FLOW_FIN_AGAINST)

static __always_inline int is_opening(const struct packet *p)
{
	return p->t.protocol == IPPROTO_TCP && p->kind != HW_LATER_FRAGMENT && p->kind != HW_ICMP_ERROR &&
	       (p->tcp_flags & (HW_TCP_SYN | HW_TCP_ACK | HW_TCP_RST)) == HW_TCP_SYN;
}

/* Is the source the greater end? Any order does. */
static __always_inline int is_swapped(const struct hw_tuple *t)
{
	if (t->src.w[3] != t->dst.w[3])
		return t->src.w[3] > t->dst.w[3];
	if (t->src.w[2] != t->dst.w[2])
		return t->src.w[2] > t->dst.w[2];
	if (t->src.w[1] != t->dst.w[1])
		return t->src.w[1] > t->dst.w[1];
	if (t->src.w[0] != t->dst.w[0])
		return t->src.w[0] > t->dst.w[0];
	return t->sport > t->dport;
}

/* The one key of both directions of a tuple. Returns HW_FLOW_SWAPPED if it had to be turned. */
static __always_inline __u8 key_of(const struct hw_tuple *t, struct hw_tuple *key)
{
	if (!is_swapped(t)) {
		*key = *t;
		return 0;
	}
	reverse(t, key);
	return HW_FLOW_SWAPPED;
}

/* Finds the flow of a tuple; p->reverse says in which direction. s->key is its key then. */
static __noinline struct hw_flow *find_by(struct scratch *s, const struct hw_tuple *t)
{
	struct packet *p = &s->p;
	__u8 swapped = key_of(t, &s->key);
	struct hw_flow *flow = bpf_map_lookup_elem(&flows, &s->key);

	p->swapped = swapped;
	p->reverse = 0;
	if (!flow)
		return 0;
	/* Too old; or closed, and its tuple is used again, perhaps from the other side. */
	if (flow->until < p->now || (flow->state == HW_CLOSING && is_opening(p)))
		return 0;
	p->reverse = (flow->flags & HW_FLOW_SWAPPED) != swapped;
	return flow;
}

static __always_inline struct hw_flow *find(struct scratch *s)
{
	return find_by(s, &s->p.t);
}

/* Is this the flow by which a client's words, to p->t.dst from p->t.sport, reach a backend? */
static __always_inline int is_flow_of_words(const struct packet *p, const struct hw_flow *flow)
{
	return (flow->flags & HW_FLOW_SERVICE) && same(&flow->nat, &p->t.dst) && flow->nat_port == p->t.dport &&
	       flow->client_port == p->t.sport;
}

/* Is an ICMP error about a flow that we know, and goes to whoever sent the packet in it? Policy is asked by that packet's ends,
 * so it must not go to anybody else. */
static __always_inline int about_receivers(const struct packet *p, const struct hw_flow *flow)
{
	return flow && same(&p->t.src, &p->to);
}

static __always_inline __u64 idle_time(const struct hw_flow *flow, __u8 protocol)
{
	if ((flow->judged[0] | flow->judged[1]) & 1)
		return HW_REVOKED_IDLE;
	if (protocol == IPPROTO_TCP || protocol == HW_PROTOCOL_SCTP) {
		if (flow->state == HW_CLOSING)
			return HW_TCP_CLOSING;
		if (flow->flags & HW_FLOW_FIN_BOTH)
			return HW_TCP_HALF_CLOSED;
		return flow->state == HW_ESTABLISHED ? HW_TCP_ESTABLISHED : HW_TCP_OPENING;
	}
	if (protocol == IPPROTO_UDP)
		/* A late answer to a port that the client does not know could not be brought back any more. */
		return flow->state == HW_ESTABLISHED || (flow->flags & HW_FLOW_MOVED) ? HW_UDP_ESTABLISHED : HW_UDP_NEW;
	return HW_OTHER;
}

static __always_inline __u8 reset(struct hw_flow *flow)
{
	if (flow->revived)
		flow->revived = 0;
	return HW_CLOSING;
}

/* A reset that neither end takes (its sequence number is not what they expect, RFC 5961 3.2) ends nothing: both go on. What was still
 * on its way comes from one end alone, since the other answers it by another reset. */
static __always_inline int go_on(const struct packet *p, struct hw_flow *flow)
{
	__u8 seen = flow->revived | (p->reverse ? 2 : 1);

	if (!(p->tcp_flags & HW_TCP_ACK))
		return 0;
	if (seen == 3)
		seen = 0;
	if (seen != flow->revived)
		flow->revived = seen;
	return !seen;
}

/* Takes note of one more packet. Writes only what changed: flows of other CPUs read the same line. */
static __always_inline void touch(struct packet *p, struct hw_flow *flow)
{
	__u8 state = flow->state, flags = flow->flags;
	__u64 until;

	if (p->kind == HW_ICMP_ERROR)
		return;
	if (p->reverse && state == HW_NEW)
		state = HW_ESTABLISHED;
	if (p->t.protocol == IPPROTO_TCP && p->kind != HW_LATER_FRAGMENT) {
		if (p->tcp_flags & HW_TCP_FIN)
			flags |= p->reverse ? HW_FLOW_FIN_AGAINST : HW_FLOW_FIN_WITH;
		if ((flags & HW_FLOW_FIN_BOTH) == HW_FLOW_FIN_BOTH)
			state = HW_CLOSING;
		else if (p->tcp_flags & HW_TCP_RST)
			state = reset(flow);
		else if (state == HW_CLOSING && go_on(p, flow))
			state = HW_ESTABLISHED;
	}
	if (state != flow->state)
		flow->state = state;
	if (flags != flow->flags)
		flow->flags = flags;
	until = p->now + idle_time(flow, p->t.protocol);
	if (until > flow->until + HW_SECOND || until + HW_SECOND < flow->until)
		flow->until = until;
}

/* The tuple by which a flow is judged: in the direction of its first packet, with the client's own address. */
static __always_inline void judged_tuple(const struct packet *p, const struct hw_flow *flow, struct hw_tuple *t)
{
	if (p->reverse)
		reverse(&p->t, t);
	else
		*t = p->t;
	if (flow->flags & HW_FLOW_HAIRPIN)
		t->src = flow->client;
}

/* One edge of a known flow, judged again where policy has moved since. Returns a reason to drop, or 0. */
static __noinline int edge(struct __sk_buff *skb, struct scratch *s, struct hw_flow *flow, const struct hw_endpoint *ep,
			   __u32 direction)
{
	struct packet *p = &s->p;
	__u32 before;
	int bad, known;

	direction &= 1;
	before = flow->judged[direction];
	p->direction = direction;
	/* The pod's own node is always let in, and answered. */
	if (flow->flags & HW_FLOW_HOST)
		return 0;
	if (before >> 1 == p->epoch) {
		if (!(before & 1))
			return 0;
		touch(p, flow);
		return HW_DROP_REVOKED;
	}
	judged_tuple(p, flow, &s->t);
	p->opens = !before || flow->stranger[direction];
	bad = judge(skb, p, ep, &s->t, direction);
	if (bad == HW_DROP_CLOSED)
		return bad;
	/* An address becomes known without a new epoch: what was denied for want of it is asked again each time. */
	known = bad != HW_DROP_UNKNOWN_INGRESS && bad != HW_DROP_UNKNOWN_EGRESS;
	flow->judged[direction] = (known ? p->epoch << 1 : 0) | !!bad;
	if (flow->stranger[direction] != p->stranger[direction])
		flow->stranger[direction] = p->stranger[direction];
	if (before)
		count(HW_COUNT_REJUDGED);
	if (!bad) {
		if (before & 1)
			tell(skb, p, HW_EVENT_CHANGED, 0);
		return 0;
	}
	if (before && !(before & 1)) {
		count(HW_COUNT_REVOKED);
		tell(skb, p, HW_EVENT_REVOKED, bad);
	}
	touch(p, flow);
	return before ? HW_DROP_REVOKED : bad;
}

/* Remembers a flow whose first packet may pass. s->key is of the last find(). */
static __noinline int remember(struct __sk_buff *skb, struct scratch *s)
{
	struct packet *p = &s->p;
	struct hw_flow *flow = &s->fresh;

	p->reverse = 0;
	flow->flags |= p->swapped;
	flow->stranger[HW_INGRESS] = p->stranger[HW_INGRESS];
	flow->stranger[HW_EGRESS] = p->stranger[HW_EGRESS];
	flow->until = p->now + idle_time(flow, p->t.protocol);
	/* Full: this packet was judged and passes; what comes back is judged as if it were new, so what policy denies stays
	 * denied. */
	if (bpf_map_update_elem(&flows, &s->key, flow, BPF_ANY))
		count(HW_COUNT_FLOWS_FULL);
	tell(skb, p, HW_EVENT_NEW, 0);
	return 0;
}

#endif
