// SPDX-License-Identifier: Apache-2.0
/*
 * One xDS client: an HTTP/2 connection with one stream, on which every response is answered.
 *
 * Bytes of a socket in, ACKs or NACKs out. Included by xds_load.c, which owns the event loop.
 */
#pragma once
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "socket.h"

#define MAX_STREAMS 8192
#define MAX_TYPES 8
#define FRAME 16384
#define CHUNK (1 << 18)
#define STREAM_WINDOW (16u << 20) /* as Envoy's */
#define CONNECTION_WINDOW (24u << 20)
#define DIGITS 6
static const char MARK[] = "@@@@@@"; /* in a request: replaced by the number of the stream */
static const char CDS[] = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
static const char EDS[] = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";

enum { DATA = 0, HEADERS = 1, RST_STREAM = 3, SETTINGS = 4, PING = 6, GOAWAY = 7, WINDOW_UPDATE = 8 };
enum answer { ACK, NACK, FLIP, STALE, SILENT };

struct client {
	int fd, number;
	SSL *ssl; /* NULL: plain */
	bool connected, closed, deaf; /* deaf: reads nothing */
	bool shaking; /* hands, and it is the server's turn */
	enum answer answer;
	uint32_t answers, resources, messages, resets;
	uint64_t last_ns; /* when the last response came */
	int64_t window, stream_window; /* what the server takes */
	uint32_t initial_window;
	uint32_t credit; /* received bytes whose window has not been given back */
	struct buffer in, message, out, body; /* unparsed bytes, a part of a message, bytes for the socket, DATA for the server */
};

static struct client *clients[MAX_STREAMS];
static struct sockaddr_in server;
static const char *path;
static bool is_sotw;
static int epoll;
static struct buffer requests; /* u32 length and bytes, again and again */
static struct { char type[128]; struct buffer names; } sotw_names[MAX_TYPES];
static uint64_t resources, messages, bytes, answers, closed, connected, last_ns;
static uint64_t wanted; /* of `wait`, 0 for none */
static struct buffer error_text;
static bool follow;

/* HTTP/2 */

static void put_frame(struct buffer *to, int type, int flags, uint32_t stream, const void *data, size_t size)
{
	uint8_t head[9] = {size >> 16, size >> 8, size, type, flags, stream >> 24, stream >> 16, stream >> 8, stream};
	put(to, head, sizeof head);
	put(to, data, size);
}

static void put_u32_frame(struct buffer *to, int type, uint32_t stream, uint32_t value)
{
	uint32_t payload = htonl(value);
	put_frame(to, type, 0, stream, &payload, 4);
}

static void put_header(struct buffer *to, const char *name, const char *value)
{
	uint8_t lengths[2] = {strlen(name), strlen(value)};
	put(to, "\0", 1);
	put(to, &lengths[0], 1);
	put(to, name, lengths[0]);
	put(to, &lengths[1], 1);
	put(to, value, lengths[1]);
}

static void watch(struct client *c)
{
	struct epoll_event event = {.data.u32 = c->number};
	event.events = (c->deaf ? 0 : EPOLLIN) | ((c->out.size || !c->connected) && !c->shaking ? EPOLLOUT : 0);
	epoll_ctl(epoll, EPOLL_CTL_MOD, c->fd, &event);
}

static void gone(struct client *c)
{
	if (c->closed)
		return;
	c->closed = true;
	closed++;
	SSL_free(c->ssl);
	c->ssl = NULL;
	close(c->fd);
}

static void flush(struct client *c)
{
	size_t sent = 0;
	while (c->body.size - sent && c->window > 0 && c->stream_window > 0) {
		size_t size = c->body.size - sent;
		size = size < FRAME ? size : FRAME;
		size = size < (size_t)c->window ? size : (size_t)c->window;
		size = size < (size_t)c->stream_window ? size : (size_t)c->stream_window;
		put_frame(&c->out, DATA, 0, 1, c->body.at + sent, size);
		c->window -= size;
		c->stream_window -= size;
		sent += size;
	}
	if (sent)
		drop(&c->body, sent);
	if (!c->out.size || !c->connected || c->closed)
		return;
	ssize_t done = socket_send(c->fd, c->ssl, c->out.at, c->out.size);
	if (done < 0 && errno != EAGAIN) {
		gone(c);
		return;
	}
	bool was_full = c->out.size != (size_t)(done > 0 ? done : 0);
	drop(&c->out, done > 0 ? done : 0);
	if (was_full)
		watch(c);
}

