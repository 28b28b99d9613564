// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * cgroup/sock_release on the node's cgroup root: gives a balanced connection's place back.
 *
 * Runs when the last descriptor of a socket goes, however its process ended, and never before
 * connect() of the same socket has returned.
 *
 * Kernel: 5.10 (sk_storage in cgroup/sock).
 */
#include "xb_abi.h"
#include "xb_balance.h"
#include "xb_common.h"

SEC("cgroup/sock_release")
int xb_release(struct bpf_sock *sk)
{
	struct xb_socket *socket = bpf_sk_storage_get(&xb_sockets, sk, 0, 0);

	if (!socket || socket->state != XB_SOCKET_BALANCED) {
		xb_count(XB_COUNT_OTHER_EVENT);
		return XB_PROCEED;
	}
	socket->state = XB_SOCKET_NEW;
	xb_add_active(socket->backend, -1);
	xb_count(XB_COUNT_RELEASED);
	return XB_PROCEED;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
