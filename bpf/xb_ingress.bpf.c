// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * cgroup_skb/ingress on the node's cgroup root: the authority on who may open a TCP connection to
 * a local workload. The source is known by its address, which the veth's own program keeps honest.
 *
 * Runs on the destination's side for every packet of a local socket, after reassembly and after
 * any DNAT; data starts at the network header. Only a connection's first segment is judged: later
 * ones belong to a connection that was admitted. UDP and ICMP are not judged yet.
 *
 * Kernel: 5.0 (packets read in place).
 */
#include "xb_abi.h"
#include "xb_common.h"
#include "xb_policy.h"

#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>

#define XB_FRAGMENT_OFFSET 0x1fff

enum xb_segment {
	XB_SEGMENT_SYN,	     /* opens a connection: to be judged */
	XB_SEGMENT_OTHER,    /* part of an admitted connection, or not TCP */
	XB_SEGMENT_UNPARSED, /* may open a connection, but its TCP header cannot be read */
};

struct xb_packet {
	be32 source[4];
	be32 destination[4];
	be16 destination_port;
	__u16 tcp_offset; /* 0: no readable TCP header */
	__u8 is_tcp;
};

/* Fills in the addresses. Returns: 0, or -1 if not even those can be read. */
static __always_inline int xb_read_ipv4(struct __sk_buff *skb, struct xb_packet *packet)
{
	struct iphdr header;

	if (bpf_skb_load_bytes(skb, 0, &header, sizeof(header)))
		return -1;
	xb_map_ipv4(packet->source, header.saddr);
	xb_map_ipv4(packet->destination, header.daddr);
	packet->is_tcp = header.protocol == IPPROTO_TCP;
	if (header.ihl >= 5 && !(header.frag_off & bpf_htons(XB_FRAGMENT_OFFSET)))
		packet->tcp_offset = header.ihl * 4;
	return 0;
}

/* As xb_read_ipv4. A chain of extension headers is not walked: what it hides counts as TCP. */
static __always_inline int xb_read_ipv6(struct __sk_buff *skb, struct xb_packet *packet)
{
	struct ipv6hdr header;

	if (bpf_skb_load_bytes(skb, 0, &header, sizeof(header)))
		return -1;
	__builtin_memcpy(packet->source, &header.saddr, sizeof(packet->source));
	__builtin_memcpy(packet->destination, &header.daddr, sizeof(packet->destination));
	packet->is_tcp = header.nexthdr != IPPROTO_UDP && header.nexthdr != IPPROTO_ICMPV6;
	if (header.nexthdr == IPPROTO_TCP)
		packet->tcp_offset = sizeof(header);
	return 0;
}

static __always_inline enum xb_segment xb_read_tcp(struct __sk_buff *skb, struct xb_packet *packet)
{
	struct tcphdr header;

	if (!packet->is_tcp)
		return XB_SEGMENT_OTHER;
	if (!packet->tcp_offset || bpf_skb_load_bytes(skb, packet->tcp_offset, &header, sizeof(header)))
		return XB_SEGMENT_UNPARSED;
	packet->destination_port = header.dest;
	return header.syn && !header.ack ? XB_SEGMENT_SYN : XB_SEGMENT_OTHER;
}

/*
 * Is it plainly a later segment of an IPv4 connection? Cost: all but one packet of a connection are, so
 * they are told before anything is copied. What is not plain (options, a header in fragments) is read as a whole.
 */
static __always_inline int xb_is_plain_later_segment(struct __sk_buff *skb)
{
	const struct iphdr *ip = (void *)(long)skb->data;
	const struct tcphdr *tcp = (const void *)(ip + 1);

	if (skb->protocol != bpf_htons(ETH_P_IP) || (const void *)(tcp + 1) > (void *)(long)skb->data_end)
		return 0;
	return ip->ihl == 5 && !(ip->frag_off & bpf_htons(XB_FRAGMENT_OFFSET)) &&
	       ip->protocol == IPPROTO_TCP && (!tcp->syn || tcp->ack);
}

SEC("cgroup_skb/ingress")
int xb_ingress(struct __sk_buff *skb)
{
	struct xb_packet packet = {};
	struct xb_address *guarded;
	enum xb_segment segment;
	int failed;

	if (xb_is_plain_later_segment(skb)) {
		xb_count(XB_COUNT_INGRESS_OTHER);
		return XB_PROCEED;
	}
	if (skb->protocol == bpf_htons(ETH_P_IP))
		failed = xb_read_ipv4(skb, &packet);
	else
		failed = xb_read_ipv6(skb, &packet);
	if (failed) {
		xb_count(XB_COUNT_INGRESS_UNPARSED);
		return XB_REFUSE;
	}
	segment = xb_read_tcp(skb, &packet);
	if (segment == XB_SEGMENT_OTHER) {
		xb_count(XB_COUNT_INGRESS_OTHER);
		return XB_PROCEED;
	}
	guarded = xb_find_address(packet.destination);
	if (!guarded || !guarded->policy) {
		xb_count(XB_COUNT_INGRESS_UNGUARDED);
		return XB_PROCEED;
	}
	if (segment == XB_SEGMENT_UNPARSED) {
		xb_count(XB_COUNT_INGRESS_UNPARSED);
		return XB_REFUSE;
	}
	if (!xb_is_allowed(guarded->policy, xb_identity_of(packet.source), packet.destination_port,
			   IPPROTO_TCP)) {
		xb_count(XB_COUNT_INGRESS_DENIED);
		return XB_REFUSE;
	}
	xb_count(XB_COUNT_INGRESS_ALLOWED);
	return XB_PROCEED;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
