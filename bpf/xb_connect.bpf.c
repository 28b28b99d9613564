// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * cgroup/connect4, connect6, getpeername4, getpeername6 on the node's cgroup root.
 *
 * Runs in the caller's context before the socket has a route or a source address. A connection to
 * a service address is rewritten to a backend or to the node's proxy; any other is judged by the
 * policy of its destination and left alone. connect6 takes IPv4-mapped addresses only. Denied here
 * is a courtesy (EPERM at once); the authority is the destination's ingress.
 *
 * Kernel: 5.8 getpeername, 5.10 sk_storage at connect, 5.18 bpf_set_retval.
 */
#include "xb_abi.h"
#include "xb_balance.h"
#include "xb_common.h"
#include "xb_policy.h"

#define XB_LEAVE   0
#define XB_REWRITE 1

/*
 * Identity of the caller: its network namespace belongs to one workload, or to nobody we know. A policy
 * that goes by addresses has entries for the latter: the ingress, which sees the address, decides.
 */
static __always_inline __u32 xb_source_of(struct bpf_sock_addr *ctx)
{
	struct xb_netns_key key = { .cookie = bpf_get_netns_cookie(ctx) };
	struct xb_netns *owner = bpf_map_lookup_elem(&xb_netns, &key);

	return owner ? xb_identity_of(owner->address) : XB_IDENTITY_UNLOCATED;
}

/*
 * Sends the connection to the node's proxy, which learns `original` from getsockopt.
 * Returns: XB_REWRITE with the proxy in next->original.backend_*, or a negative errno.
 */
static __always_inline int xb_redirect(const struct xb_config *config,
				       const struct xb_frontend *frontend,
				       struct xb_socket *next)
{
	if (!xb_is_ipv4(config->proxy_address) || !frontend->proxy_port) {
		xb_count(XB_COUNT_NOT_CONFIGURED);
		return -XB_ECONNREFUSED;
	}
	__builtin_memcpy(next->original.backend_address, config->proxy_address,
			 sizeof(next->original.backend_address));
	next->original.backend_port = frontend->proxy_port;
	next->state = XB_SOCKET_REDIRECTED;
	xb_count(XB_COUNT_REDIRECT);
	return XB_REWRITE;
}

/* Sends the connection to a backend. Returns: as xb_redirect. */
static __always_inline int xb_balance(const struct xb_frontend *frontend, __u32 source,
				      struct xb_socket *next)
{
	struct xb_backend *backend = xb_pick_backend(frontend, &next->backend);

	if (!backend)
		return -XB_ECONNREFUSED;
	__builtin_memcpy(next->original.backend_address, backend->address,
			 sizeof(next->original.backend_address));
	next->original.backend_port = backend->port;
	if (!xb_may_reach(next->original.backend_address, source, next->original.backend_port,
			  IPPROTO_TCP)) {
		xb_count(XB_COUNT_CONNECT_DENIED);
		return -XB_EPERM;
	}
	next->state = XB_SOCKET_BALANCED;
	xb_count(XB_COUNT_LB);
	return XB_REWRITE;
}

/*
 * Decides where a connection to next->original goes.
 * Returns: XB_LEAVE; XB_REWRITE with next filled in; a negative errno for connect().
 */
static __always_inline int xb_decide(struct bpf_sock_addr *ctx, const struct xb_config *config,
				     struct xb_socket *next)
{
	struct xb_frontend_key key = { .port = next->original.port, .protocol = IPPROTO_TCP };
	struct xb_frontend *found, frontend;
	__u32 source = xb_source_of(ctx);

	__builtin_memcpy(key.address, next->original.address, sizeof(key.address));
	found = bpf_map_lookup_elem(&xb_frontends, &key);
	if (!found) {
		if (!xb_may_reach(key.address, source, key.port, IPPROTO_TCP)) {
			xb_count(XB_COUNT_CONNECT_DENIED);
			return -XB_EPERM;
		}
		xb_count(XB_COUNT_NO_FRONTEND);
		return XB_LEAVE;
	}
	frontend = *found; /* one copy: a replaced element's memory may be used again at once */
	next->original.service = frontend.service;
	if (frontend.policy &&
	    !xb_is_allowed(frontend.policy, source, frontend.policy_port, IPPROTO_TCP)) {
		xb_count(XB_COUNT_CONNECT_DENIED);
		return -XB_EPERM;
	}
	if (frontend.flags & XB_FRONTEND_REDIRECT)
		return xb_redirect(config, &frontend, next);
	return xb_balance(&frontend, source, next);
}

/*
 * Records in the socket what was decided. A socket that failed to connect or was disconnected
 * comes here again: its earlier backend is given back first.
 * Returns: as xb_decide.
 */
