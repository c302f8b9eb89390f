/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Reading a packet: addresses, ports, what kind it is. */
#ifndef HAWSER_PACKET_H
#define HAWSER_PACKET_H

#include <stddef.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/in6.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>

#include "maps.h"

#define HW_PROTOCOL_SCTP 132

/* linux/icmp.h wants the C library's headers. RFC 792, RFC 4443. */
#define ICMP_ECHOREPLY 0
#define ICMP_DEST_UNREACH 3
#define ICMP_ECHO 8
#define ICMP_TIME_EXCEEDED 11
#define ICMP_PARAMETERPROB 12
#define ICMPV6_DEST_UNREACH 1
#define ICMPV6_PARAMPROB 4
#define ICMPV6_ECHO_REQUEST 128
#define ICMPV6_ECHO_REPLY 129

#define HW_TCP_FIN 1
#define HW_TCP_SYN 2
#define HW_TCP_RST 4
#define HW_TCP_ACK 16

/* What is to know about one packet while it is judged. */
struct packet {
	struct hw_tuple t; /* as on the wire; of an ICMP error: of the packet that it is about */
	struct hw_addr from; /* outer source */
	struct hw_addr to;   /* outer destination */
	__u64 now;
	__u32 l3;	/* offset of the IP header */
	__u32 l4;	/* offset of what follows it */
	__u32 inner;	/* of an ICMP error: offset of the IP header in it, and of what follows that */
	__u32 inner_l4;
	__u32 id;	/* of a fragment */
	__u32 epoch;
	__u32 path;	/* HW_COUNT_INGRESS_*: which way ingress policy is asked */
	__u32 ifindex;	/* of the pod's link concerned, for events */
	__u32 rule;
	__u32 classes[2];
	__u32 peer_class; /* of the destination in `t`, if it was looked up already, for a flow that is not there yet */
	__u8 ip4;
	__u8 tcp_flags;
	__u8 icmp_type;
	__u8 kind;
	__u8 direction; /* of the policy that judged last */
	__u8 reverse;	/* flow: this packet goes against its first */
	__u8 swapped;	/* HW_FLOW_SWAPPED, if this packet's tuple is turned in the key */
	__u8 opens;	/* judged for a flow that is not there yet */
	__u8 stranger[2]; /* by direction: judged as of a peer that is nobody that we know */
	__u8 translated;
	__u8 piece;	/* IPv6: it has a fragment header */
	struct hw_addr service; /* what the client said, for events */
	__be16 service_port;
};

/* A backend for a flow. */
struct choice {
	struct hw_addr addr;
	struct hw_addr client; /* of a hairpin */
	__u32 backend; /* 0: none, what is said to a pod itself gets another source port */
	__be16 port;
	__be16 sport; /* of the flow: the client's own unless another flow has it */
	__u8 hairpin;
	__u8 pad[3];
};

/* What one packet needs is kept here and not on the stack: that has 512 bytes for all functions together, and the verifier
 * follows every byte of it. Programs run with softirqs off, so nobody else uses it meanwhile. */
struct scratch {
	struct packet p;
	struct choice choice;
	struct hw_flow fresh; /* to be remembered */
	struct hw_tuple key;  /* of the flow */
	struct hw_tuple t;    /* by which it is judged */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(struct scratch));
	__uint(max_entries, 1);
} scratches SEC(".maps");

static __always_inline struct scratch *scratch(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&scratches, &zero);
}

#define HW_WHOLE 0
#define HW_FIRST_FRAGMENT 1
#define HW_LATER_FRAGMENT 2
#define HW_ICMP_ERROR 3
#define HW_ND 4 /* neighbour discovery or multicast listener discovery: never leaves the link */

static __always_inline void map_ip4(struct hw_addr *a, __be32 ip)
{
	a->w[0] = 0;
	a->w[1] = 0;
	a->w[2] = bpf_htonl(0xffff);
	a->w[3] = ip;
}

static __always_inline int same(const struct hw_addr *a, const struct hw_addr *b)
{
	return a->w[3] == b->w[3] && a->w[2] == b->w[2] && a->w[1] == b->w[1] && a->w[0] == b->w[0];
}

