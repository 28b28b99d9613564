// SPDX-License-Identifier: Apache-2.0
/*
 * Many xDS clients in one process: raw HTTP/2 over loopback TCP, one connection and one stream each.
 *
 * Sends the requests of a file, ACKs (or NACKs) every response, and as Envoy does, asks for the endpoints of
 * clusters that it has just been sent. Reads of a response what an ACK needs: type, nonce, names of resources.
 * Commands come as lines on standard input, one answer line each on standard output; see tests/bench/load/client.py.
 *
 *   xds_load HOST PORT PATH sotw|delta [DIRECTORY]
 *
 * With a directory (see socket.h) over mutual TLS.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <stdarg.h>

#include "client.h"

static void load(struct buffer *to, const char *file)
{
	uint8_t chunk[4096];
	size_t got;
	FILE *from = fopen(file, "rb");
	if (!from)
		fail(file);
	to->size = 0;
	while ((got = fread(chunk, 1, sizeof chunk, from)))
		put(to, chunk, got);
	fclose(from);
}

/* The names in the requests of a state-of-the-world client, by type. */
static void learn_names(void)
{
	for (size_t at = 0; is_sotw && at + 4 <= requests.size;) {
		uint32_t size;
		memcpy(&size, requests.at + at, 4);
		size = ntohl(size);
		const uint8_t *start = requests.at + at + 4, *in = start, *end = in + size;
		struct span found, type = {0};
		int number;
		while ((number = next_field(&in, end, &found)))
			if (number == 4)
				type = found;
		struct buffer *names = names_of(type);
		names->size = 0;
		for (in = start; (number = next_field(&in, end, &found));)
			if (number == 3)
				put_field(names, 3, found.at, found.size);
		at += 4 + size;
	}
}

static void say(const char *format, ...)
{
	va_list values;
	va_start(values, format);
	vprintf(format, values);
	va_end(values);
	putchar('\n');
	fflush(stdout);
}

static void say_done(void)
{
	if (wanted && resources >= wanted) {
		wanted = 0;
		say("%lu", last_ns);
	}
}

static int by_value(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
	return x < y ? -1 : x > y;
}

/* When the last response came to the clients of a range: p50, p99 and max; -1 for those that got none since. */
static void say_times(int first, int count, uint64_t since)
{
	static uint64_t found[MAX_STREAMS];
	int n = 0;
	for (int i = first; i < first + count; i++)
		if (clients[i]->last_ns >= since)
			found[n++] = clients[i]->last_ns - since;
	qsort(found, n, sizeof *found, by_value);
	say("%d %lu %lu %lu", n, n ? found[n / 2] : 0, n ? found[n * 99 / 100] : 0, n ? found[n - 1] : 0);
}

static void set_range(int first, int count, int answer, int deaf)
{
	for (int i = first; i < first + count; i++) {
		clients[i]->answer = answer;
		clients[i]->deaf = deaf;
		if (!clients[i]->closed)
			watch(clients[i]);
	}
	say("ok");
}

