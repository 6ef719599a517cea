/*
 * The Ethernet header that the kernel last put on a packet to an outer destination: what bpf_redirect_neigh finds by a route and a neighbour, anew for each packet.
 *
 *                       a packet to send
 *   (empty) ─────────────────────────────▶ ASKED ──── an own outer packet to there passes the uplink's egress ───▶ KNOWN
 *      by bpf_redirect_neigh, and so do      ▲        (the one that was sent, or one of the stack's): its header       │ packets take that header
 *      all others until it is known          └──────────────── HOP_TICKS after it was asked for ───────────────────────┘
 *
 * So the kernel's tables are asked again and again by real packets: a neighbour stays confirmed or fails as under any other traffic, a route that changes counts at most
 * HOP_TICKS later, and nothing in user space needs to run. A slot belongs to one processor; between a packet's choice of a known header and its passing of the egress hook
 * nothing else runs there, so that what is learned is never what was learned before.
 */
#ifndef CAREOF_NEXT_HOP_H
#define CAREOF_NEXT_HOP_H

#include "packet.h"
#include "state.h"

#define HOPS 256
/* Jiffies: 8 ms where the kernel ticks a thousand times a second, 32 and 80 ms with 250 and 100. */
#define HOP_TICKS 8
#define DSCP 0xfc

struct hop {
	__be32 to;
	__u8 dscp; /* a route may depend on it */
	__u8 known;
	__u8 frame[ETH];
	__u32 uplink; /* ifindex: another one's header is not this one's, even if all else is the same */
	__u64 asked; /* jiffies */
};

/* By outer destination, DSCP and uplink; those that share a slot ask more often. */
struct map_definition hops TABLE = {BPF_MAP_TYPE_PERCPU_ARRAY, sizeof(__u32), sizeof(struct hop), HOPS, 0};

static __always_inline struct hop *hop_to(__be32 to, __u8 tos)
{
	__u32 slot = (to ^ (tos & DSCP) * 0x01000193u) * 0x9e3779b1u >> 24;

	return bpf_map_lookup_elem(&hops, &slot);
}

/* Where the program is. */
enum hook {
	AT_INGRESS,
	AT_EGRESS, /* of the uplink: the packet is on its way */
};

/* There is room for the outer header; `changed` bytes of the IP headers are to be written. Drops are counted for `home`. */
static __always_inline int send_outer(struct __sk_buff *skb, const struct config *me, const struct address *home, struct headers *h, __u32 changed, enum hook hook)
{
	struct hop *hop = hop_to(h->outer.destination, h->outer.tos);
	__u64 now = bpf_jiffies64();

	if (hop) {
		if (hop->to != h->outer.destination || hop->dscp != (h->outer.tos & DSCP) || hop->uplink != me->uplink || now - hop->asked >= HOP_TICKS) {
			hop->to = h->outer.destination;
			hop->dscp = h->outer.tos & DSCP;
			hop->uplink = me->uplink;
			hop->known = 0;
			hop->asked = now;
		} else if (hop->known) {
			__builtin_memcpy(h->frame, hop->frame, ETH);
			if (bpf_skb_store_bytes(skb, 0, h->frame, ETH + changed, 0))
				return drop(home, REFUSED);
			return hook == AT_EGRESS && skb->ifindex == me->uplink ? PASS : bpf_redirect(me->uplink, 0);
		}
	}
	if (bpf_skb_store_bytes(skb, ETH, &h->outer, changed, 0))
		return drop(home, REFUSED);
	return bpf_redirect_neigh(me->uplink, 0, 0, 0);
}

/* An own tunnel packet on its way out? It comes from the kernel's neighbour code, or by a header that is known. */
static __always_inline int is_own_outer(struct __sk_buff *skb, const struct config *me, const struct ip4 *ip)
{
	struct hop *hop;

	if (ip->protocol != PROTO_IPIP || ip->source != me->self.word[3])
		return 0;
	if (skb->ifindex != me->uplink) /* a device that was the uplink, or the ipip driver's */
		return 1;
	hop = hop_to(ip->destination, ip->tos);
	if (hop && !hop->known && hop->to == ip->destination && hop->dscp == (ip->tos & DSCP) && hop->uplink == me->uplink && !bpf_skb_load_bytes(skb, 0, hop->frame, ETH))
		hop->known = 1;
	return 1;
}

#endif
