/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Steps that every hook family shares: counters, configuration, addresses, the caller's cgroup. */
#ifndef XB_COMMON_H
#define XB_COMMON_H

#include "xb_abi.h"
#include "xb_maps.h"

#include <linux/bpf.h>
#include <linux/in.h>
#include <linux/types.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

/* Not in the uapi headers: they cross no boundary of ours. */
#define XB_AF_INET  2
#define XB_AF_INET6 10
#define XB_EPERM	1
#define XB_ENOMEM	12
#define XB_ECONNREFUSED 111

/* Verdicts of cgroup hooks. */
#define XB_REFUSE  0
#define XB_PROCEED 1

/* Nesting that the loop guard looks through; a container runtime in a container uses about ten. */
#define XB_CGROUP_DEPTH 32

/*
 * Keeps clang from merging the context loads of two branches into one load through a modified
 * pointer, which the verifier refuses ("dereference of modified ctx ptr").
 */
#define XB_CTX(field) (*(volatile typeof(field) *)&(field))
#define xb_barrier() asm volatile("" ::: "memory")

static __always_inline void xb_count(__u32 index)
{
	__u64 *value = bpf_map_lookup_elem(&xb_counters, &index);

	if (value)
		*value += 1; /* per CPU; a preempted program may lose one count */
}

/* Returns: the node's configuration, all zero before the agent wrote it; NULL never in practice. */
static __always_inline struct xb_config *xb_configuration(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&xb_config, &zero);
}

static __always_inline void xb_map_ipv4(be32 *address, be32 ipv4)
{
	address[0] = 0;
	address[1] = 0;
	address[2] = bpf_htonl(0xffff);
	address[3] = ipv4;
}

static __always_inline int xb_is_ipv4(const be32 *address)
{
	return address[0] == 0 && address[1] == 0 && address[2] == bpf_htonl(0xffff);
}

static __always_inline int xb_same_address(const be32 *a, const be32 *b)
{
	return a[0] == b[0] && a[1] == b[1] && a[2] == b[2] && a[3] == b[3];
}

/*
 * Does the calling process run in the proxy's or the agent's cgroup, or below it? Security: by
 * cgroup, never by user id, which a pod could take on.
 */
static __always_inline int xb_is_exempt(const struct xb_config *config)
{
	__u64 cgroup;
	int level;

	if (!config->proxy_cgroup && !config->agent_cgroup)
		return 0;
	for (level = 1; level < XB_CGROUP_DEPTH; level++) {
		cgroup = bpf_get_current_ancestor_cgroup_id(level);
		if (!cgroup) /* below the caller's own cgroup */
			return 0;
		if (cgroup == config->proxy_cgroup || cgroup == config->agent_cgroup)
			return 1;
	}
	return 0;
}

#endif
