/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The contract between the kernel programs and the agent: every struct and enum that crosses it.
 *
 * Rules: no #define crosses the boundary (the BTF has no #defines), fields are ordered by
 * alignment, every hole is a named pad and zero, be16 and be32 mark network byte order, and an
 * IPv4 address is stored as ::ffff:a.b.c.d, so there is one key shape and one code path.
 * xdsbpf/datapath/abi.py is generated from the BTF of xb_abi.bpf.c, which names every type here.
 */
#ifndef XB_ABI_H
#define XB_ABI_H

#include <linux/types.h>

typedef __u16 be16;
typedef __u32 be32;

/* Number of this layout: names the pin directory (v<N>); programs never share maps across it. */
enum xb_abi_version { XB_ABI_VERSION = 1 };

/* Capacities. */
enum xb_limit {
	XB_MAX_FRONTENDS = 65536,
	XB_MAX_SLOTS = 1048576,
	XB_MAX_BACKENDS = 262144,
	XB_MAX_ADDRESSES = 131072,
	XB_MAX_POLICY_ENTRIES = 262144,
	XB_MAX_NETNS = 4096,
	XB_MAX_VETHS = 4096,
	XB_MAX_HANDSHAKES = 65536,
	XB_MAX_NAMES = 524288,
	XB_NAME_SIZE = 256,
};

/* Reserved identity numbers. Allocated ones start at XB_IDENTITY_FIRST. 0 is never "any". */
enum xb_identity {
	XB_IDENTITY_UNKNOWN = 0,
	XB_IDENTITY_UNLOCATED = 1, /* connects from no workload's namespace: no address to judge by yet */
	XB_IDENTITY_FIRST = 256,
	XB_IDENTITY_ANY = 4294967295U,
};

enum xb_frontend_flag {
	XB_FRONTEND_REDIRECT = 1, /* L7: redirect to the node proxy */
};

enum xb_backend_flag {
	XB_BACKEND_READY = 1,
};

enum xb_verdict {
	XB_VERDICT_ALLOW = 1,
	XB_VERDICT_DENY = 2,
};

/* What the number of an xb_name entry stands for. */
enum xb_name_space {
	XB_NAME_IDENTITY = 1,
	XB_NAME_POLICY = 2,
	XB_NAME_RULE = 3,
	XB_NAME_SERVICE = 4,
};

/* Index into xb_counter: every early return of a program increments one. */
enum xb_counter_index {
	XB_COUNT_LB = 0,               /* connects balanced in the kernel */
	XB_COUNT_REDIRECT = 1,         /* connects redirected to the node proxy */
	XB_COUNT_NO_FRONTEND = 2,      /* connects to an address that is no frontend */
	XB_COUNT_NO_BACKEND = 3,       /* refused: service without a ready backend */
	XB_COUNT_DANGLING = 4,         /* refused: slot or backend missing; must stay 0 */
	XB_COUNT_CONNECT_DENIED = 5,   /* refused at connect by policy */
	XB_COUNT_INGRESS_DENIED = 6,   /* SYN dropped at the destination by policy */
	XB_COUNT_INGRESS_ALLOWED = 7,
	XB_COUNT_SPOOFED = 8,          /* packet or redirect with a source that is not the pod's */
	XB_COUNT_ORIGDST_HIT = 9,
	XB_COUNT_ORIGDST_MISS = 10,
	XB_COUNT_PROXY_EXEMPT = 11,    /* connects of the proxy's own cgroup, left alone */
	XB_COUNT_STORAGE_FULL = 12,    /* refused: no memory for socket storage */
	XB_COUNT_HANDSHAKE_FULL = 13,  /* original destination not recorded: table full */
	XB_COUNT_NOT_CONFIGURED = 14,  /* refused: redirect wanted, but no proxy address is known */
	XB_COUNT_NOT_TCP = 15,         /* connects of other protocols, left alone */
	XB_COUNT_PLAIN_IPV6 = 16,      /* connects to plain IPv6 addresses, left alone */
	XB_COUNT_RECORDED = 17,        /* original destinations recorded for the proxy */
	XB_COUNT_ACCEPTED = 18,        /* original destinations handed to the proxy's socket */
	XB_COUNT_INGRESS_UNGUARDED = 19, /* SYN to an address without a policy */
	XB_COUNT_INGRESS_OTHER = 20,   /* not a SYN: later segments, UDP, ICMP; not judged */
	XB_COUNT_INGRESS_UNPARSED = 21, /* dropped: no readable TCP header, guarded address */
	XB_COUNT_VETH_PASSED = 22,     /* packets with a source that is the pod's */
	XB_COUNT_VETH_UNPARSED = 23,   /* dropped: no readable header, or no IP and no ARP */
	XB_COUNT_OTHER_OPTION = 24,    /* getsockopt calls that are not ours, left alone */
	XB_COUNT_OTHER_EVENT = 25,     /* socket events and peers that are not ours, left alone */
	XB_COUNT_RELEASED = 26,        /* balanced sockets closed */
	XB_COUNT_MAX = 27,
};

