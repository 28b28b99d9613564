// SPDX-License-Identifier: Apache-2.0
/*
 * An HTTP/1.1 client whose own cost is small: requests as fast as they are answered, the time of a connect, or a steady
 * watch over who answers. One thread, one address. Commands come as lines on standard input, one line of JSON each on
 * standard output; see tests/bench/load/http.py.
 *
 *   http_load ADDRESS PORT HOST
 *
 *   keep CONNECTIONS MS            requests on connections that are kept
 *   connect COUNT                  one after the other: connect, a request, its answer, reset
 *   watch short|keep PAUSE_US TIMEOUT_MS    until the next line; says "answer NS BODY" when another body comes
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MAX_CONNECTIONS 256
#define MAX_SAMPLES (1 << 21)
#define ANSWER_BYTES 8192

static struct sockaddr_in server = {.sin_family = AF_INET};
static char request[512];
static size_t request_size;
static uint32_t samples[MAX_SAMPLES], sample_count;

struct answer {
	char data[ANSWER_BYTES];
	size_t size;
	uint64_t asked_ns;
};

static uint64_t now_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static void sample(uint64_t ns)
{
	if (sample_count < MAX_SAMPLES)
		samples[sample_count++] = ns < UINT32_MAX ? ns : UINT32_MAX;
}

static int by_value(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
	return x < y ? -1 : x > y;
}

static double percentile_us(double share)
{
	qsort(samples, sample_count, sizeof samples[0], by_value);
	return sample_count ? samples[(size_t)(share * (sample_count - 1))] / 1e3 : 0;
}

/* 1: the answer is complete, its body at *body; 0: more is to come; -1: no answer of ours. Bodies need a length. */
static int parse(struct answer *in, const char **body, size_t *length, int *status)
{
	in->data[in->size] = 0;
	char *end = strstr(in->data, "\r\n\r\n");
	if (!end)
		return in->size < ANSWER_BYTES - 1 ? 0 : -1;
	char *field = strcasestr(in->data, "\r\ncontent-length:");
	if (!field || field > end || sscanf(in->data, "HTTP/1.1 %d", status) != 1)
		return -1;
	*body = end + 4;
	*length = strtoul(field + 17, NULL, 10);
	size_t whole = *body - in->data + *length;
	return whole >= ANSWER_BYTES ? -1 : in->size >= whole;
}

/* A connected socket, or -1 with errno. `timeout_ms` bounds the handshake, and every read and write after it. */
static int dial(int timeout_ms)
{
	int fd = socket(AF_INET, SOCK_STREAM, 0), on = 1;
	struct timeval limit = {timeout_ms / 1000, timeout_ms % 1000 * 1000};
	/* Reset at close: otherwise the ports of this address would run out in TIME_WAIT. */
	struct linger reset = {1, 0};
	if (fd < 0)
		fail("socket");
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
	setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
	if (!connect(fd, (struct sockaddr *)&server, sizeof server))
		return fd;
	int error = errno;
	close(fd);
	errno = error;
	return -1;
}

/* One request on a blocking socket: its status, or -1 if there was no whole answer. */
static int ask(int fd, struct answer *in, const char **body, size_t *length)
{
	int status = 0, state;
	in->size = 0;
	if (send(fd, request, request_size, MSG_NOSIGNAL) != (ssize_t)request_size)
		return -1;
	do {
		ssize_t got = recv(fd, in->data + in->size, ANSWER_BYTES - 1 - in->size, 0);
		if (got <= 0)
			return -1;
		in->size += got;
		state = parse(in, body, length, &status);
	} while (!state);
	return state < 0 ? -1 : status;
}

static void keep(int connections, int ms)
{
	static struct answer answers[MAX_CONNECTIONS];
	int fds[MAX_CONNECTIONS], epoll = epoll_create1(0);
	uint64_t failed = 0, served = 0, start, end;
	if (connections < 1 || connections > MAX_CONNECTIONS)
		fail("connections");
	for (int i = 0; i < connections; i++) {
		struct epoll_event event = {.events = EPOLLIN, .data.u32 = i};
		if ((fds[i] = dial(2000)) < 0)
			fail("connect");
		epoll_ctl(epoll, EPOLL_CTL_ADD, fds[i], &event);
	}
	sample_count = 0;
	start = now_ns();
	end = start + (uint64_t)ms * 1000000;
	for (int i = 0; i < connections; i++) {
		answers[i].size = 0;
		answers[i].asked_ns = start;
		if (send(fds[i], request, request_size, MSG_NOSIGNAL) < 0)
			fail("send");
	}
	uint64_t now = start;
	while (now < end) {
		struct epoll_event ready[64];
		int count = epoll_wait(epoll, ready, 64, 100);
		now = now_ns();
		for (int n = 0; n < count; n++) {
			int i = ready[n].data.u32, status = 0;
			struct answer *in = &answers[i];
			const char *body;
			size_t length;
			ssize_t got = recv(fds[i], in->data + in->size, ANSWER_BYTES - 1 - in->size, 0);
			int state = got <= 0 ? -1 : (in->size += got, parse(in, &body, &length, &status));
			if (!state)
				continue;
			if (state < 0) { /* this connection is over */
				failed++;
				epoll_ctl(epoll, EPOLL_CTL_DEL, fds[i], NULL);
				continue;
			}
			status == 200 ? served++ : failed++;
			sample(now - in->asked_ns);
			in->size = 0;
			in->asked_ns = now;
			if (send(fds[i], request, request_size, MSG_NOSIGNAL) < 0)
				failed++;
		}
	}
	for (int i = 0; i < connections; i++)
		close(fds[i]);
	close(epoll);
	printf("{\"served\": %lu, \"failed\": %lu, \"seconds\": %.6f, \"p50_us\": %.1f, \"p99_us\": %.1f}\n", served, failed,
	       (now - start) / 1e9, percentile_us(0.5), percentile_us(0.99));
}