static void put_message(struct client *c, const void *data, size_t size)
{
	uint8_t prefix[5] = {0, size >> 24, size >> 16, size >> 8, size};
	put(&c->body, prefix, sizeof prefix);
	put(&c->body, data, size);
}

/* The names that a state-of-the-world client repeats with every request of a type. */
static struct buffer *names_of(struct span type)
{
	for (int i = 0; i < MAX_TYPES; i++) {
		if (!sotw_names[i].type[0] && type.size < sizeof sotw_names[i].type)
			memcpy(sotw_names[i].type, type.at, type.size);
		if (strlen(sotw_names[i].type) == type.size && !memcmp(sotw_names[i].type, type.at, type.size))
			return &sotw_names[i].names;
	}
	fail("too many types");
	return NULL;
}

static void answer(struct client *c, struct span type, struct span nonce, struct span version)
{
	static struct buffer request, status;
	enum answer how = c->answer == FLIP ? (c->answers & 1 ? NACK : ACK) : c->answer;
	if (how == SILENT)
		return;
	request.size = status.size = 0;
	if (how == STALE)
		nonce = (struct span){(const uint8_t *)"stale", 5};
	if (is_sotw && how == ACK)
		put_field(&request, 1, version.at, version.size);
	if (is_sotw)
		put(&request, names_of(type)->at, names_of(type)->size);
	put_field(&request, is_sotw ? 4 : 2, type.at, type.size);
	put_field(&request, is_sotw ? 5 : 6, nonce.at, nonce.size);
	if (how == NACK || how == STALE) {
		put(&status, "\x08\x0d", 2); /* code INTERNAL */
		put_field(&status, 2, error_text.at, error_text.size);
		put_field(&request, is_sotw ? 6 : 7, status.at, status.size);
	}
	put_message(c, request.at, request.size);
	c->answers++;
	answers++;
}

static void on_message(struct client *c, const uint8_t *at, size_t size)
{
	static struct buffer request;
	const uint8_t *end = at + size, *start = at;
	struct span found, type = {0}, nonce = {0}, version = {0};
	uint64_t count = 0;
	int number;
	while ((number = next_field(&at, end, &found))) {
		count += number == 2;
		if (number == 1)
			version = found;
		else if (number == 4)
			type = found;
		else if (number == 5)
			nonce = found;
	}
	resources += count;
	c->resources += count;
	messages++;
	c->messages++;
	c->last_ns = last_ns = now_ns();
	answer(c, type, nonce, version);
	if (!follow || type.size != sizeof CDS - 1 || memcmp(type.at, CDS, type.size))
		return;
	request.size = 0;
	put_field(&request, 2, EDS, sizeof EDS - 1);
	for (at = start; (number = next_field(&at, end, &found));) {
		const uint8_t *in = found.at;
		struct span name;
		if (number != 2)
			continue;
		while ((number = next_field(&in, found.at + found.size, &name)))
			if (number == 3)
				put_field(&request, 3, name.at, name.size);
	}
	put_message(c, request.at, request.size);
}

static void on_data(struct client *c, const uint8_t *at, size_t size)
{
	c->credit += size;
	bytes += size;
	if (c->credit > STREAM_WINDOW / 2) {
		put_u32_frame(&c->out, WINDOW_UPDATE, 0, c->credit);
		put_u32_frame(&c->out, WINDOW_UPDATE, 1, c->credit);
		c->credit = 0;
	}
	if (c->message.size) {
		put(&c->message, at, size);
		at = c->message.at;
		size = c->message.size;
	}
	size_t used = 0;
	while (size - used >= 5) {
		const uint8_t *p = at + used;
		size_t length = (size_t)p[1] << 24 | p[2] << 16 | p[3] << 8 | p[4];
		if (size - used < 5 + length)
			break;
		on_message(c, p + 5, length);
		used += 5 + length;
	}
	if (c->message.size)
		drop(&c->message, used);
	else if (size - used)
		put(&c->message, at + used, size - used);
}

static void on_settings(struct client *c, const uint8_t *at, size_t size)
{
	for (; size >= 6; at += 6, size -= 6) {
		uint32_t value = (uint32_t)at[2] << 24 | at[3] << 16 | at[4] << 8 | at[5];
		if (at[0] == 0 && at[1] == 4) {
			c->stream_window += (int64_t)value - c->initial_window;
			c->initial_window = value;
		}
	}
	put_frame(&c->out, SETTINGS, 1, 0, "", 0);
}

