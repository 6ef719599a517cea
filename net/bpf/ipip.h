/*
 * Where the kernel's own device (ipip external) puts the outer header on and takes it off. A device of that kind accepts protocol 4 from anybody, and says
 * with each packet whom it came from; what it shall send, it is told with each packet, by the route or here.
 */
#ifndef CAREOF_IPIP_H
#define CAREOF_IPIP_H

#include <stddef.h>

#include "packet.h"

#define INHERIT_TOS 1 /* the device copies DSCP and ECN (RFC 6040) */
/* Before Linux 6.0 the helpers know no local address. */
#define OLD_KEY offsetof(struct bpf_tunnel_key, local_ipv4)

/* Which outer header is on or was taken off: network order. */
struct outer {
	__be32 source;
	__be32 destination; /* 0 where the kernel does not say */
	__u8 ttl;
};

static __always_inline int outer_of(struct __sk_buff *skb, struct outer *outer)
{
	struct bpf_tunnel_key key = {};

	if (bpf_skb_get_tunnel_key(skb, &key, sizeof(key), 0) && bpf_skb_get_tunnel_key(skb, &key, OLD_KEY, 0))
		return -1;
	outer->source = bpf_htonl(key.remote_ipv4);
	outer->destination = bpf_htonl(key.local_ipv4);
	outer->ttl = key.tunnel_ttl;
	return 0;
}

/* Hands the packet to the device, which is the instance's "uplink" then. A kernel before 6.0 chooses the outer source: that of its route. */
static __always_inline int send_by_device(struct __sk_buff *skb, const struct config *me, __be32 to, __u8 ttl)
{
	struct bpf_tunnel_key key = {
		.remote_ipv4 = bpf_ntohl(to),
		.local_ipv4 = bpf_ntohl(me->self.word[3]),
		.tunnel_tos = INHERIT_TOS,
		.tunnel_ttl = ttl,
	};

	if (bpf_skb_set_tunnel_key(skb, &key, sizeof(key), BPF_F_DONT_FRAGMENT) && bpf_skb_set_tunnel_key(skb, &key, OLD_KEY, BPF_F_DONT_FRAGMENT))
		return TC_ACT_SHOT;
	return bpf_redirect(me->uplink, 0);
}

#endif
