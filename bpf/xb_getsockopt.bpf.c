// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * cgroup/getsockopt on the proxy's cgroup only: answers SO_ORIGINAL_DST from the socket's storage.
 *
 * Runs after the kernel's own answer, whatever that was (without connection tracking: ENOPROTOOPT).
 * A proxy asks by the family it takes the peer for: an IPv6 listener that accepts IPv4 has
 * AF_INET6 sockets with mapped addresses, and is asked at either level. So the answer's form
 * follows the question, not the socket. Sockets without a record keep the kernel's answer.
 *
 * Kernel: 5.10 (sk_storage), 5.15 retval may turn an error into success.
 */
#include "xb_abi.h"
#include "xb_common.h"

#define XB_SOL_IP	    0
#define XB_SOL_IPV6	    41
#define XB_SO_ORIGINAL_DST 80 /* and IP6T_SO_ORIGINAL_DST */
#define XB_PAGE		    4096

/* struct sockaddr_in and sockaddr_in6, whose headers do not build for BPF. */
struct xb_sockaddr_ipv4 {
	__u16 family;
	be16 port;
	be32 address;
	__u8 zero[8];
};

struct xb_sockaddr_ipv6 {
	__u16 family;
	be16 port;
	be32 flow;
	be32 address[4];
	__u32 scope;
};

/* Returns: 0 answered; -1 the caller's buffer is too small or the address has no such form. */
static __always_inline int xb_answer_ipv4(struct bpf_sockopt *ctx,
					  const struct xb_original *original)
{
	struct xb_sockaddr_ipv4 *answer = ctx->optval;

	if ((void *)(answer + 1) > ctx->optval_end || !xb_is_ipv4(original->address))
		return -1;
	__builtin_memset(answer, 0, sizeof(*answer));
	answer->family = XB_AF_INET;
	answer->port = original->port;
	answer->address = original->address[3];
	ctx->optlen = sizeof(*answer);
	return 0;
}

static __always_inline int xb_answer_ipv6(struct bpf_sockopt *ctx,
					  const struct xb_original *original)
{
	struct xb_sockaddr_ipv6 *answer = ctx->optval;

	if ((void *)(answer + 1) > ctx->optval_end)
		return -1;
	__builtin_memset(answer, 0, sizeof(*answer));
	answer->family = XB_AF_INET6;
	answer->port = original->port;
	__builtin_memcpy(answer->address, original->address, sizeof(answer->address));
	ctx->optlen = sizeof(*answer);
	return 0;
}

SEC("cgroup/getsockopt")
int xb_getsockopt(struct bpf_sockopt *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct xb_socket *socket;
	int failed;

	if (ctx->optname != XB_SO_ORIGINAL_DST ||
	    (ctx->level != XB_SOL_IP && ctx->level != XB_SOL_IPV6)) {
		/* The hook sees one page at most; 0 keeps the kernel's answer instead of EFAULT. */
		if (ctx->optlen > XB_PAGE)
			ctx->optlen = 0;
		xb_count(XB_COUNT_OTHER_OPTION);
		return XB_PROCEED;
	}
	socket = sk ? bpf_sk_storage_get(&xb_sockets, sk, 0, 0) : NULL;
	if (!socket || socket->state != XB_SOCKET_ACCEPTED) {
		xb_count(XB_COUNT_ORIGDST_MISS);
		return XB_PROCEED;
	}
	if (ctx->level == XB_SOL_IP)
		failed = xb_answer_ipv4(ctx, &socket->original);
	else
		failed = xb_answer_ipv6(ctx, &socket->original);
	if (failed) {
		xb_count(XB_COUNT_ORIGDST_MISS);
		return XB_PROCEED;
	}
	ctx->retval = 0;
	xb_count(XB_COUNT_ORIGDST_HIT);
	return XB_PROCEED;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
