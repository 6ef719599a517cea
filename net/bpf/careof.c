/*
 * The two ends of the tunnels as tc programs (clsact, direct action). Plain protocol 4 on the wire (RFC 2003). Those of the bpf driver are here, those of the ipip
 * driver, where the kernel's device does the header's work, in ipip-programs.h.
 *
 *   home agent                                      host
 *   uplink egress   home_egress   encapsulate       uplink ingress  host_ingress  check, deliver or pass on
 *   uplink ingress  home_ingress  check, decapsulate port ingress   port_ingress  check, local, encapsulate
 *                                                   uplink egress   host_egress   what the stack's slow path let out
 *
 * An encapsulated packet that leaves by a redirect passes the uplink's egress hook (again): it is known there by its outer source and protocol. One that is encapsulated on
 * the uplink's egress, and whose next hop is known (next-hop.h), just goes on.
 */
#include "ipip.h"
#include "next-hop.h"
#include "state.h"

/* Reserved as a whole: a re-point must not fail for want of memory. */
struct map_definition homes TABLE = {BPF_MAP_TYPE_HASH, sizeof(struct address), sizeof(struct home_entry), 0, 0};
struct map_definition guests TABLE = {BPF_MAP_TYPE_HASH, sizeof(struct address), sizeof(struct host_entry), 0, 0};
/* ifindex of a VM's port -> one home address of that VM, so that what it may not send is counted for it */
struct map_definition ports TABLE = {BPF_MAP_TYPE_HASH, sizeof(__u32), sizeof(struct address), 0, 0};
/* few VMs ever have a hold */
struct map_definition waiting TABLE = {BPF_MAP_TYPE_HASH, sizeof(struct address), sizeof(struct waiting), 0, BPF_F_NO_PREALLOC};

SEC("tc")
int home_egress(struct __sk_buff *skb)
{
	const struct config *me = instance();
	const struct home_entry *entry;
	struct address home;
	struct headers h;
	__be32 to;

	if (!me || skb->protocol != bpf_htons(ETH_P_IP) || skb->vlan_present || read_ip(skb, ETH, &h.inner) || is_own_outer(skb, me, &h.inner))
		return PASS;
	home = mapped(h.inner.destination);
	entry = bpf_map_lookup_elem(&homes, &home);
	if (!entry)
		return meant_for_tunnel(skb, me) ? drop_unowned(NO_BINDING) : PASS;
	if (is_zero(&entry->active))
		return drop(&home, NO_BINDING);
	if (too_big(skb, &h.inner))
		return drop(&home, TOO_BIG);
	if (marker_token(skb, ETH, &h.inner)) /* nobody but sendMarker makes them, and those come encapsulated */
		return drop(&home, SPOOFED);
	count_down(skb, &home, &h.inner);
	to = *(volatile const __be32 *)&entry->active.word[3]; /* once: a re-point may come at any time */
	if (push_outer(skb, &h, me->self.word[3], to))
		return drop(&home, REFUSED);
	return send_outer(skb, me, &home, &h, OUTER_ONLY, AT_EGRESS);
}

/* From one VM to another: straight from tunnel to tunnel, unless the stack has something to say about it. */
static __always_inline int hairpin(struct __sk_buff *skb, const struct config *me, struct headers *h, int *verdict)
{
	struct address home = mapped(h->inner.destination);
	const struct home_entry *entry = bpf_map_lookup_elem(&homes, &home);

	if (!entry || h->inner.ttl <= 1 || !fits(skb, ETH + IP, &h->inner, entry->mtu))
		return 0;
	if (is_zero(&entry->active)) {
		*verdict = drop(&home, NO_BINDING);
		return 1;
	}
	count_down(skb, &home, &h->inner);
	step_ttl(&h->inner);
	rewrite_outer(&h->outer, me->self.word[3], entry->active.word[3], OUTER_TTL);
	*verdict = send_outer(skb, me, &home, h, OUTER_AND_TTL, AT_INGRESS);
	return 1;
}

