// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * sockops on the node's cgroup root: hands the original destination from the client's socket to
 * the proxy's.
 *
 * TCP_CONNECT runs when the client has its port and has not sent its SYN; PASSIVE_ESTABLISHED
 * runs before the proxy's accept() returns. So the record exists before the proxy can ask, and
 * moves into the accepted socket's own storage at once: xb_handshakes holds only handshakes in
 * flight. A client that closes before that removes its record itself (STATE).
 *
 * Kernel: 5.10 sk_storage, 5.14 network namespace cookie, both in sockops.
 */
#include "xb_abi.h"
#include "xb_common.h"

/*
 * The connection as its client sees it.
 * @passive: 1 on the accepting side, whose remote end is the client.
 * Byte order: local_port is host order, remote_port holds the network-order port in its upper half.
 * Returns: 0, or -1 for a family other than IPv4 and IPv6.
 */
static __always_inline int xb_read_tuple(struct bpf_sock_ops *ops, int passive,
					 struct xb_tuple *tuple)
{
	be32 *local = passive ? tuple->destination : tuple->source;
	be32 *remote = passive ? tuple->source : tuple->destination;
	be16 local_port = bpf_htons((__u16)XB_CTX(ops->local_port));
	be16 remote_port = (be16)(XB_CTX(ops->remote_port) >> 16);

	if (ops->family == XB_AF_INET) {
		be32 local_ipv4 = XB_CTX(ops->local_ip4), remote_ipv4 = XB_CTX(ops->remote_ip4);

		xb_barrier();
		xb_map_ipv4(local, local_ipv4);
		xb_map_ipv4(remote, remote_ipv4);
	} else if (ops->family == XB_AF_INET6) { /* an IPv4-mapped socket holds mapped addresses */
		xb_barrier();
		local[0] = XB_CTX(ops->local_ip6[0]);
		local[1] = XB_CTX(ops->local_ip6[1]);
		local[2] = XB_CTX(ops->local_ip6[2]);
		local[3] = XB_CTX(ops->local_ip6[3]);
		remote[0] = XB_CTX(ops->remote_ip6[0]);
		remote[1] = XB_CTX(ops->remote_ip6[1]);
		remote[2] = XB_CTX(ops->remote_ip6[2]);
		remote[3] = XB_CTX(ops->remote_ip6[3]);
	} else {
		return -1;
	}
	tuple->source_port = passive ? remote_port : local_port;
	tuple->destination_port = passive ? local_port : remote_port;
	return 0;
}

/* Returns: the storage of a client socket on its way to the proxy, else NULL. */
static __always_inline struct xb_socket *xb_redirected(struct bpf_sock_ops *ops)
{
	struct bpf_sock *sk = ops->sk;
	struct xb_socket *socket = sk ? bpf_sk_storage_get(&xb_sockets, sk, 0, 0) : NULL;

	return socket && socket->state == XB_SOCKET_REDIRECTED ? socket : NULL;
}

/*
 * Security: a pod may give its own interface another pod's address and connect from it. The SYN
 * dies at its veth, but a record would stand under the other pod's name and could be taken by its
 * connection. An enrolled namespace therefore records under its own address only.
 */
static __always_inline int xb_owns_source(struct bpf_sock_ops *ops, const struct xb_tuple *tuple)
{
	struct xb_netns_key key = { .cookie = bpf_get_netns_cookie(ops) };
	struct xb_netns *owner = bpf_map_lookup_elem(&xb_netns, &key);

	return !owner || xb_same_address(owner->address, tuple->source);
}

/* Client, before its SYN. Without room for the record the proxy gets no answer, and closes. */
static __always_inline void xb_record(struct bpf_sock_ops *ops)
{
	struct xb_socket *socket = xb_redirected(ops);
	struct xb_tuple tuple = {};
	struct xb_original original;

	if (!socket || xb_read_tuple(ops, 0, &tuple)) {
		xb_count(XB_COUNT_OTHER_EVENT);
		return;
	}
	if (!xb_owns_source(ops, &tuple)) {
		xb_count(XB_COUNT_SPOOFED);
		return;
	}
	original = socket->original;
	if (bpf_map_update_elem(&xb_handshakes, &tuple, &original, BPF_ANY)) {
		xb_count(XB_COUNT_HANDSHAKE_FULL);
		return;
	}
	bpf_sock_ops_cb_flags_set(ops, ops->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG);
	xb_count(XB_COUNT_RECORDED);
}

/* Proxy, before accept() returns. */
static __always_inline void xb_accept(struct bpf_sock_ops *ops)
{
	struct xb_original *original;
	struct xb_socket *socket = NULL;
	struct xb_tuple tuple = {};
	struct bpf_sock *sk = ops->sk;

	if (!sk || xb_read_tuple(ops, 1, &tuple)) {
		xb_count(XB_COUNT_OTHER_EVENT);
		return;
	}
	original = bpf_map_lookup_elem(&xb_handshakes, &tuple);
	if (!original) {
		xb_count(XB_COUNT_OTHER_EVENT);
		return;
	}
	socket = bpf_sk_storage_get(&xb_sockets, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (socket) {
		socket->original = *original;
		socket->state = XB_SOCKET_ACCEPTED;
	}
	bpf_map_delete_elem(&xb_handshakes, &tuple);
	xb_count(socket ? XB_COUNT_ACCEPTED : XB_COUNT_STORAGE_FULL);
}

/* Client, at its end: refused, timed out or closed before the proxy took the record. */
static __always_inline void xb_abandon(struct bpf_sock_ops *ops)
{
	struct xb_tuple tuple = {};

	if (ops->args[1] != BPF_TCP_CLOSE || !xb_redirected(ops) || xb_read_tuple(ops, 0, &tuple)) {
		xb_count(XB_COUNT_OTHER_EVENT);
		return;
	}
	bpf_map_delete_elem(&xb_handshakes, &tuple);
}

SEC("sockops")
int xb_sockops(struct bpf_sock_ops *ops)
{
	switch (ops->op) {
	case BPF_SOCK_OPS_TCP_CONNECT_CB:
		xb_record(ops);
		break;
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
		xb_accept(ops);
		break;
	case BPF_SOCK_OPS_STATE_CB:
		xb_abandon(ops);
		break;
	default:
		xb_count(XB_COUNT_OTHER_EVENT);
	}
	return XB_PROCEED;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
