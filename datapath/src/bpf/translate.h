/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Services: from what a pod says to a backend, and back. */
#ifndef HAWSER_TRANSLATE_H
#define HAWSER_TRANSLATE_H

#include "flow.h"

/* SCTP's checksum covers its ports (RFC 9260) and no address, so they stay. */
static __always_inline int ports_move(__u8 protocol)
{
	return protocol == IPPROTO_TCP || protocol == IPPROTO_UDP;
}

#define HW_SOURCE 0
#define HW_DESTINATION 1

/* Changes one end of the packet: address and port. Returns 0 or a reason to drop. */
static __noinline int rewrite(struct __sk_buff *skb, struct packet *p, const struct hw_addr *addr, __be16 port, int end)
{
	struct hw_addr *now = end == HW_SOURCE ? &p->t.src : &p->t.dst;
	__be16 *port_now = end == HW_SOURCE ? &p->t.sport : &p->t.dport;
	int whole = p->kind != HW_LATER_FRAGMENT;
	__u32 sum_at = 0;
	__u64 flags = BPF_F_PSEUDO_HDR;

	if (whole && p->t.protocol == IPPROTO_TCP) {
		sum_at = p->l4 + offsetof(struct tcphdr, check);
	} else if (whole && p->t.protocol == IPPROTO_UDP) {
		sum_at = p->l4 + offsetof(struct udphdr, check);
		flags |= BPF_F_MARK_MANGLED_0;
	}
	if (p->ip4) {
		__be32 old = now->w[3], new = addr->w[3];

		if (sum_at && bpf_l4_csum_replace(skb, sum_at, old, new, flags | 4))
			return HW_DROP_TRANSLATE;
		if (bpf_l3_csum_replace(skb, p->l3 + offsetof(struct iphdr, check), old, new, 4) ||
		    bpf_skb_store_bytes(skb, p->l3 + (end == HW_SOURCE ? 12 : 16), &new, 4, 0))
			return HW_DROP_TRANSLATE;
	} else {
		struct hw_addr old = *now, new = *addr;
		__s64 diff = bpf_csum_diff((void *)&old, 16, (void *)&new, 16, 0);

		if (diff < 0 || (sum_at && bpf_l4_csum_replace(skb, sum_at, 0, diff, flags)))
			return HW_DROP_TRANSLATE;
		if (bpf_skb_store_bytes(skb, p->l3 + (end == HW_SOURCE ? 8 : 24), &new, 16, 0))
			return HW_DROP_TRANSLATE;
	}
	if (sum_at && port != *port_now) {
		flags &= ~(__u64)BPF_F_PSEUDO_HDR;
		if (bpf_l4_csum_replace(skb, sum_at, *port_now, port, flags | 2) ||
		    bpf_skb_store_bytes(skb, p->l4 + (end == HW_SOURCE ? 0 : 2), &port, 2, 0))
			return HW_DROP_TRANSLATE;
	}
	p->peer_class = 0;
	p->translated = 1;
	*now = *addr;
	*port_now = port;
	return 0;
}

/* An answer from a backend: its source becomes what the client had called it, its destination whence that had spoken. */
static __noinline int translate_back(struct __sk_buff *skb, struct packet *p, const struct hw_flow *flow)
{
	struct hw_addr service = flow->nat;
	struct hw_addr client = flow->client;
	__be16 port = flow->nat_port, client_port = flow->client_port;
	int bad;

	/* Of a hairpin: the pod answers the service's address, behind which it is itself. */
	if (!(flow->flags & HW_FLOW_HAIRPIN))
		client = p->t.dst;
	if ((flow->flags & HW_FLOW_HAIRPIN) || client_port != p->t.dport) {
		bad = rewrite(skb, p, &client, client_port, HW_DESTINATION);
		if (bad)
			return bad;
	}
	if (!flow->service)
		return 0;
	p->service = service;
	p->service_port = port;
	return rewrite(skb, p, &service, port, HW_SOURCE);
}

/* The packet inside an ICMP error that goes to the client: it sent that to the service. In: p->t is the inner tuple after
 * translation, in the direction of the flow. */