SEC("tc")
int home_ingress(struct __sk_buff *skb)
{
	const struct config *me = instance();
	const struct home_entry *entry;
	struct address home, from;
	struct headers h;
	enum reason why;
	__u32 token;
	int verdict;

	if (!me)
		return PASS;
	verdict = read_tunnelled(skb, me, &h.outer, &h.inner, &why);
	if (!verdict)
		return PASS;
	if (verdict < 0)
		return drop_unowned(why);
	home = mapped(h.inner.source);
	entry = bpf_map_lookup_elem(&homes, &home);
	if (!entry)
		return drop_unowned(NO_BINDING);
	from = mapped(h.outer.source);
	if (!listed(entry->accept, entry->accept_count, &from))
		return drop(&home, NOT_LISTED);
	token = marker_token(skb, ETH + IP, &h.inner);
	if (token) {
		stamp_marker(&home, token);
		return TC_ACT_STOLEN;
	}
	stamp_packet(&home);
	count_up(skb, &home, &h.inner);
	if (hairpin(skb, me, &h, &verdict))
		return verdict;
	if (pop_outer(skb, &h.outer, &h.inner, me->decap_flags))
		return drop(&home, REFUSED);
	return PASS;
}

/* Is there no other way than into the hold? While it opens, that is so until user space has sent on all that went there before: what comes behind must not overtake it. */
static __always_inline int waits(const struct address *home, const struct host_entry *entry, __u32 which)
{
	const struct waiting *last;

	if (entry->held & which)
		return 1;
	if (!(entry->held & (which << OPENING)))
		return 0;
	last = bpf_map_lookup_elem(&waiting, home);
	if (!last)
		return 0;
	return which == HOLD_DIRECT ? (last->directly & NUMBER_MASK) != entry->sent_directly : (last->stragglers & NUMBER_MASK) != entry->sent_stragglers;
}

/*
 * Two processors may give the same one at once (an addition that returns its sum needs Linux 5.12), or put what they have numbered there the other way round: those packets have no order among them. But the one that
 * is not there yet then counts as sent on with the other, and the next one of its processor may overtake it.
 */
static __always_inline __u32 next_number(const struct address *home, __u32 which)
{
	struct waiting *last = bpf_map_lookup_elem(&waiting, home);

	if (!last)
		return 0;
	if (which == HOLD_DIRECT) {
		__sync_fetch_and_add(&last->directly, 1);
		return last->directly;
	}
	if (which == HOLD_STRAGGLERS) {
		__sync_fetch_and_add(&last->stragglers, 1);
		return last->stragglers;
	}
	return 0;
}

/* The VM is not there (any more), or older packets are: user space reads it from there, and knows by the source which it is (net/hold.ts). */
static __always_inline int to_hold(struct __sk_buff *skb, const struct address *home, const struct host_entry *entry, __u32 which)
{
	__u32 number = next_number(home, which);
	struct {
		__u8 destination[6];
		__u8 source[6];
		__be16 type;
	} frame = {.source = {0x02, 0xca, number >> 16, number >> 8, number, which}, .type = bpf_htons(ETH_P_IP)};

	__builtin_memcpy(frame.destination, entry->mac, 6);
	if (bpf_skb_store_bytes(skb, 0, &frame, ETH, 0))
		return drop(home, REFUSED);
	return bpf_redirect(entry->hold, 0);
}

/*
 * Out of the VM's port, towards the guest. A redirect tells nobody what became of the packet, a clone does: where that is asked for, the packet is still at hand when the port refuses it. It costs a
 * copy of the headers. "Congestion" is said by a discipline that has queued the packet and dropped another one, or has chosen to drop this one, and by the queue that the kernel puts in place of those of a port without a carrier,
 * which drops all: user space tells them apart by the carrier.
 */
static __always_inline int to_port(struct __sk_buff *skb, const struct address *home, const struct host_entry *entry)
{
	struct {
		__u8 destination[6];
		__u8 source[6];
		__be16 type;
	} frame;
	long refused;

	__builtin_memcpy(frame.destination, entry->mac, 6);
	__builtin_memcpy(frame.source, entry->port_mac, 6);
	frame.type = bpf_htons(ETH_P_IP);
	if (bpf_skb_store_bytes(skb, 0, &frame, ETH, 0))
		return drop(home, REFUSED);
	if (entry->held & HOLD_REFUSED) {
		refused = bpf_clone_redirect(skb, entry->port, 0);
		if (refused)
			return to_hold(skb, home, entry, refused == NET_XMIT_CN ? HOLD_DOUBTFUL : HOLD_REFUSED);
	}
	stamp_packet(home);
	return entry->held & HOLD_REFUSED ? TC_ACT_STOLEN : bpf_redirect(entry->port, 0);
}

