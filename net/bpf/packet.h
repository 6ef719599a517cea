/* Headers: reading and checking them, and the arithmetic of RFC 2003 tunnels. */
#ifndef CAREOF_PACKET_H
#define CAREOF_PACKET_H

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/pkt_cls.h>
#include <linux/types.h>
#include <stddef.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "layout.h"

#define ETH 14
#define IP 20
#define PROTO_IPIP 4
#define PROTO_TCP 6
#define PROTO_UDP 17
#define PROTO_MARKER 253 /* RFC 3692: for experiments */
#define DF bpf_htons(0x4000)
#define FRAGMENTED bpf_htons(0x3fff)
#define OUTER_TTL 64
#define HERE 0 /* PACKET_HOST */
#define NET_XMIT_CN 2 /* what bpf_clone_redirect hands on from dev_queue_xmit; 1 is a drop, an error is negative */
/* Not ours, or the stack's from here on: other filters on the hook have their say. */
#define PASS TC_ACT_UNSPEC

struct ip4 {
	__u8 version_ihl;
	__u8 tos;
	__be16 length;
	__be16 id;
	__be16 fragment;
	__u8 ttl;
	__u8 protocol;
	__u16 check;
	__be32 source;
	__be32 destination;
};

/* What is in front of a tunnelled packet's payload, so that all that changes of it is written at once: each call of a helper costs as much as a hundred instructions. */
struct headers {
	__u8 pad[2];
	__u8 frame[ETH];
	struct ip4 outer;
	struct ip4 inner;
};

/* How many bytes of the IP headers have changed. */
#define OUTER_ONLY IP
#define OUTER_AND_TTL (IP + offsetof(struct ip4, source))

/* net/marker.ts has the layout. */
struct marker {
	__u8 magic[8];
	__be32 token;
};

static __always_inline struct address mapped(__be32 v4)
{
	struct address a = {{0, 0, bpf_htonl(0xffff), v4}};
	return a;
}

static __always_inline int same(const struct address *a, const struct address *b)
{
	return a->word[3] == b->word[3] && a->word[2] == b->word[2] && a->word[1] == b->word[1] && a->word[0] == b->word[0];
}

static __always_inline int is_zero(const struct address *a)
{
	return (a->word[0] | a->word[1] | a->word[2] | a->word[3]) == 0;
}

static __always_inline int listed(const struct address *list, __u32 count, const struct address *wanted)
{
#pragma unroll
	for (__u32 i = 0; i < MAX_ACCEPT; i++)
		if (i < count && same(&list[i], wanted))
			return 1;
	return 0;
}

static __always_inline __u32 header_length(const struct ip4 *ip)
{
	return (ip->version_ihl & 15) * 4;
}

/*
 * Where the header lies in one piece, as it nearly always does, without a helper: five loads. Behind an Ethernet header it is where the kernel wants it (NET_IP_ALIGN), so
 * that the verifier of no machine minds. Copied as bytes it would be twenty loads, and as many shifts.
 */
static __always_inline int read_header(struct __sk_buff *skb, __u32 offset, struct ip4 *ip)
{
	const void *from = (const void *)(long)skb->data + offset;

	if (offset % 4 != ETH % 4 || from + sizeof(*ip) > (const void *)(long)skb->data_end)
		return bpf_skb_load_bytes(skb, offset, ip, sizeof(*ip));
	*ip = *(const struct ip4 *)from;
	return 0;
}

/* 0 when a whole and consistent IPv4 packet starts at offset. */
static __always_inline int read_ip(struct __sk_buff *skb, __u32 offset, struct ip4 *ip)
{
	__u32 length;

	if (read_header(skb, offset, ip))
		return -1;
	length = bpf_ntohs(ip->length);
	if (ip->version_ihl >> 4 != 4 || header_length(ip) < IP || length < header_length(ip) || offset + length > skb->len)
		return -1;
	return 0;
}

static __always_inline __u16 fold(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	return (sum & 0xffff) + (sum >> 16);
}

/* Of a header without options; ip->check is taken as zero. */
static __always_inline __u16 checksum(const struct ip4 *ip)
{
	const __u16 *word = (const __u16 *)ip;
	__u32 sum = 0;

#pragma unroll
	for (int i = 0; i < 10; i++)
		if (i != 5)
			sum += word[i];
	return ~fold(sum);
}

/* A router's step: TTL - 1, with the checksum (RFC 1624). Not yet in the packet. */
static __always_inline void step_ttl(struct ip4 *ip)
{
	__u32 sum = ip->check + bpf_htons(0x0100);

	ip->check = (__u16)(sum + (sum >= 0xffff));
	ip->ttl--;
}

