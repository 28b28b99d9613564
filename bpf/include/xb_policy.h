/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Who is it, and may it? Shared by connect (fast answer) and ingress (the authority). */
#ifndef XB_POLICY_H
#define XB_POLICY_H

#include "xb_common.h"

/* Returns: what is known of an address (longest prefix), or NULL. */
static __always_inline struct xb_address *xb_find_address(const be32 *address)
{
	struct xb_address_key key = { .prefix_length = 128 };

	__builtin_memcpy(key.address, address, sizeof(key.address));
	return bpf_map_lookup_elem(&xb_addresses, &key);
}

/* Returns: identity number of a source address, XB_IDENTITY_UNKNOWN if there is none. */
static __always_inline __u32 xb_identity_of(const be32 *address)
{
	struct xb_address *found = xb_find_address(address);

	return found ? found->identity : XB_IDENTITY_UNKNOWN;
}

/*
 * Decides one (policy, source, port): (source, port), (source, any port), (any, port), (any, any
 * port); the first entry found decides. An unknown source starts at "any": 0 is no identity.
 * @port: network order, the port at the workload.
 * Returns: 1 allowed; 0 denied, also when a policy has no entry at all (fail closed).
 */
static __always_inline int xb_is_allowed(__u32 policy, __u32 source, be16 port, __u8 protocol)
{
	struct xb_policy_key key = { .policy = policy, .protocol = protocol };
	struct xb_policy *entry = NULL;

	if (source != XB_IDENTITY_UNKNOWN) {
		key.source = source;
		key.port = port;
		entry = bpf_map_lookup_elem(&xb_policies, &key);
		if (!entry) {
			key.port = 0;
			entry = bpf_map_lookup_elem(&xb_policies, &key);
		}
	}
	if (!entry) {
		key.source = XB_IDENTITY_ANY;
		key.port = port;
		entry = bpf_map_lookup_elem(&xb_policies, &key);
	}
	if (!entry) {
		key.port = 0;
		entry = bpf_map_lookup_elem(&xb_policies, &key);
	}
	return entry && entry->verdict == XB_VERDICT_ALLOW;
}

/* May `source` open a connection to address:port? An address without a policy is open. */
static __always_inline int xb_may_reach(const be32 *address, __u32 source, be16 port, __u8 protocol)
{
	struct xb_address *found = xb_find_address(address);

	if (!found || !found->policy)
		return 1;
	return xb_is_allowed(found->policy, source, port, protocol);
}

#endif
