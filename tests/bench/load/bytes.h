// SPDX-License-Identifier: Apache-2.0
/* Growing buffers, and as much of the protobuf wire format as a client needs that only ACKs. */
#pragma once
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

struct buffer {
	uint8_t *at;
	size_t size, room;
};

struct span {
	const uint8_t *at;
	size_t size;
};

static uint64_t now_ns(void)
{
	struct timespec at;
	clock_gettime(CLOCK_MONOTONIC, &at);
	return at.tv_sec * 1000000000ull + at.tv_nsec;
}

static void fail(const char *what)
{
	fprintf(stderr, "xds_load: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void put(struct buffer *to, const void *data, size_t size)
{
	if (to->size + size > to->room) {
		to->room = (to->size + size) * 2;
		to->at = realloc(to->at, to->room);
		if (!to->at)
			fail("memory");
	}
	memcpy(to->at + to->size, data, size);
	to->size += size;
}

static void drop(struct buffer *from, size_t size)
{
	from->size -= size;
	if (from->size) {
		memmove(from->at, from->at + size, from->size);
	} else if (from->room > 4096) { /* an idle client is to cost nothing */
		free(from->at);
		memset(from, 0, sizeof *from);
	}
}

/* protobuf, as much as is needed */

static void put_varint(struct buffer *to, uint64_t value)
{
	uint8_t out[10];
	int n = 0;
	for (; value > 0x7f; value >>= 7)
		out[n++] = value | 0x80;
	out[n++] = value;
	put(to, out, n);
}

static void put_field(struct buffer *to, int number, const void *data, size_t size)
{
	put_varint(to, number << 3 | 2);
	put_varint(to, size);
	put(to, data, size);
}

static uint64_t varint(const uint8_t **at, const uint8_t *end)
{
	uint64_t value = 0;
	for (int shift = 0; *at < end; shift += 7) {
		uint8_t byte = *(*at)++;
		value |= (uint64_t)(byte & 0x7f) << shift;
		if (!(byte & 0x80))
			break;
	}
	return value;
}

/* The next length-delimited field of a message; 0 at its end. Others are skipped. */
static int next_field(const uint8_t **at, const uint8_t *end, struct span *found)
{
	while (*at < end) {
		uint64_t tag = varint(at, end), value = varint(at, end);
		if ((tag & 7) != 2)
			continue;
		*found = (struct span){*at, value};
		*at += value;
		return tag >> 3;
	}
	return 0;
}