/* xb_config[0]. Written by the agent; generation last. */
struct xb_config {
	__u64 proxy_cgroup; /* cgroup id whose connects are never translated (loop guard) */
	__u64 agent_cgroup;
	be32 proxy_address[4];
	__u32 abi; /* XB_ABI_VERSION */
	__u32 generation;
};
_Static_assert(sizeof(struct xb_config) == 40, "xb_config has a hole or grew");

struct xb_frontend_key {
	be32 address[4];
	be16 port;
	__u8 protocol;
	__u8 pad;
};
_Static_assert(sizeof(struct xb_frontend_key) == 20, "xb_frontend_key has a hole or grew");

struct xb_frontend {
	__u32 service; /* XB_NAME_SERVICE number */
	__u32 slot_offset;
	__u32 slot_count;
	__u32 policy;      /* XB_NAME_POLICY number checked at connect, 0: none */
	be16 policy_port;  /* port of that check */
	be16 proxy_port;   /* redirect: listener port */
	__u16 flags;       /* enum xb_frontend_flag */
	__u16 pad;
};
_Static_assert(sizeof(struct xb_frontend) == 24, "xb_frontend has a hole or grew");

struct xb_backend {
	be32 address[4];
	be16 port;
	__u16 flags; /* enum xb_backend_flag */
	__u32 service;
};
_Static_assert(sizeof(struct xb_backend) == 24, "xb_backend has a hole or grew");

struct xb_address_key { /* LPM; prefix_length 128 for a host, 96 + n for an IPv4 prefix of n bits */
	__u32 prefix_length;
	be32 address[4];
};
_Static_assert(sizeof(struct xb_address_key) == 20, "xb_address_key has a hole or grew");

struct xb_address {
	__u32 identity; /* XB_IDENTITY_UNKNOWN if only a policy is known */
	__u32 policy;   /* XB_NAME_POLICY number that guards this address, 0: none */
};
_Static_assert(sizeof(struct xb_address) == 8, "xb_address has a hole or grew");

struct xb_netns_key {
	__u64 cookie;
};
_Static_assert(sizeof(struct xb_netns_key) == 8, "xb_netns_key has a hole or grew");

struct xb_netns { /* source address of the workload that owns a network namespace */
	be32 address[4];
};
_Static_assert(sizeof(struct xb_netns) == 16, "xb_netns has a hole or grew");

struct xb_policy_key {
	__u32 policy;
	__u32 source; /* identity number or XB_IDENTITY_ANY */
	be16 port;    /* 0: any port; port 0 cannot be connected to */
	__u8 protocol;
	__u8 pad;
};
_Static_assert(sizeof(struct xb_policy_key) == 12, "xb_policy_key has a hole or grew");

struct xb_policy {
	__u32 rule; /* XB_NAME_RULE number, for people */
	__u8 verdict;
	__u8 pad[3];
};
_Static_assert(sizeof(struct xb_policy) == 8, "xb_policy has a hole or grew");

struct xb_veth_key { /* an address that may be the source of packets arriving on this interface */
	be32 address[4];
	__u32 ifindex;
};
_Static_assert(sizeof(struct xb_veth_key) == 20, "xb_veth_key has a hole or grew");

struct xb_veth {
	__u32 allowed; /* 1 */
};
_Static_assert(sizeof(struct xb_veth) == 4, "xb_veth has a hole or grew");

struct xb_tuple { /* as the client sees it: source = client */
	be32 source[4];
	be32 destination[4];
	be16 source_port;
	be16 destination_port;
	__u32 pad;
};
_Static_assert(sizeof(struct xb_tuple) == 40, "xb_tuple has a hole or grew");

struct xb_original { /* destination before translation */
	be32 address[4];
	be16 port;
	be16 backend_port; /* what was dialled instead: the backend or the proxy */
	be32 backend_address[4];
	__u32 service; /* XB_NAME_SERVICE number */
};
_Static_assert(sizeof(struct xb_original) == 40, "xb_original has a hole or grew");

struct xb_socket { /* socket-local storage */
	struct xb_original original;
	__u32 backend; /* index in xb_backends, of a BALANCED socket */
	__u32 state;   /* enum xb_socket_state */
};
_Static_assert(sizeof(struct xb_socket) == 48, "xb_socket has a hole or grew");

enum xb_socket_state {
	XB_SOCKET_NEW = 0,
	XB_SOCKET_BALANCED = 1,  /* client socket, counted on its backend */
	XB_SOCKET_REDIRECTED = 2, /* client socket on its way to the proxy */
	XB_SOCKET_ACCEPTED = 3,  /* proxy's accepted socket: original is what getsockopt answers */
};

struct xb_name_key {
	__u32 space; /* enum xb_name_space */
	__u32 number;
};
_Static_assert(sizeof(struct xb_name_key) == 8, "xb_name_key has a hole or grew");

struct xb_name {
	char text[256]; /* zero-terminated UTF-8 */
};
_Static_assert(sizeof(struct xb_name) == 256, "xb_name has a hole or grew");

#endif
