/*
 * What the maps hold. records.ts writes and reads the same bytes: change both, and the size check of the loader tells
 * a running instance that its pinned maps are of another layout.
 *
 * Addresses are 16 bytes, IPv4 as ::ffff:a.b.c.d (RFC 4291 2.5.5.2). Multi-byte numbers are in host order, except
 * where a field says "network order".
 */
#ifndef CAREOF_LAYOUT_H
#define CAREOF_LAYOUT_H

#include <linux/bpf.h>
#include <linux/types.h>

#define MAX_ACCEPT 8
#define MAX_HOME_AGENTS 8
#define MAX_REASONS 16

struct address {
	__u32 word[4];
};

/* One per instance. */
struct config {
	struct address self; /* outer source, and the only outer destination */
	struct address home_agents[MAX_HOME_AGENTS];
	__u32 home_agent_count;
	__u32 uplink;     /* ifindex; the ipip driver's is its device, which finds the way by itself */
	__u32 inner_mtu;  /* largest inner packet towards the home agent */
	__u32 gateway;    /* network order; what guests know as theirs */
	__u64 decap_flags;
	__u8 hop_mac[6];  /* of the next hop that does not exist; a frame to it must not leave unencapsulated */
	__u8 cuts_long; /* the kernel cuts what is longer than gso_max_size, whatever its segments are */
	__u8 pad;
};

/* Home agent, by home address. */
struct home_entry {
	struct address active; /* all zero: drop */
	struct address accept[MAX_ACCEPT];
	__u32 accept_count;
	__u32 mtu;
};

#define ROLE_DELIVER 1
#define ROLE_FORWARD 2

/*
 * What of a VM's packets waits: host_entry.held, and the last byte of a held frame's source. The three bytes before that one are the frame's number among those of its kind (struct waiting).
 */
#define HOLD_DIRECT 1
#define HOLD_STRAGGLERS 2
#define HOLD_REFUSED 4 /* what the port does not take: its device is gone or down, or nobody is at the other end */
#define HOLD_DOUBTFUL 8 /* in a frame alone: what the port may have taken */
#define OPENING 4 /* HOLD_DIRECT and HOLD_STRAGGLERS shifted by so much: only as long as an earlier one still waits */
#define NUMBER_MASK 0xffffff

/* Host, by home address. */
struct host_entry {
	__u32 role;
	__u32 port; /* ifindex */
	__u8 mac[6];
	__u8 port_mac[6];
	struct address to; /* of a forward entry; its port is 0 unless the guest may still send from there */
	struct address stragglers[MAX_ACCEPT];
	__u32 straggler_count;
	__u32 hold; /* ifindex of the device where they wait */
	__u32 held;
	__u32 sent_directly; /* while opening: number of the last one that has been sent on from there, cut to three bytes */
	__u32 sent_stragglers;
};

/* Host, by home address: how many have gone into the hold, which is the number of the last one. */
struct waiting {
	__u64 directly;
	__u64 stragglers;
	__u32 hold; /* user space's: the ifindex of that one */
	__u32 pad;
};

/* The order is the one of DROP_REASONS in records.ts. */
enum reason {
	NOT_LISTED,
	SPOOFED,
	NO_BINDING,
	TOO_BIG,
	LOOP,
	MALFORMED,
	FRAGMENT,
	NOT_IPV4,
	MULTICAST,
	REFUSED,
};

/* Per home address and CPU; the all-zero address counts what belongs to none. */
struct counters {
	__u64 down_packets;
	__u64 down_bytes;
	__u64 up_packets;
	__u64 up_bytes;
	__u64 forwarded;
	__u64 dropped[MAX_REASONS];
};

/* Per home address, CLOCK_MONOTONIC nanoseconds, 0 is "not yet". */
struct stamps {
	__u64 marker_at;
	__u64 first;
	__u64 behind_marker;
	__u64 first_forwarded;
	__u32 token;
	__u32 passed; /* token of the newest marker that came by another host */
};

/* Legacy map definition: needs no BTF, so the object is built without -g and is the same wherever it is built. */
struct map_definition {
	__u32 type;
	__u32 key_size;
	__u32 value_size;
	__u32 max_entries; /* 0: the loader fills in the instance's limit */
	__u32 flags;
};

#endif