static __always_inline int is_zero(const struct hw_addr *a)
{
	return !(a->w[0] | a->w[1] | a->w[2] | a->w[3]);
}

static __always_inline int is_mapped(const struct hw_addr *a)
{
	return a->w[0] == 0 && a->w[1] == 0 && a->w[2] == bpf_htonl(0xffff);
}

static __always_inline int is_link_local6(const struct hw_addr *a)
{
	return (a->w[0] & bpf_htonl(0xffc00000)) == bpf_htonl(0xfe800000);
}

/* ff02::/16: never leaves the link. */
static __always_inline int is_link_group6(const struct hw_addr *a)
{
	return (a->w[0] & bpf_htonl(0xffff0000)) == bpf_htonl(0xff020000);
}

/* Extension headers that one packet may have before we give it up: more than any real one. */
#define HW_EXTENSIONS 6

/* Walks IPv6 extension headers. Returns the offset of what follows them, 0 if they cannot be read. *fragment: the
 * fragment header's offset field, *id its identification. */
static __always_inline __u32 skip_extensions(struct __sk_buff *skb, __u32 at, __u8 *next, __u16 *fragment, __u32 *id)
{
	struct {
		__u8 next;
		__u8 length;
		__be16 offset;
		__be32 id;
	} header;
	int i;

#pragma unroll
	for (i = 0; i < HW_EXTENSIONS; i++) {
		__u8 kind = *next;

		if (kind != IPPROTO_HOPOPTS && kind != IPPROTO_ROUTING && kind != IPPROTO_DSTOPTS &&
		    kind != IPPROTO_FRAGMENT && kind != IPPROTO_AH)
			return at;
		/* Everything behind a fragment header of a later fragment is payload. */
		if (*fragment & 0xfff8)
			return at;
		if (bpf_skb_load_bytes(skb, at, &header, sizeof(header)))
			return 0;
		*next = header.next;
		if (kind == IPPROTO_FRAGMENT) {
			*fragment = bpf_ntohs(header.offset) | 0x4; /* bit 2 is reserved: here it says "there is one" */
			*id = header.id;
			at += 8;
		} else if (kind == IPPROTO_AH) {
			at += (header.length + 2) * 4;
		} else {
			at += (header.length + 1) * 8;
		}
	}
	return 0;
}

static __always_inline void reverse(const struct hw_tuple *t, struct hw_tuple *r)
{
	r->src = t->dst;
	r->dst = t->src;
	r->sport = t->dport;
	r->dport = t->sport;
	r->protocol = t->protocol;
	r->scope = t->scope;
	r->pad = 0;
}

static __always_inline int has_ports(__u8 protocol)
{
	return protocol == IPPROTO_TCP || protocol == IPPROTO_UDP || protocol == HW_PROTOCOL_SCTP;
}

/* Ports of an ICMP echo: the identifier on the asking side, so that the answer is the question reversed. */
static __always_inline int echo_ports(int ip4, __u8 type, __be16 id, struct hw_tuple *t)
{
	if (type == (ip4 ? ICMP_ECHO : ICMPV6_ECHO_REQUEST)) {
		t->sport = id;
		return 1;
	}
	if (type == (ip4 ? ICMP_ECHOREPLY : ICMPV6_ECHO_REPLY)) {
		t->dport = id;
		return 1;
	}
	return 0;
}

static __always_inline int is_error(int ip4, __u8 type)
{
	return ip4 ? type == ICMP_DEST_UNREACH || type == ICMP_TIME_EXCEEDED || type == ICMP_PARAMETERPROB
		   : type >= ICMPV6_DEST_UNREACH && type <= ICMPV6_PARAMPROB;
}

/* Types 130 to 132 and 143 (listener discovery), 133 to 137 (neighbour discovery). */
static __always_inline int is_discovery(__u8 type)
{
	return (type >= 130 && type <= 137) || type == 143;
}

struct icmp_head {
	__u8 type;
	__u8 code;
	__be16 sum;
	__be16 id;
	__be16 sequence;
};

