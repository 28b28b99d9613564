/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Which backend takes the next connection of a frontend, and the count of open ones. */
#ifndef XB_BALANCE_H
#define XB_BALANCE_H

#include "xb_common.h"

/* A service with few ready backends among many may need several draws. */
#define XB_BALANCE_TRIES 3

static __always_inline void xb_add_active(__u32 backend, __s64 change)
{
	__u64 *active = bpf_map_lookup_elem(&xb_active, &backend);

	if (active)
		__sync_fetch_and_add(active, change);
}

/*
 * Draws a slot at random (weights are repeated slots) until its backend is ready.
 * @index: set to the backend's index on success.
 * Returns: the backend, or NULL after counting why: no ready backend in XB_BALANCE_TRIES draws,
 * or a slot that names nothing, which the agent's order of writes rules out.
 */
static __always_inline struct xb_backend *xb_pick_backend(const struct xb_frontend *frontend,
							  __u32 *index)
{
	struct xb_backend *backend;
	__u32 slot, *found;
	int try;

	if (!frontend->slot_count) {
		xb_count(XB_COUNT_NO_BACKEND);
		return NULL;
	}
	for (try = 0; try < XB_BALANCE_TRIES; try++) {
		slot = frontend->slot_offset + bpf_get_prandom_u32() % frontend->slot_count;
		found = bpf_map_lookup_elem(&xb_slots, &slot);
		if (!found)
			break;
		*index = *found; /* once: the agent may write the slot meanwhile */
		backend = bpf_map_lookup_elem(&xb_backends, index);
		if (!backend || !backend->port || !xb_is_ipv4(backend->address))
			break;
		if (backend->flags & XB_BACKEND_READY)
			return backend;
	}
	xb_count(try < XB_BALANCE_TRIES ? XB_COUNT_DANGLING : XB_COUNT_NO_BACKEND);
	return NULL;
}

#endif
