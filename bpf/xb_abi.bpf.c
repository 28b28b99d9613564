// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * Puts every struct and enum of xb_abi.h into the BTF, used by a program or not. generate_abi
 * and the loader's layout check read exactly the members of union xb_abi.
 *
 * The function is never called, so libbpf never loads it; an argument (rather than a variable)
 * costs no internal map.
 */
#include "xb_abi.h"

union xb_abi {
	enum xb_abi_version abi_version;
	enum xb_limit limit;
	enum xb_identity identity;
	enum xb_frontend_flag frontend_flag;
	enum xb_backend_flag backend_flag;
	enum xb_verdict verdict;
	enum xb_name_space name_space;
	enum xb_counter_index counter_index;
	enum xb_socket_state socket_state;
	struct xb_config config;
	struct xb_frontend_key frontend_key;
	struct xb_frontend frontend;
	struct xb_backend backend;
	struct xb_address_key address_key;
	struct xb_address address;
	struct xb_netns_key netns_key;
	struct xb_netns netns;
	struct xb_policy_key policy_key;
	struct xb_policy policy;
	struct xb_veth_key veth_key;
	struct xb_veth veth;
	struct xb_tuple tuple;
	struct xb_original original;
	struct xb_socket socket;
	struct xb_name_key name_key;
	struct xb_name name;
};

int xb_abi_anchor(union xb_abi *abi)
{
	return abi != 0;
}