/* The packet that an ICMP error is about. */
static __noinline int read_inner(struct __sk_buff *skb, struct packet *p)
{
	__be16 ports[4] = {};
	__u8 protocol;
	__u32 at = p->inner;

	if (p->ip4) {
		struct iphdr ip;

		if (bpf_skb_load_bytes(skb, at, &ip, sizeof(ip)) || ip.version != 4 || ip.ihl < 5)
			return HW_DROP_MALFORMED;
		if (ip.frag_off & bpf_htons(0x1fff))
			return HW_DROP_ICMP_UNRELATED;
		map_ip4(&p->t.src, ip.saddr);
		map_ip4(&p->t.dst, ip.daddr);
		protocol = ip.protocol;
		at += ip.ihl * 4;
	} else {
		struct ipv6hdr ip;
		__u16 fragment = 0;
		__u32 id = 0;

		if (bpf_skb_load_bytes(skb, at, &ip, sizeof(ip)) || ip.version != 6)
			return HW_DROP_MALFORMED;
		__builtin_memcpy(&p->t.src, &ip.saddr, 16);
		__builtin_memcpy(&p->t.dst, &ip.daddr, 16);
		if (is_mapped(&p->t.src) || is_mapped(&p->t.dst))
			return HW_DROP_MAPPED;
		protocol = ip.nexthdr;
		at = skip_extensions(skb, at + sizeof(ip), &protocol, &fragment, &id);
		if (!at)
			return HW_DROP_MALFORMED;
		if (fragment & 0xfff8)
			return HW_DROP_ICMP_UNRELATED;
	}
	p->t.protocol = protocol;
	p->inner_l4 = at;
	/* Eight bytes are promised (RFC 792); without them nobody's flow can be named. */
	if (bpf_skb_load_bytes(skb, at, ports, 8))
		return HW_DROP_ICMP_UNRELATED;
	if (has_ports(protocol)) {
		p->t.sport = ports[0];
		p->t.dport = ports[1];
	} else if (protocol == (p->ip4 ? IPPROTO_ICMP : IPPROTO_ICMPV6)) {
		struct icmp_head *icmp = (void *)ports;

		echo_ports(p->ip4, icmp->type, icmp->id, &p->t);
	}
	return 0;
}

/* IPv4's datagrams are told apart by their protocol too, IPv6's are not (RFC 8200 4.5): behind the fragment header of a later
 * fragment stands whatever followed in the first, which may be another extension. */
static __always_inline __u32 fragment_protocol(const struct packet *p)
{
	return p->ip4 ? p->t.protocol : 0;
}

/* Protocol and ports of a later fragment are those of its first. */
static __always_inline int follow_fragment(struct packet *p)
{
	struct hw_fragment_key key = {
		.src = p->t.src, .dst = p->t.dst, .id = p->id, .protocol = fragment_protocol(p) };
	struct hw_fragment *first = bpf_map_lookup_elem(&fragments, &key);

	if (!first || first->until < p->now)
		return HW_DROP_FRAGMENT;
	p->t.protocol = first->protocol;
	p->t.sport = first->sport;
	p->t.dport = first->dport;
	return 0;
}

/* A receiver waits 30 s (Linux) to 60 s (RFC 8200) for the rest. */
#define HW_FRAGMENT_NS (60 * 1000000000ull)

/* Called when the source is known to be no other's, and before translation. */
static __always_inline void note_fragment(struct packet *p)
{
	struct hw_fragment_key key = {
		.src = p->t.src, .dst = p->t.dst, .id = p->id, .protocol = fragment_protocol(p) };
	struct hw_fragment first = {
		.sport = p->t.sport, .dport = p->t.dport, .protocol = p->t.protocol, .until = p->now + HW_FRAGMENT_NS };

	if (p->kind != HW_FIRST_FRAGMENT)
		return;
	bpf_map_update_elem(&fragments, &key, &first, BPF_ANY);
}