static void on_frame(struct client *c, int type, int flags, uint32_t stream, const uint8_t *at, size_t size)
{
	if (type == DATA)
		on_data(c, at, size);
	else if (type == SETTINGS && !(flags & 1))
		on_settings(c, at, size);
	else if (type == PING && !(flags & 1))
		put_frame(&c->out, PING, 1, 0, at, size);
	else if (type == WINDOW_UPDATE)
		*(stream ? &c->stream_window : &c->window) += (uint32_t)at[0] << 24 | at[1] << 16 | at[2] << 8 | at[3];
	else if (type == RST_STREAM || type == GOAWAY || (type == HEADERS && flags & 1))
		c->resets++; /* the stream is over, or about to be */
}

/* Takes at most so many bytes from the socket. */
static void on_readable(struct client *c, size_t most)
{
	static uint8_t chunk[CHUNK];
	ssize_t got = socket_receive(c->fd, c->ssl, chunk, most);
	if (got < 0 && errno == EAGAIN)
		return;
	if (got <= 0) {
		gone(c);
		return;
	}
	const uint8_t *at = chunk;
	size_t size = got, used = 0;
	if (c->in.size) {
		put(&c->in, chunk, got);
		at = c->in.at;
		size = c->in.size;
	}
	while (size - used >= 9) {
		const uint8_t *p = at + used;
		size_t length = (size_t)p[0] << 16 | p[1] << 8 | p[2];
		if (size - used < 9 + length)
			break;
		on_frame(c, p[3], p[4], ((uint32_t)p[5] << 24 | p[6] << 16 | p[7] << 8 | p[8]) & 0x7fffffff, p + 9, length);
		used += 9 + length;
	}
	if (c->in.size)
		drop(&c->in, used);
	else if (size - used)
		put(&c->in, at + used, size - used);
	if (c->resets)
		gone(c);
	else
		flush(c);
}

static void put_requests(struct client *c)
{
	char number[DIGITS + 1];
	snprintf(number, sizeof number, "%06d", c->number);
	for (size_t at = 0; at + 4 <= requests.size;) {
		uint32_t size;
		memcpy(&size, requests.at + at, 4);
		size = ntohl(size);
		uint8_t *request = requests.at + at + 4, *mark = memmem(request, size, MARK, DIGITS);
		if (mark)
			memcpy(mark, number, DIGITS);
		put_message(c, request, size);
		if (mark)
			memcpy(mark, MARK, DIGITS);
		at += 4 + size;
	}
}

static void open_client(int number)
{
	static const uint8_t settings[12] = {0, 4, STREAM_WINDOW >> 24, STREAM_WINDOW >> 16 & 255, STREAM_WINDOW >> 8 & 255,
	                                     STREAM_WINDOW & 255, 0, 2, 0, 0, 0, 0};
	struct client *c = clients[number];
	if (c) {
		free(c->in.at), free(c->message.at), free(c->out.at), free(c->body.at);
		memset(c, 0, sizeof *c);
	} else {
		c = clients[number] = calloc(1, sizeof *c);
	}
	struct buffer head = {0};
	char authority[32];
	int one = 1;
	c->number = number;
	c->window = c->stream_window = c->initial_window = 65535;
	snprintf(authority, sizeof authority, "127.0.0.1:%d", ntohs(server.sin_port));
	put(&c->out, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 24);
	put_frame(&c->out, SETTINGS, 0, 0, settings, sizeof settings);
	put_u32_frame(&c->out, WINDOW_UPDATE, 0, CONNECTION_WINDOW - 65535);
	put(&head, "\x83\x86", 2); /* :method POST, :scheme http */
	put_header(&head, ":path", path);
	put_header(&head, ":authority", authority);
	put_header(&head, "te", "trailers");
	put_header(&head, "content-type", "application/grpc");
	put_header(&head, "user-agent", "xds_load");
	put_frame(&c->out, HEADERS, 4, 1, head.at, head.size);
	free(head.at);
	put_requests(c);
	c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
	setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
	if (connect(c->fd, (struct sockaddr *)&server, sizeof server) && errno != EINPROGRESS)
		fail("connect");
	c->ssl = tls ? tls_open(c->fd, number) : NULL;
	struct epoll_event event = {.events = EPOLLIN | EPOLLOUT, .data.u32 = number};
	epoll_ctl(epoll, EPOLL_CTL_ADD, c->fd, &event);
}

static void on_connecting(struct client *c)
{
	if (socket_shake_hands(c->ssl) == 1) {
		c->shaking = false;
		c->connected = true;
		connected++;
		flush(c);
	} else if (errno == EAGAIN) {
		c->shaking = true;
	} else {
		gone(c);
	}
	if (!c->closed)
		watch(c);
}