static void connects(int count)
{
	struct answer in;
	uint64_t failed = 0, start = now_ns();
	sample_count = 0;
	for (int i = 0; i < count; i++) {
		const char *body;
		size_t length;
		uint64_t before = now_ns();
		int fd = dial(2000);
		uint64_t after = now_ns();
		if (fd < 0) {
			failed++;
			continue;
		}
		sample(after - before);
		failed += ask(fd, &in, &body, &length) != 200;
		close(fd);
	}
	double seconds = (now_ns() - start) / 1e9;
	printf("{\"served\": %lu, \"failed\": %lu, \"seconds\": %.6f, \"p50_us\": %.2f, \"p99_us\": %.2f}\n", count - failed,
	       failed, seconds, percentile_us(0.5), percentile_us(0.99));
}

static bool is_told_to_stop(void)
{
	struct pollfd input = {.fd = STDIN_FILENO, .events = POLLIN};
	return poll(&input, 1, 0) > 0;
}

static void watch(bool is_kept, int pause_us, int timeout_ms)
{
	static uint64_t not_connected[256];
	struct answer in;
	char last[ANSWER_BYTES] = "";
	uint64_t connected = 0, served = 0, unanswered = 0, refused = 0;
	int fd = -1;
	memset(not_connected, 0, sizeof not_connected);
	while (!is_told_to_stop()) {
		const char *body;
		size_t length;
		if (fd < 0) {
			fd = dial(timeout_ms);
			fd < 0 ? not_connected[errno & 255]++ : connected++;
		}
		if (fd >= 0) {
			int status = ask(fd, &in, &body, &length);
			if (status == 200) {
				served++;
				if (strlen(last) != length || memcmp(last, body, length)) {
					memcpy(last, body, length);
					last[length] = 0;
					printf("answer %lu %s\n", now_ns(), last);
					fflush(stdout);
				}
			} else if (status < 0)
				unanswered++;
			else
				refused++;
			if (!is_kept || status < 0) {
				close(fd);
				fd = -1;
			}
		}
		usleep(pause_us);
	}
	if (fd >= 0)
		close(fd);
	printf("{\"served\": %lu, \"connected\": %lu, \"unanswered\": %lu, \"refused\": %lu, \"not_connected\": {", served,
	       connected, unanswered, refused);
	const char *comma = "";
	for (int i = 0; i < 256; i++)
		if (not_connected[i]) {
			printf("%s\"%s\": %lu", comma, strerrorname_np(i), not_connected[i]);
			comma = ", ";
		}
	printf("}}\n");
}

int main(int count, char **arguments)
{
	char line[256], how[16];
	int first, second;
	if (count != 4 || inet_pton(AF_INET, arguments[1], &server.sin_addr) != 1) {
		fprintf(stderr, "usage: http_load ADDRESS PORT HOST\n");
		return 64;
	}
	server.sin_port = htons(atoi(arguments[2]));
	request_size = snprintf(request, sizeof request, "GET / HTTP/1.1\r\nhost: %.400s\r\n\r\n", arguments[3]);
	setvbuf(stdin, NULL, _IONBF, 0); /* what poll(2) says of the input must be true */
	while (fgets(line, sizeof line, stdin)) {
		if (sscanf(line, "keep %d %d", &first, &second) == 2)
			keep(first, second);
		else if (sscanf(line, "connect %d", &first) == 1)
			connects(first);
		else if (sscanf(line, "watch %15s %d %d", how, &first, &second) == 3)
			watch(!strcmp(how, "keep"), first, second);
		else if (!strcmp(line, "stop\n"))
			continue;
		else
			fail(line);
		fflush(stdout);
	}
	return 0;
}
