/*
 * The checks, marks and counts of the ipip driver: the device's own hooks, where packets begin with the inner header.
 *
 *   home agent                                         host
 *   device egress    ipip_home_egress   count          device ingress  ipip_host_ingress  check, deliver or pass on
 *   device ingress   ipip_home_ingress  check          port ingress    ipip_port_ingress  check, local, to the device
 *                                                      uplink egress   ipip_host_egress   what the stack's slow path let out
 *
 * Nothing passes that is not known: the device is ours alone.
 */

/* What has come out of the device; 0, or negative with the reason counted. */
static __always_inline int read_inner(struct __sk_buff *skb, const struct config *me, struct outer *outer, struct ip4 *inner)
{
	if (skb->protocol == bpf_htons(ETH_P_IP) && !outer_of(skb, outer) && (!outer->destination || outer->destination == me->self.word[3]) &&
	    !read_ip(skb, 0, inner))
		return 0;
	drop_unowned(MALFORMED);
	return -1;
}

SEC("tc")
int ipip_home_egress(struct __sk_buff *skb)
{
	const struct home_entry *entry;
	struct address home;
	struct ip4 ip;

	if (skb->protocol != bpf_htons(ETH_P_IP) || read_ip(skb, 0, &ip))
		return drop_unowned(MALFORMED);
	home = mapped(ip.destination);
	entry = bpf_map_lookup_elem(&homes, &home);
	if (!entry)
		return drop_unowned(NO_BINDING);
	if (is_zero(&entry->active))
		return drop(&home, NO_BINDING);
	if (too_big(skb, &ip))
		return drop(&home, TOO_BIG);
	if (marker_token(skb, 0, &ip))
		return drop(&home, SPOOFED);
	count_down(skb, &home, &ip);
	return PASS;
}

SEC("tc")
int ipip_home_ingress(struct __sk_buff *skb)
{
	const struct config *me = instance();
	const struct home_entry *entry;
	struct address home, from;
	struct outer outer;
	struct ip4 inner;
	__u32 token;

	if (!me || read_inner(skb, me, &outer, &inner))
		return TC_ACT_SHOT;
	home = mapped(inner.source);
	entry = bpf_map_lookup_elem(&homes, &home);
	if (!entry)
		return drop_unowned(NO_BINDING);
	from = mapped(outer.source);
	if (!listed(entry->accept, entry->accept_count, &from))
		return drop(&home, NOT_LISTED);
	token = marker_token(skb, 0, &inner);
	if (token) {
		stamp_marker(&home, token);
		return TC_ACT_STOLEN;
	}
	stamp_packet(&home);
	count_up(skb, &home, &inner);
	return PASS;
}

SEC("tc")
int ipip_host_ingress(struct __sk_buff *skb)
{
	const struct config *me = instance();
	const struct host_entry *entry;
	struct address home, from;
	struct outer outer;
	struct ip4 inner;
	int from_home_agent, hold;
	__u32 token, which;

	if (!me || read_inner(skb, me, &outer, &inner))
		return TC_ACT_SHOT;
	home = mapped(inner.destination);
	entry = bpf_map_lookup_elem(&guests, &home);
	if (!entry)
		return drop_unowned(NO_BINDING);
	from = mapped(outer.source);
	from_home_agent = listed(me->home_agents, me->home_agent_count, &from);
	token = marker_token(skb, 0, &inner);
	if (token && marker_ends(&home, entry, &from, from_home_agent, token))
		return TC_ACT_STOLEN;
	which = from_home_agent ? HOLD_DIRECT : HOLD_STRAGGLERS;
	hold = waits(&home, entry, which);
	if (entry->role == ROLE_FORWARD && from_home_agent && !hold) {
		if (outer.ttl <= 1)
			return drop(&home, LOOP);
		if (!token)
			stamp_forwarded(skb, &home, &inner);
		return send_by_device(skb, me, entry->to.word[3], outer.ttl - 1);
	}
	if (!from_home_agent && !listed(entry->stragglers, entry->straggler_count, &from))
		return drop(&home, entry->role == ROLE_FORWARD ? LOOP : NOT_LISTED);
	if (entry->role == ROLE_FORWARD && !hold)
		return drop(&home, LOOP);
	if (entry->role == ROLE_DELIVER && !token)
		count_down(skb, &home, &inner);
	if (bpf_skb_change_head(skb, ETH, 0))
		return drop(&home, REFUSED);
	if (hold)
		return to_hold(skb, &home, entry, which);
	return to_port(skb, &home, entry);
}

SEC("tc")
int ipip_port_ingress(struct __sk_buff *skb)
{
	return from_port(skb, BY_DEVICE);
}

SEC("tc")
int ipip_host_egress(struct __sk_buff *skb)
{
	return from_stack(skb, BY_DEVICE);
}