static __noinline int translate_inner(struct __sk_buff *skb, struct packet *p, const struct hw_flow *flow)
{
	struct hw_addr service = flow->nat;
	__be16 port = flow->nat_port, client_port = flow->client_port;
	__be16 old_port = p->t.dport, old_client_port = p->t.sport;
	__u32 sum_at = p->l4 + 2; /* checksum of ICMP and ICMPv6 */

	if (p->ip4) {
		__be32 old = p->t.dst.w[3], new = service.w[3];

		/* The inner header's checksum balances its address, so ICMP's own sees neither. */
		if (bpf_l3_csum_replace(skb, p->inner + offsetof(struct iphdr, check), old, new, 4) ||
		    bpf_skb_store_bytes(skb, p->inner + 16, &new, 4, 0))
			return HW_DROP_TRANSLATE;
	} else {
		struct hw_addr old = p->t.dst;
		__s64 diff = bpf_csum_diff((void *)&old, 16, (void *)&service, 16, 0);

		if (diff < 0 || bpf_l4_csum_replace(skb, sum_at, 0, diff, 0) ||
		    bpf_skb_store_bytes(skb, p->inner + 24, &service, 16, 0))
			return HW_DROP_TRANSLATE;
	}
	if (!ports_move(p->t.protocol))
		return 0;
	if (old_port != port && (bpf_l4_csum_replace(skb, sum_at, old_port, port, 2) ||
				 bpf_skb_store_bytes(skb, p->inner_l4 + 2, &port, 2, 0)))
		return HW_DROP_TRANSLATE;
	if (old_client_port != client_port && (bpf_l4_csum_replace(skb, sum_at, old_client_port, client_port, 2) ||
					       bpf_skb_store_bytes(skb, p->inner_l4, &client_port, 2, 0)))
		return HW_DROP_TRANSLATE;
	return 0;
}

static __always_inline __u32 mix(__u32 h, __u32 v)
{
	h ^= v;
	h *= 0x9e3779b1;
	return h ^ (h >> 15);
}

/* Which place of a service's table: the same client, port and service always have the same. */
static __always_inline __u32 spread(const struct hw_tuple *t, __u32 round)
{
	__u32 h = mix(0x85ebca6b + round, t->src.w[0] ^ t->src.w[1]);

	h = mix(h, t->src.w[2] ^ t->dst.w[2]);
	h = mix(h, t->src.w[3]);
	h = mix(h, t->dst.w[3] ^ t->dst.w[1]);
	h = mix(h, (__u32)t->sport << 16 | t->dport);
	return mix(h, t->protocol);
}

/* What a pod's packet says that it wants: a frontend, or none. */
static __always_inline struct hw_frontend *frontend_of(struct packet *p)
{
	struct hw_frontend_key key = { .addr = p->t.dst, .port = p->t.dport, .protocol = p->t.protocol };
	struct hw_frontend *front = bpf_map_lookup_elem(&frontends, &key);
	struct hw_address *known;

	if (front)
		return front;
	known = bpf_map_lookup_elem(&addresses, &p->t.dst);
	if (known) {
		p->peer_class = class_in(known, p->epoch & 1, p->opens);
		if (!(known->flags & HW_ADDRESS_NODE))
			return 0;
		/* A node port, at whichever node. */
		key.addr.w[0] = 0;
		key.addr.w[1] = 0;
		key.addr.w[2] = p->ip4 ? bpf_htonl(0xffff) : 0;
		key.addr.w[3] = 0;
		return bpf_map_lookup_elem(&frontends, &key);
	}
	/* An address that is a service's, and a port that it does not serve. */
	key.port = 0;
	key.protocol = 0;
	return bpf_map_lookup_elem(&frontends, &key);
}

/* Has somebody else the tuple s->t already? */
static __noinline int collides(struct scratch *s)
{
	struct packet *p = &s->p;
	__u8 swapped = key_of(&s->t, &s->key);
	struct hw_flow *other = bpf_map_lookup_elem(&flows, &s->key);

	if (!other || other->until < p->now || other->state == HW_CLOSING)
		return 0;
	return (other->flags & HW_FLOW_SWAPPED) != swapped || !is_flow_of_words(p, other);
}

