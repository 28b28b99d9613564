/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Every map: what question it answers, who writes it, who reads it, what happens when it is full.
 *
 * __weak lets each program file define all of them; the static linker keeps one of each. Sizes are
 * upper limits, the loader may lower them. Hashes that may grow large are not preallocated: an idle
 * node pays for what it holds. No map is LRU: an evicted policy or original destination would
 * change where a connection goes. "Full: MapFull" means that the agent's write fails and says so.
 */
#ifndef XB_MAPS_H
#define XB_MAPS_H

#include "xb_abi.h"

#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

/* Who is the proxy here? Agent -> connect, sockops. One element. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct xb_config);
	__uint(max_entries, 1);
} xb_config SEC(".maps") __weak;

/* Is this a service address, where do its connections go? Agent -> connect. Full: MapFull. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, struct xb_frontend_key);
	__type(value, struct xb_frontend);
	__uint(max_entries, XB_MAX_FRONTENDS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} xb_frontends SEC(".maps") __weak;

/* Which backend stands in slot N of a frontend's range? Agent (mmap) -> connect. Fixed size. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, __u32);
	__uint(max_entries, XB_MAX_SLOTS);
	__uint(map_flags, BPF_F_MMAPABLE);
} xb_slots SEC(".maps") __weak;

/* Where is backend N, and does it take new connections? Agent -> connect. Fixed size. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct xb_backend);
	__uint(max_entries, XB_MAX_BACKENDS);
	__uint(map_flags, BPF_F_MMAPABLE);
} xb_backends SEC(".maps") __weak;

/* How many open connections has backend N? connect, release -> agent (mmap). Fixed size. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, __u64);
	__uint(max_entries, XB_MAX_BACKENDS);
	__uint(map_flags, BPF_F_MMAPABLE);
} xb_active SEC(".maps") __weak;

/* Who is this address, which policy guards it? Agent -> connect, ingress. Full: MapFull. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__type(key, struct xb_address_key);
	__type(value, struct xb_address);
	__uint(max_entries, XB_MAX_ADDRESSES);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} xb_addresses SEC(".maps") __weak;

/* Which workload address owns this network namespace? Agent -> connect. Full: MapFull. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, struct xb_netns_key);
	__type(value, struct xb_netns);
	__uint(max_entries, XB_MAX_NETNS);
} xb_netns SEC(".maps") __weak;

/* May this source reach that port under this policy? Agent -> connect, ingress. Full: MapFull. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, struct xb_policy_key);
	__type(value, struct xb_policy);
	__uint(max_entries, XB_MAX_POLICY_ENTRIES);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} xb_policies SEC(".maps") __weak;

/* May this address be a source on this interface? Agent -> veth. Full: MapFull, no new pods. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, struct xb_veth_key);
	__type(value, struct xb_veth);
	__uint(max_entries, XB_MAX_VETHS);
} xb_veths SEC(".maps") __weak;

/*
 * Where did a redirected client that the proxy has not accepted yet want to go? Client's sockops ->
 * proxy's sockops. A hash, not LRU: eviction would take a living client's destination. Full: the
 * new connection has no record, the proxy gets no answer and closes it.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, struct xb_tuple);
	__type(value, struct xb_original);
	__uint(max_entries, XB_MAX_HANDSHAKES);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} xb_handshakes SEC(".maps") __weak;

/* What did we do to this socket? connect, sockops -> all. Dies with it. No memory: refused. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__type(key, int);
	__type(value, struct xb_socket);
	__uint(max_entries, 0);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} xb_sockets SEC(".maps") __weak;

/* What does a number stand for? Agent -> agent after a restart, people. No program reads it. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, struct xb_name_key);
	__type(value, struct xb_name);
	__uint(max_entries, XB_MAX_NAMES);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} xb_names SEC(".maps") __weak;

/* How often did each exit of each program happen? All programs -> agent. One set per CPU. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, __u64);
	__uint(max_entries, XB_COUNT_MAX);
} xb_counters SEC(".maps") __weak;

#endif