static __always_inline int read_l4(struct __sk_buff *skb, struct packet *p)
{
	__u8 protocol = p->t.protocol;

	if (protocol == IPPROTO_TCP) {
		__u8 tcp[14];

		if (bpf_skb_load_bytes(skb, p->l4, tcp, sizeof(tcp)))
			return HW_DROP_MALFORMED;
		p->t.sport = *(__be16 *)tcp;
		p->t.dport = *(__be16 *)(tcp + 2);
		p->tcp_flags = tcp[13];
	} else if (has_ports(protocol)) {
		__be16 ports[2];

		if (bpf_skb_load_bytes(skb, p->l4, ports, sizeof(ports)))
			return HW_DROP_MALFORMED;
		p->t.sport = ports[0];
		p->t.dport = ports[1];
	} else if (protocol == (p->ip4 ? IPPROTO_ICMP : IPPROTO_ICMPV6)) {
		struct icmp_head icmp;

		if (bpf_skb_load_bytes(skb, p->l4, &icmp, sizeof(icmp)))
			return HW_DROP_MALFORMED;
		p->icmp_type = icmp.type;
		if (!p->ip4 && is_discovery(icmp.type)) {
			p->kind = HW_ND;
		} else if (is_error(p->ip4, icmp.type)) {
			p->kind = HW_ICMP_ERROR;
			p->inner = p->l4 + 8;
			return read_inner(skb, p);
		} else {
			echo_ports(p->ip4, icmp.type, icmp.id, &p->t);
		}
	}
	return 0;
}

/* Reads the packet whose IP header is at p->l3. Returns a reason to drop it, or 0. */
static __noinline int read_packet(struct __sk_buff *skb, struct packet *p)
{
	__u16 fragment = 0;
	int bad;

	if (p->ip4) {
		struct iphdr ip;

		if (bpf_skb_load_bytes(skb, p->l3, &ip, sizeof(ip)) || ip.version != 4 || ip.ihl < 5)
			return HW_DROP_MALFORMED;
		map_ip4(&p->t.src, ip.saddr);
		map_ip4(&p->t.dst, ip.daddr);
		p->t.protocol = ip.protocol;
		p->l4 = p->l3 + ip.ihl * 4;
		p->id = ip.id;
		/* 13 bits of offset in units of 8 bytes, and 0x2000: more follow. As IPv6 has it: offset << 3 | more. */
		fragment = bpf_ntohs(ip.frag_off);
		fragment = (fragment & 0x3fff) ? (__u16)(fragment << 3) | (fragment & 0x2000 ? 1 : 0) | 0x4 : 0;
	} else {
		struct ipv6hdr ip;
		__u8 next;

		if (bpf_skb_load_bytes(skb, p->l3, &ip, sizeof(ip)) || ip.version != 6)
			return HW_DROP_MALFORMED;
		__builtin_memcpy(&p->t.src, &ip.saddr, 16);
		__builtin_memcpy(&p->t.dst, &ip.daddr, 16);
		if (is_mapped(&p->t.src) || is_mapped(&p->t.dst))
			return HW_DROP_MAPPED;
		next = ip.nexthdr;
		p->l4 = skip_extensions(skb, p->l3 + sizeof(ip), &next, &fragment, &p->id);
		if (!p->l4)
			return HW_DROP_MALFORMED;
		p->t.protocol = next;
		p->piece = !!fragment;
	}
	p->from = p->t.src;
	p->to = p->t.dst;
	p->now = bpf_ktime_get_coarse_ns();
	if (fragment & 0xfff8) {
		p->kind = HW_LATER_FRAGMENT;
		return follow_fragment(p);
	}
	bad = read_l4(skb, p);
	if (bad)
		return bad;
	/* One that says it is a fragment and is whole (offset 0, no more) is whole (RFC 6946). */
	if (!(fragment & 1))
		return 0;
	/* Errors are short (RFC 1812 4.3.2.3, RFC 4443 2.4), discovery is never in pieces (RFC 6980). What an error quotes is
	 * not to be taken for the packet itself. */
	if (p->kind != HW_WHOLE)
		return HW_DROP_MALFORMED;
	p->kind = HW_FIRST_FRAGMENT;
	return 0;
}

#endif
