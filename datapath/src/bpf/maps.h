/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Maps. The agent sets the sizes when it loads; those here are for tools that load the object by themselves. */
#ifndef HAWSER_MAPS_H
#define HAWSER_MAPS_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "abi.h"

/* Sizes, not types: structures that are used in a map's definition alone are forward declarations in clang's BTF. */
#define HW_MAP(map, kind, key, value, entries, map_options)                                                            \
	struct {                                                                                                       \
		__uint(type, kind);                                                                                    \
		__uint(key_size, sizeof(key));                                                                         \
		__uint(value_size, sizeof(value));                                                                     \
		__uint(max_entries, entries);                                                                          \
		__uint(map_flags, map_options);                                                                        \
	} map SEC(".maps")

HW_MAP(addresses, BPF_MAP_TYPE_HASH, struct hw_addr, struct hw_address, 131072, BPF_F_NO_PREALLOC);
HW_MAP(blocks, BPF_MAP_TYPE_LPM_TRIE, struct hw_prefix, struct hw_block, 16384, BPF_F_NO_PREALLOC);
HW_MAP(rows, BPF_MAP_TYPE_HASH, struct hw_row_key, __u32, 262144, BPF_F_NO_PREALLOC);
HW_MAP(ports, BPF_MAP_TYPE_LPM_TRIE, struct hw_port_key, __u32, 65536, BPF_F_NO_PREALLOC);
HW_MAP(endpoints, BPF_MAP_TYPE_HASH, __u32, struct hw_endpoint, 1024, BPF_F_NO_PREALLOC);
HW_MAP(locals, BPF_MAP_TYPE_HASH, struct hw_addr, struct hw_local, 4096, BPF_F_NO_PREALLOC);
HW_MAP(devices, BPF_MAP_TYPE_HASH, __u32, __u32, 1024, BPF_F_NO_PREALLOC);
HW_MAP(guarded, BPF_MAP_TYPE_LPM_TRIE, struct hw_prefix, __u32, 1024, BPF_F_NO_PREALLOC);
HW_MAP(exempt, BPF_MAP_TYPE_LPM_TRIE, struct hw_prefix, __u32, 1024, BPF_F_NO_PREALLOC);
HW_MAP(state, BPF_MAP_TYPE_ARRAY, __u32, struct hw_state, 1, 0);
HW_MAP(flows, BPF_MAP_TYPE_LRU_HASH, struct hw_tuple, struct hw_flow, 262144, 0);
HW_MAP(fragments, BPF_MAP_TYPE_LRU_HASH, struct hw_fragment_key, struct hw_fragment, 8192, 0);
HW_MAP(frontends, BPF_MAP_TYPE_HASH, struct hw_frontend_key, struct hw_frontend, 65536, BPF_F_NO_PREALLOC);
HW_MAP(places, BPF_MAP_TYPE_ARRAY, __u32, __u32, 1048576, 0);
HW_MAP(backends, BPF_MAP_TYPE_HASH, __u32, struct hw_backend, 131072, BPF_F_NO_PREALLOC);
HW_MAP(affinities, BPF_MAP_TYPE_LRU_HASH, struct hw_affinity_key, struct hw_affinity, 65536, 0);
HW_MAP(counters, BPF_MAP_TYPE_PERCPU_ARRAY, __u32, __u64, HW_COUNTERS, 0);

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
} events SEC(".maps");

static __always_inline void count(__u32 index)
{
	__u64 *counter = bpf_map_lookup_elem(&counters, &index);

	if (counter)
		*counter += 1;
}

#endif