/* Where half of all ports to one backend are taken, one flow in 256 finds none. */
#define HW_PORT_TRIES 8

/* Looks for a source port with which the tuple s->t is free; a privileged one stays one (NFS asks for it).
 * Not static, so that it is verified once and not for each way that leads here. */
__noinline int another_port(void)
{
	struct scratch *s = scratch();
	__u32 i, least = 1024, span = 64512;
	int taken;

	/* A connection has its port from its first packet on. */
	if (!s || !ports_move(s->p.t.protocol) || (s->p.t.protocol == IPPROTO_TCP && !is_opening(&s->p)))
		return 0;
	if (bpf_ntohs(s->p.t.sport) < 1024) {
		least = 512;
		span = 512;
	}
	s->t.sport = s->p.t.sport;
	taken = collides(s);
	for (i = 0; i < HW_PORT_TRIES && taken; i++) {
		s->t.sport = bpf_htons(least + bpf_get_prandom_u32() % span);
		taken = collides(s);
	}
	if (taken)
		return 0;
	s->choice.sport = s->t.sport;
	return 1;
}

/* The tuple of the flow to a backend. */
static __always_inline void backend_tuple(const struct packet *p, struct choice *c, struct hw_tuple *t)
{
	*t = p->t;
	t->sport = c->sport;
	t->dst = c->addr;
	t->dport = c->port;
	c->hairpin = same(&c->addr, &p->t.src);
	if (c->hairpin) {
		c->client = p->t.src;
		t->src = p->t.dst;
	}
}

static __always_inline int affine(const struct packet *p, const struct hw_frontend *front, struct choice *c)
{
	struct hw_affinity_key key = { .client = p->t.src, .service = front->service };
	struct hw_affinity *known;
	struct hw_backend *backend;

	known = bpf_map_lookup_elem(&affinities, &key);
	if (!known || known->until < p->now)
		return 0;
	backend = bpf_map_lookup_elem(&backends, &known->backend);
	if (!backend || (backend->flags & HW_BACKEND_LEAVING))
		return 0;
	c->backend = known->backend;
	c->addr = backend->addr;
	c->port = backend->port;
	return 1;
}

/* Tries until a backend is found; where ports stay, until its tuple is free. */
#define HW_TRIES 4

/* Chooses a backend for a new flow, and a source port if the one in s->choice is another's. Returns a reason to drop, or 0. */
static __noinline int choose(struct scratch *s, const struct hw_frontend *front)
{
	struct packet *p = &s->p;
	struct choice *c = &s->choice;
	__u32 round, base = front->base, places_count = front->count;
	int found = 0, stray = 0, taken = 1, move = ports_move(p->t.protocol);

	if (!places_count)
		return HW_DROP_NO_BACKEND;
	if (front->affinity && affine(p, front, c)) {
		backend_tuple(p, c, &s->t);
		taken = collides(s);
		found = move || !taken;
		stray = !found;
	}
	for (round = 0; round < HW_TRIES && !found; round++) {
		__u32 place = base + spread(&p->t, round) % places_count;
		__u32 *number = bpf_map_lookup_elem(&places, &place);
		struct hw_backend *backend;

		if (!number)
			return HW_DROP_NO_BACKEND;
		c->backend = *number;
		backend = bpf_map_lookup_elem(&backends, &c->backend);
		if (!backend)
			continue;
		c->addr = backend->addr;
		c->port = backend->port;
		backend_tuple(p, c, &s->t);
		taken = collides(s);
		found = move || !taken;
	}
	if (taken && (!found || !another_port()))
		return HW_DROP_COLLISION;
	/* An SCTP flow that found its tuple taken at its client's backend goes elsewhere, alone. */
	if (front->affinity && !stray) {
		struct hw_affinity_key key = { .client = p->t.src, .service = front->service };
		struct hw_affinity affinity = {};

		affinity.until = p->now + front->affinity * HW_SECOND;
		affinity.backend = c->backend;
		bpf_map_update_elem(&affinities, &key, &affinity, BPF_ANY);
	}
	return 0;
}

