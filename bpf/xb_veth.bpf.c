// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * tcx ingress on the host side of a pod's veth: a packet's source must be the pod's own address.
 *
 * Every identity that the node knows by address rests on this. It runs before routing and before
 * anything else that looks at the packet; passing means "next program", so that a CNI's own tcx
 * programs still run. Only attached to enrolled interfaces: one without entries passes nothing.
 *
 * Kernel: 6.6 (tcx).
 */
#include "xb_abi.h"
#include "xb_common.h"

#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>

#define XB_TCX_NEXT (-1) /* TCX_NEXT, which uapi headers before 6.6 lack */

/* ARP for IPv4 over Ethernet (RFC 826); <linux/if_arp.h> needs libc's headers. */
struct xb_arp {
	be16 hardware;
	be16 protocol;
	__u8 hardware_size;
	__u8 protocol_size;
	be16 operation;
	__u8 sender_hardware[ETH_ALEN];
	__u8 sender[4];
	__u8 target_hardware[ETH_ALEN];
	__u8 target[4];
};

static __always_inline int xb_pass(void)
{
	xb_count(XB_COUNT_VETH_PASSED);
	return XB_TCX_NEXT;
}

static __always_inline int xb_drop(__u32 reason)
{
	xb_count(reason);
	return TC_ACT_SHOT;
}

static __always_inline int xb_check_source(struct __sk_buff *skb, const be32 *source)
{
	struct xb_veth_key key = { .ifindex = skb->ifindex };

	__builtin_memcpy(key.address, source, sizeof(key.address));
	if (!bpf_map_lookup_elem(&xb_veths, &key))
		return xb_drop(XB_COUNT_SPOOFED);
	return xb_pass();
}

static __always_inline int xb_check_ipv4(struct __sk_buff *skb)
{
	const struct iphdr *ip = (void *)(long)skb->data + ETH_HLEN;
	be32 source[4], ipv4;

	if ((const void *)(ip + 1) <= (void *)(long)skb->data_end)
		ipv4 = ip->saddr;
	else if (bpf_skb_load_bytes(skb, ETH_HLEN + __builtin_offsetof(struct iphdr, saddr), &ipv4, sizeof(ipv4)))
		return xb_drop(XB_COUNT_VETH_UNPARSED);
	xb_map_ipv4(source, ipv4);
	return xb_check_source(skb, source);
}

/*
 * A link-local source is no identity and guarded by no policy: it passes for ICMPv6 (neighbour
 * discovery) and to link-scope multicast, never with TCP, which would be a way past every policy for
 * whoever shares the link. The unspecified source passes to link-scope multicast only (duplicate
 * address detection, RFC 4862 5.4).
 */
static __always_inline int xb_check_ipv6(struct __sk_buff *skb)
{
	struct ipv6hdr header;
	be32 source[4];
	int to_link;

	if (bpf_skb_load_bytes(skb, ETH_HLEN, &header, sizeof(header)))
		return xb_drop(XB_COUNT_VETH_UNPARSED);
	__builtin_memcpy(source, &header.saddr, sizeof(source));
	to_link = (header.daddr.in6_u.u6_addr32[0] & bpf_htonl(0xffff0000)) == bpf_htonl(0xff020000);
	if ((source[0] & bpf_htonl(0xffc00000)) == bpf_htonl(0xfe800000)) {
		if (to_link || header.nexthdr == IPPROTO_ICMPV6)
			return xb_pass();
		return xb_drop(XB_COUNT_SPOOFED);
	}
	if (!(source[0] | source[1] | source[2] | source[3]))
		return to_link ? xb_pass() : xb_drop(XB_COUNT_SPOOFED);
	return xb_check_source(skb, source);
}

/* A pod speaks ARP for its own addresses; 0.0.0.0 is a probe (RFC 5227). */
static __always_inline int xb_check_arp(struct __sk_buff *skb)
{
	be32 source[4], ipv4;
	struct xb_arp arp;

	if (bpf_skb_load_bytes(skb, ETH_HLEN, &arp, sizeof(arp)) ||
	    arp.protocol != bpf_htons(ETH_P_IP) || arp.protocol_size != sizeof(arp.sender) ||
	    arp.hardware_size != ETH_ALEN)
		return xb_drop(XB_COUNT_VETH_UNPARSED);
	__builtin_memcpy(&ipv4, arp.sender, sizeof(ipv4));
	if (!ipv4)
		return xb_pass();
	xb_map_ipv4(source, ipv4);
	return xb_check_source(skb, source);
}

SEC("tc")
int xb_veth(struct __sk_buff *skb)
{
	switch (skb->protocol) {
	case bpf_htons(ETH_P_IP):
		return xb_check_ipv4(skb);
	case bpf_htons(ETH_P_IPV6):
		return xb_check_ipv6(skb);
	case bpf_htons(ETH_P_ARP):
		return xb_check_arp(skb);
	}
	return xb_drop(XB_COUNT_VETH_UNPARSED);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