static __always_inline int xb_translate(struct bpf_sock_addr *ctx, struct xb_socket *next)
{
	struct xb_config *config = xb_configuration();
	struct bpf_sock *sk = ctx->sk;
	struct xb_socket *socket;
	int result;

	if (!config || !sk) {
		xb_count(XB_COUNT_NOT_CONFIGURED);
		return -XB_ECONNREFUSED;
	}
	if (xb_is_exempt(config)) {
		xb_count(XB_COUNT_PROXY_EXEMPT);
		return XB_LEAVE;
	}
	socket = bpf_sk_storage_get(&xb_sockets, sk, 0, 0);
	if (socket) {
		if (socket->state == XB_SOCKET_BALANCED)
			xb_add_active(socket->backend, -1);
		socket->state = XB_SOCKET_NEW;
	}
	result = xb_decide(ctx, config, next);
	if (result != XB_REWRITE)
		return result;
	socket = bpf_sk_storage_get(&xb_sockets, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!socket) {
		xb_count(XB_COUNT_STORAGE_FULL);
		return -XB_ENOMEM;
	}
	*socket = *next;
	if (next->state == XB_SOCKET_BALANCED)
		xb_add_active(next->backend, 1);
	return XB_REWRITE;
}

SEC("cgroup/connect4")
int xb_connect4(struct bpf_sock_addr *ctx)
{
	struct xb_socket next = {};
	int result;

	if (ctx->protocol != IPPROTO_TCP) {
		xb_count(XB_COUNT_NOT_TCP);
		return XB_PROCEED;
	}
	xb_map_ipv4(next.original.address, ctx->user_ip4);
	next.original.port = (be16)XB_CTX(ctx->user_port);
	result = xb_translate(ctx, &next);
	if (result < 0) {
		bpf_set_retval(result);
		return XB_REFUSE;
	}
	if (result == XB_REWRITE) {
		ctx->user_ip4 = next.original.backend_address[3];
		ctx->user_port = next.original.backend_port;
	}
	return XB_PROCEED;
}

SEC("cgroup/connect6")
int xb_connect6(struct bpf_sock_addr *ctx)
{
	struct xb_socket next = {};
	int result;

	if (ctx->protocol != IPPROTO_TCP) {
		xb_count(XB_COUNT_NOT_TCP);
		return XB_PROCEED;
	}
	next.original.address[0] = ctx->user_ip6[0];
	next.original.address[1] = ctx->user_ip6[1];
	next.original.address[2] = ctx->user_ip6[2];
	next.original.address[3] = ctx->user_ip6[3];
	if (!xb_is_ipv4(next.original.address)) {
		xb_count(XB_COUNT_PLAIN_IPV6);
		return XB_PROCEED;
	}
	next.original.port = (be16)XB_CTX(ctx->user_port);
	result = xb_translate(ctx, &next);
	if (result < 0) {
		bpf_set_retval(result);
		return XB_REFUSE;
	}
	if (result == XB_REWRITE) { /* the first three words are those of a mapped address already */
		ctx->user_ip6[3] = next.original.backend_address[3];
		ctx->user_port = next.original.backend_port;
	}
	return XB_PROCEED;
}

/*
 * Returns: what the application dialled, if @peer:@port is where we sent this socket; NULL else.
 * Comparing keeps a socket that was connected elsewhere since from telling an old address.
 */
static __always_inline struct xb_original *xb_original_of(struct bpf_sock_addr *ctx,
							  const be32 *peer, be16 port)
{
	struct bpf_sock *sk = ctx->sk;
	struct xb_socket *socket = sk ? bpf_sk_storage_get(&xb_sockets, sk, 0, 0) : NULL;

	if (!socket ||
	    (socket->state != XB_SOCKET_BALANCED && socket->state != XB_SOCKET_REDIRECTED) ||
	    socket->original.backend_port != port ||
	    !xb_same_address(socket->original.backend_address, peer)) {
		xb_count(XB_COUNT_OTHER_EVENT);
		return NULL;
	}
	return &socket->original;
}

SEC("cgroup/getpeername4")
int xb_getpeername4(struct bpf_sock_addr *ctx)
{
	struct xb_original *original;
	be32 peer[4];

	xb_map_ipv4(peer, ctx->user_ip4);
	original = xb_original_of(ctx, peer, (be16)XB_CTX(ctx->user_port));
	if (original) {
		ctx->user_ip4 = original->address[3];
		ctx->user_port = original->port;
	}
	return XB_PROCEED;
}

SEC("cgroup/getpeername6")
int xb_getpeername6(struct bpf_sock_addr *ctx)
{
	be32 peer[4] = { ctx->user_ip6[0], ctx->user_ip6[1], ctx->user_ip6[2], ctx->user_ip6[3] };
	struct xb_original *original;

	original = xb_original_of(ctx, peer, (be16)XB_CTX(ctx->user_port));
	if (original) {
		ctx->user_ip6[3] = original->address[3];
		ctx->user_port = original->port;
	}
	return XB_PROCEED;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