SEC("tc")
int host_ingress(struct __sk_buff *skb)
{
	const struct config *me = instance();
	const struct host_entry *entry;
	struct address home, from;
	struct headers h;
	enum reason why;
	int verdict, from_home_agent;
	__u32 token, which;

	if (!me)
		return PASS;
	verdict = read_tunnelled(skb, me, &h.outer, &h.inner, &why);
	if (!verdict)
		return PASS;
	if (verdict < 0)
		return drop_unowned(why);
	home = mapped(h.inner.destination);
	entry = bpf_map_lookup_elem(&guests, &home);
	if (!entry)
		return drop_unowned(NO_BINDING);
	from = mapped(h.outer.source);
	from_home_agent = listed(me->home_agents, me->home_agent_count, &from);
	token = marker_token(skb, ETH + IP, &h.inner);
	if (token && marker_ends(&home, entry, &from, from_home_agent, token))
		return TC_ACT_STOLEN;
	which = from_home_agent ? HOLD_DIRECT : HOLD_STRAGGLERS;
	if (entry->role == ROLE_FORWARD) {
		if (waits(&home, entry, which) && (from_home_agent || listed(entry->stragglers, entry->straggler_count, &from))) {
			if (pop_outer(skb, &h.outer, &h.inner, me->decap_flags))
				return drop(&home, REFUSED);
			return to_hold(skb, &home, entry, which);
		}
		if (!from_home_agent || h.outer.ttl <= 1)
			return drop(&home, LOOP);
		if (!token)
			stamp_forwarded(skb, &home, &h.inner);
		rewrite_outer(&h.outer, me->self.word[3], entry->to.word[3], h.outer.ttl - 1);
		return send_outer(skb, me, &home, &h, OUTER_ONLY, AT_INGRESS);
	}
	if (!from_home_agent && !listed(entry->stragglers, entry->straggler_count, &from))
		return drop(&home, NOT_LISTED);
	if (!token)
		count_down(skb, &home, &h.inner);
	if (pop_outer(skb, &h.outer, &h.inner, me->decap_flags))
		return drop(&home, REFUSED);
	if (waits(&home, entry, which))
		return to_hold(skb, &home, entry, which);
	return to_port(skb, &home, entry);
}

/* Counted for the VM whose port it is. */
static __always_inline int drop_at_port(struct __sk_buff *skb, enum reason why)
{
	__u32 port = skb->ifindex;
	const struct address *home = bpf_map_lookup_elem(&ports, &port);

	return home ? drop(home, why) : drop_unowned(why);
}

/* Is the guest on this port, with this MAC, who it says it is? */
static __always_inline const struct host_entry *owner(struct __sk_buff *skb, const struct address *home)
{
	const struct host_entry *entry = bpf_map_lookup_elem(&guests, home);
	__u8 mac[6];

	if (!entry || entry->port != skb->ifindex || bpf_skb_load_bytes(skb, 6, mac, 6))
		return 0;
	if (mac[0] != entry->mac[0] || mac[1] != entry->mac[1] || mac[2] != entry->mac[2] || mac[3] != entry->mac[3] ||
	    mac[4] != entry->mac[4] || mac[5] != entry->mac[5])
		return 0;
	return entry;
}

/* Who puts the outer header on. */
enum way {
	BY_PROGRAM,
	BY_DEVICE,
};

/* What of the inner header has changed is in h->inner, and in the packet too where the device puts the outer one on. */
static __always_inline int to_home_agent(struct __sk_buff *skb, const struct config *me, const struct address *home, struct headers *h, enum way way, enum hook hook)
{
	if (way == BY_DEVICE)
		return send_by_device(skb, me, me->home_agents[0].word[3], OUTER_TTL);
	if (push_outer(skb, h, me->self.word[3], me->home_agents[0].word[3]))
		return drop(home, REFUSED);
	return send_outer(skb, me, home, h, hook == AT_INGRESS ? OUTER_AND_TTL : OUTER_ONLY, hook);
}