/* What is said to a backend itself, while the same pod speaks to it by a service and from the same port: another source port, by which
 * answers are told apart. Returns a reason to drop, or 0. */
static __noinline int set_aside(struct scratch *s)
{
	struct choice *c = &s->choice;

	c->backend = 0;
	c->addr = s->p.t.dst;
	c->port = s->p.t.dport;
	backend_tuple(&s->p, c, &s->t);
	return !collides(s) || another_port() ? 0 : HW_DROP_COLLISION;
}

/* How long a client's words are remembered after they were said last: as long as their flow, which may not be there yet, and
 * does not know yet what this packet says. If they outlived it, those of short connections would fill conntrack. Of datagrams as
 * long as a flow with answers: those come by another way, and renew nothing here. */
static __always_inline __u64 said_for(const struct packet *p, const struct hw_flow *flow)
{
	if (p->t.protocol == IPPROTO_UDP)
		return HW_UDP_ESTABLISHED;
	if (!flow)
		return HW_TCP_OPENING;
	if (p->t.protocol == IPPROTO_TCP && p->kind != HW_LATER_FRAGMENT &&
	    ((p->tcp_flags & HW_TCP_RST) || ((p->tcp_flags & HW_TCP_FIN) && (flow->flags & HW_FLOW_FIN_AGAINST))))
		return HW_TCP_CLOSING;
	return idle_time(flow, p->t.protocol);
}

/* Remembers which backend a client's words mean. */
static __always_inline void remember_choice(struct scratch *s)
{
	struct choice *c = &s->choice;
	struct hw_flow *said = &s->fresh;

	__builtin_memset(said, 0, sizeof(*said));
	said->until = s->p.now + said_for(&s->p, 0);
	said->flags = HW_FLOW_SERVICE;
	said->nat_port = c->port;
	said->service = c->backend;
	said->nat = c->addr;
	said->client_port = c->sport;
	s->t = s->p.t;
	s->t.scope = HW_SCOPE_SERVICE;
	bpf_map_update_elem(&flows, &s->t, said, BPF_ANY);
	__builtin_memset(said, 0, sizeof(*said));
}

/* What these words meant when they were said last, also too long ago. */
static __always_inline struct hw_flow *words_of(struct scratch *s)
{
	s->t = s->p.t;
	s->t.scope = HW_SCOPE_SERVICE;
	return bpf_map_lookup_elem(&flows, &s->t);
}

/* Goes this on as the words were meant? `said` is what they meant, and s->choice is set by it, also for a new choice, that begins
 * with the port of the old one. *flow: that of the words, or another one that has its tuple by now. */
static __always_inline int recall(struct scratch *s, struct hw_flow *said, struct hw_flow **flow)
{
	struct packet *p = &s->p;
	struct choice *c = &s->choice;
	int live = said->until >= p->now, own;
	__u64 until;

	c->backend = said->service;
	c->addr = said->nat;
	c->port = said->nat_port;
	c->sport = said->client_port;
	backend_tuple(p, c, &s->t);
	*flow = find_by(s, &s->t);
	own = *flow && !p->reverse && is_flow_of_words(p, *flow);
	/* A new connection chooses anew. But a SYN that is sent again keeps the port that it was given. */
	if (is_opening(p) && (c->backend || !own))
		return 0;
	/* A UDP flow whose backend was removed chooses again; a TCP connection goes on to where it was, and ends there. */
	if (c->backend && p->t.protocol != IPPROTO_TCP && !bpf_map_lookup_elem(&backends, &c->backend))
		return 0;
	/* While the backend speaks, its flow outlives the words of a client that listens. */
	if (!own && (!live || (*flow && p->t.protocol == IPPROTO_UDP)))
		return 0;
	until = p->now + said_for(p, own ? *flow : 0);
	if (until > said->until + HW_SECOND || until + HW_SECOND < said->until)
		said->until = until;
	return 1;
}

#endif
