/* The maps that both ends have, and the bookkeeping on them. */
#ifndef CAREOF_STATE_H
#define CAREOF_STATE_H

#include "layout.h"
#include "packet.h"

#define TABLE __attribute__((section("maps"), used))

struct map_definition config TABLE = {BPF_MAP_TYPE_ARRAY, sizeof(__u32), sizeof(struct config), 1, 0};
/* One value per possible CPU: too much to reserve for every address that may ever be. */
struct map_definition counters TABLE = {BPF_MAP_TYPE_PERCPU_HASH, sizeof(struct address), sizeof(struct counters), 0, BPF_F_NO_PREALLOC};
struct map_definition stamps TABLE = {BPF_MAP_TYPE_HASH, sizeof(struct address), sizeof(struct stamps), 0, 0};

static __always_inline const struct config *instance(void)
{
	__u32 zero = 0;
	return bpf_map_lookup_elem(&config, &zero);
}

/*
 * More than an outer header can say? Not what is to be cut into segments, which the kernel joins to up to 65,535 bytes: each segment gets a length of its own, and nobody reads the one before. For such a packet is
 * longer than any interface takes uncut (gso_max_size, 65,536 with the Ethernet header), so it is cut before it leaves this machine, where the kernel looks at that (cuts-long.ts).
 */
static __always_inline int too_big(struct __sk_buff *skb, const struct ip4 *ip)
{
	const struct config *me;

	if (bpf_ntohs(ip->length) <= 65535 - IP)
		return 0;
	me = instance();
	return !skb->gso_size || !me || !me->cuts_long;
}

/* Of an address that has an entry: made by the first packet that is counted. 0 when the kernel has no memory at hand. */
static __always_inline struct counters *counters_of(const struct address *home)
{
	struct counters *c = bpf_map_lookup_elem(&counters, home);

	if (!c) { /* a scope of its own: else every packet would pay for the zeros */
		struct counters zero = {};

		bpf_map_update_elem(&counters, home, &zero, BPF_NOEXIST);
		c = bpf_map_lookup_elem(&counters, home);
	}
	return c;
}

/* Drops; counted for the address, which has an entry. */
static __always_inline int drop(const struct address *home, enum reason why)
{
	struct counters *c = counters_of(home);

	if (c)
		c->dropped[why]++;
	return TC_ACT_SHOT;
}

static __always_inline int drop_unowned(enum reason why)
{
	struct address none = {};
	return drop(&none, why);
}

static __always_inline void count_down(struct __sk_buff *skb, const struct address *home, const struct ip4 *ip)
{
	struct counters *c = counters_of(home);

	if (!c)
		return;
	c->down_packets += segments(skb, ip);
	c->down_bytes += bpf_ntohs(ip->length);
}

static __always_inline void count_up(struct __sk_buff *skb, const struct address *home, const struct ip4 *ip)
{
	struct counters *c = counters_of(home);

	if (!c)
		return;
	c->up_packets += segments(skb, ip);
	c->up_bytes += bpf_ntohs(ip->length);
}

static __always_inline void stamp_packet(const struct address *home)
{
	struct stamps *s = bpf_map_lookup_elem(&stamps, home);
	__u64 now;

	if (!s || (s->first && (!s->marker_at || s->behind_marker))) /* nearly always: the clock is not for nothing */
		return;
	now = bpf_ktime_get_ns();
	if (!s->first)
		s->first = now;
	if (s->marker_at && !s->behind_marker)
		s->behind_marker = now;
}

static __always_inline void stamp_marker(const struct address *home, __u32 token)
{
	struct stamps *s = bpf_map_lookup_elem(&stamps, home);

	if (!s || s->token == token) /* markers are repeated: the first one counts */
		return;
	s->marker_at = bpf_ktime_get_ns();
	s->token = token;
}

/*
 * A marker at a host. One from a home agent is stamped, and goes on as the VM's packets do where these go on, to the next host or into the hold: it stays behind those
 * that were sent before it. One that another host has passed on ends here, in any case: no loops. 1: it ends here. From anybody else it is a packet to be dropped.
 */
static __always_inline int marker_ends(const struct address *home, const struct host_entry *entry, const struct address *from, int from_home_agent, __u32 token)
{
	struct stamps *s;

	if (from_home_agent) {
		stamp_marker(home, token);
		return entry->role == ROLE_DELIVER && !(entry->held & HOLD_DIRECT);
	}
	if (!listed(entry->stragglers, entry->straggler_count, from))
		return 0;
	s = bpf_map_lookup_elem(&stamps, home);
	if (s)
		s->passed = token;
	return 1;
}

static __always_inline void stamp_forwarded(struct __sk_buff *skb, const struct address *home, const struct ip4 *ip)
{
	struct stamps *s = bpf_map_lookup_elem(&stamps, home);
	struct counters *c = counters_of(home);

	if (s && !s->first_forwarded)
		s->first_forwarded = bpf_ktime_get_ns();
	if (c)
		c->forwarded += segments(skb, ip);
}

/* A frame to the next hop that does not exist is one that the stack meant for the tunnel. */
static __always_inline int meant_for_tunnel(struct __sk_buff *skb, const struct config *me)
{
	__u8 mac[6];

	if (bpf_skb_load_bytes(skb, 0, mac, 6))
		return 0;
	return mac[0] == me->hop_mac[0] && mac[1] == me->hop_mac[1] && mac[2] == me->hop_mac[2] && mac[3] == me->hop_mac[3] &&
	       mac[4] == me->hop_mac[4] && mac[5] == me->hop_mac[5];
}

/* A tunnel packet for this end? 1 with both headers read; 0 not ours; -1 ours, and broken: why says how. */
static __always_inline int read_tunnelled(struct __sk_buff *skb, const struct config *me, struct ip4 *outer, struct ip4 *inner, enum reason *why)
{
	if (skb->protocol != bpf_htons(ETH_P_IP) || skb->pkt_type != HERE || skb->vlan_present)
		return 0;
	if (read_header(skb, ETH, outer))
		return 0;
	if (outer->protocol != PROTO_IPIP || outer->destination != me->self.word[3])
		return 0;
	*why = FRAGMENT;
	if (outer->fragment & FRAGMENTED)
		return -1;
	*why = MALFORMED;
	if (outer->version_ihl != 0x45 || read_ip(skb, ETH + IP, inner) || bpf_ntohs(outer->length) < bpf_ntohs(inner->length) + IP)
		return -1;
	return 1;
}

#endif