static __always_inline int decrement_ttl(struct __sk_buff *skb, __u32 offset, struct ip4 *ip)
{
	step_ttl(ip);
	return bpf_skb_store_bytes(skb, offset + 8, &ip->ttl, 4, 0);
}

/* Does the packet, or each segment that will be cut from it, have at most limit bytes? */
static __always_inline int fits(struct __sk_buff *skb, __u32 offset, const struct ip4 *ip, __u32 limit)
{
	__u32 header = header_length(ip);
	__u8 words = 0;

	if (!skb->gso_size)
		return bpf_ntohs(ip->length) <= limit;
	if (ip->protocol == PROTO_TCP) {
		if (bpf_skb_load_bytes(skb, offset + header + 12, &words, 1))
			return 0;
		header += (words >> 4) * 4;
	} else {
		header += 8;
	}
	return header + skb->gso_size <= limit;
}

/* Packets on the wire that this buffer stands for. */
static __always_inline __u64 segments(struct __sk_buff *skb, const struct ip4 *ip)
{
	if (!skb->gso_size)
		return 1;
	if (skb->gso_segs)
		return skb->gso_segs;
	return (bpf_ntohs(ip->length) + skb->gso_size - 1) / skb->gso_size;
}

/* A marker's token, 0 when the packet at offset is none. */
static __always_inline __u32 marker_token(struct __sk_buff *skb, __u32 offset, const struct ip4 *ip)
{
	struct marker m;

	if (ip->protocol != PROTO_MARKER || ip->version_ihl != 0x45)
		return 0;
	if (bpf_skb_load_bytes(skb, offset + IP, &m, sizeof(m)))
		return 0;
	if (m.magic[0] != 'c' || m.magic[1] != 'a' || m.magic[2] != 'r' || m.magic[3] != 'e' ||
	    m.magic[4] != 'o' || m.magic[5] != 'f' || m.magic[6] != 'm' || m.magic[7] != '1')
		return 0;
	return bpf_ntohl(m.token);
}

/*
 * RFC 2003 3.1: room in front of the packet, whose own header is h->inner, and what belongs there: send_outer writes it. DF always: the ends of this driver put no outer fragments together, so a router is to say what it
 * cannot carry (net/path-mtu.ts) and the stack to cut the inner packet, where that may be cut. What is never cut needs no identification (RFC 6864).
 */
static __always_inline int push_outer(struct __sk_buff *skb, struct headers *h, __be32 source, __be32 destination)
{
	h->outer = (struct ip4){
		.version_ihl = 0x45,
		.tos = h->inner.tos, /* RFC 6040 normal mode: DSCP and ECN are copied */
		.length = bpf_ntohs(h->inner.length) > 65535 - IP ? 0 : bpf_htons(bpf_ntohs(h->inner.length) + IP), /* 0: "see the buffer", as the kernel writes it too (since 6.3) */
		.fragment = DF,
		.ttl = OUTER_TTL,
		.protocol = PROTO_IPIP,
		.source = source,
		.destination = destination,
	};
	h->outer.check = checksum(&h->outer);
	return bpf_skb_adjust_room(skb, IP, BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_ENCAP_L3_IPV4);
}

/* New addresses and TTL for the outer header that is already there: send_outer writes it. */
static __always_inline void rewrite_outer(struct ip4 *outer, __be32 source, __be32 destination, __u8 ttl)
{
	outer->source = source;
	outer->destination = destination;
	outer->ttl = ttl;
	outer->check = checksum(outer);
}

/* RFC 6040 4.2: what the inner ECN field becomes; -1 where congestion was met by a packet that cannot say so. */
static __always_inline int combined_ecn(__u8 outer, __u8 inner)
{
	if (outer == 3)
		return inner ? 3 : -1;
	return outer == 1 && inner == 2 ? 1 : inner;
}

/* Takes the outer header off. */
static __always_inline int pop_outer(struct __sk_buff *skb, const struct ip4 *outer, struct ip4 *inner, __u64 flags)
{
	int ecn = combined_ecn(outer->tos & 3, inner->tos & 3);

	if (ecn < 0)
		return -1;
	if (ecn != (inner->tos & 3)) { /* RFC 1624 eqn. 3 on the first word */
		__u16 before = *(__u16 *)inner;

		inner->tos = (inner->tos & ~3) | ecn;
		inner->check = ~fold((__u32)(__u16)~inner->check + (__u16)~before + *(__u16 *)inner);
		if (bpf_skb_store_bytes(skb, ETH + IP, inner, 12, 0))
			return -1;
	}
	return bpf_skb_adjust_room(skb, -IP, BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO | flags);
}

#endif