static void on_command(char *line)
{
	char word[16] = "", file[512] = "";
	int first = 0, count = 0, answer = 0, deaf = 0;
	uint64_t number = 0;
	if (sscanf(line, "%15s", word) != 1)
		return;
	if (!strcmp(word, "requests") && sscanf(line, "%*s %d %511s", &deaf, file) == 2) {
		follow = deaf;
		load(&requests, file);
		learn_names();
		say("ok");
	} else if (!strcmp(word, "error") && sscanf(line, "%*s %511s", file) == 1) {
		load(&error_text, file);
		say("ok");
	} else if (!strcmp(word, "open") && sscanf(line, "%*s %d %d", &first, &count) == 2) {
		for (int i = first; i < first + count && i < MAX_STREAMS; i++)
			open_client(i);
		say("%lu", now_ns());
	} else if (!strcmp(word, "reopen") && sscanf(line, "%*s %d %d", &first, &count) == 2) {
		int opened = 0;
		for (int i = first; i < first + count; i++)
			if (clients[i]->closed && ++opened)
				open_client(i);
		say("%d", opened);
	} else if (!strcmp(word, "close") && sscanf(line, "%*s %d %d", &first, &count) == 2) {
		for (int i = first; i < first + count; i++)
			gone(clients[i]);
		say("ok");
	} else if (!strcmp(word, "set") && sscanf(line, "%*s %d %d %d %d", &first, &count, &answer, &deaf) == 4) {
		set_range(first, count, answer, deaf);
	} else if (!strcmp(word, "sip") && sscanf(line, "%*s %d %d", &first, &count) == 2) {
		for (int i = first; i < first + count; i++)
			if (!clients[i]->closed)
				on_readable(clients[i], 1);
		say("ok");
	} else if (!strcmp(word, "vanish") && sscanf(line, "%*s %d %d", &first, &count) == 2) {
		for (int i = first; i < first + count; i++)
			socket_vanish(clients[i]->fd);
		say("ok");
	} else if (!strcmp(word, "wait") && sscanf(line, "%*s %lu", &number) == 1) {
		wanted = number;
		say_done();
	} else if (!strcmp(word, "times") && sscanf(line, "%*s %d %d %lu", &first, &count, &number) == 3) {
		say_times(first, count, number);
	} else if (!strcmp(word, "stat")) {
		say("{\"resources\": %lu, \"messages\": %lu, \"bytes\": %lu, \"answers\": %lu, \"connected\": %lu, \"closed\": %lu}",
		    resources, messages, bytes, answers, connected, closed);
	} else {
		say("unknown command");
	}
}

static void on_ready(struct epoll_event *event)
{
	struct client *c = clients[event->data.u32];
	if (c->closed)
		return;
	if (!c->connected && event->events & (EPOLLOUT | (c->shaking ? EPOLLIN : 0))) {
		on_connecting(c);
	} else if (event->events & EPOLLOUT) {
		flush(c);
		watch(c);
	}
	if (!c->closed && !c->deaf && event->events & (EPOLLIN | EPOLLHUP | EPOLLERR))
		on_readable(c, CHUNK);
	else if (!c->closed && event->events & (EPOLLHUP | EPOLLERR))
		gone(c);
}

int main(int argc, char **argv)
{
	static struct epoll_event events[256];
	static char line[1024];
	static size_t filled;
	if (argc != 5 && argc != 6)
		fail("usage: xds_load HOST PORT PATH sotw|delta [DIRECTORY]");
	if (argc == 6)
		tls_init(argv[5]);
	server.sin_family = AF_INET;
	server.sin_port = htons(atoi(argv[2]));
	inet_pton(AF_INET, argv[1], &server.sin_addr);
	path = argv[3];
	is_sotw = !strcmp(argv[4], "sotw");
	put(&error_text, "refused", 7);
	signal(SIGPIPE, SIG_IGN); /* OpenSSL writes without MSG_NOSIGNAL */
	epoll = epoll_create1(0);
	struct epoll_event input = {.events = EPOLLIN, .data.u32 = MAX_STREAMS};
	epoll_ctl(epoll, EPOLL_CTL_ADD, 0, &input);
	for (;;) {
		int n = epoll_wait(epoll, events, 256, -1);
		for (int i = 0; i < n; i++) {
			if (events[i].data.u32 < MAX_STREAMS) {
				on_ready(&events[i]);
				continue;
			}
			ssize_t got = read(0, line + filled, sizeof line - 1 - filled);
			if (got <= 0)
				return 0;
			filled += got;
			line[filled] = 0;
			char *end;
			while ((end = strchr(line, '\n'))) {
				*end = 0;
				on_command(line);
				filled -= end + 1 - line;
				memmove(line, end + 1, filled + 1);
			}
		}
		say_done();
	}
}