static __always_inline int from_port(struct __sk_buff *skb, enum way way)
{
	const struct config *me = instance();
	const struct host_entry *peer;
	struct address home, other;
	struct headers h;

	if (!me)
		return TC_ACT_SHOT;
	if (skb->vlan_present)
		return drop_at_port(skb, NOT_IPV4);
	if (skb->protocol == bpf_htons(ETH_P_ARP))
		return PASS;
	if (skb->protocol != bpf_htons(ETH_P_IP))
		return drop_at_port(skb, NOT_IPV4);
	if (read_ip(skb, ETH, &h.inner))
		return drop_at_port(skb, MALFORMED);
	home = mapped(h.inner.source);
	if (!owner(skb, &home) || marker_token(skb, ETH, &h.inner))
		return drop_at_port(skb, SPOOFED);
	if (bpf_ntohl(h.inner.destination) >= 0xe0000000)
		return drop(&home, MULTICAST);
	if (h.inner.destination == me->gateway || h.inner.ttl <= 1)
		return PASS;

	other = mapped(h.inner.destination);
	peer = bpf_map_lookup_elem(&guests, &other);
	if (peer && peer->role == ROLE_DELIVER && !waits(&other, peer, HOLD_DIRECT)) {
		count_up(skb, &home, &h.inner);
		count_down(skb, &other, &h.inner);
		if (decrement_ttl(skb, ETH, &h.inner))
			return drop(&home, REFUSED);
		return to_port(skb, &other, peer);
	}
	if (!fits(skb, ETH, &h.inner, me->inner_mtu))
		return PASS; /* its route has that MTU: it answers "frag needed" or fragments */
	if (too_big(skb, &h.inner))
		return drop(&home, TOO_BIG);
	count_up(skb, &home, &h.inner);
	if (way == BY_PROGRAM)
		step_ttl(&h.inner);
	else if (decrement_ttl(skb, ETH, &h.inner))
		return drop(&home, REFUSED);
	return to_home_agent(skb, me, &home, &h, way, AT_INGRESS);
}

/*
 * What the stack let out of the slow path, and nothing else: it goes to the hop that does not exist, and has come in by the port of the VM whose address it bears, where from_port has looked at it. The host's own
 * processes and containers have neither, whatever source they write. A guest that has left may still send as long as its entry names the port. A fragment can look like a marker that the whole packet was not.
 */
static __always_inline int from_stack(struct __sk_buff *skb, enum way way)
{
	const struct config *me = instance();
	const struct host_entry *entry;
	struct address home;
	struct headers h;

	if (!me || skb->protocol != bpf_htons(ETH_P_IP) || skb->vlan_present || read_ip(skb, ETH, &h.inner) || is_own_outer(skb, me, &h.inner))
		return PASS;
	if (!meant_for_tunnel(skb, me))
		return PASS;
	home = mapped(h.inner.source);
	entry = bpf_map_lookup_elem(&guests, &home);
	if (!entry)
		return drop_unowned(SPOOFED);
	if (!entry->port || entry->port != skb->ingress_ifindex || marker_token(skb, ETH, &h.inner))
		return drop(&home, SPOOFED);
	if (too_big(skb, &h.inner))
		return drop(&home, TOO_BIG);
	count_up(skb, &home, &h.inner);
	return to_home_agent(skb, me, &home, &h, way, AT_EGRESS);
}

SEC("tc")
int port_ingress(struct __sk_buff *skb)
{
	return from_port(skb, BY_PROGRAM);
}

SEC("tc")
int host_egress(struct __sk_buff *skb)
{
	return from_stack(skb, BY_PROGRAM);
}

#include "ipip-programs.h"

/* Run once at start by BPF_PROG_TEST_RUN: does this kernel take the flag that says "IPv4 is what remains"? */
SEC("tc")
int probe_decap(struct __sk_buff *skb)
{
	return bpf_skb_adjust_room(skb, -IP, BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO | (1ULL << 7)) ? 1 : 0;
}
