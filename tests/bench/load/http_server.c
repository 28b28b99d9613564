// SPDX-License-Identifier: Apache-2.0
/*
 * An HTTP/1.1 server that answers every request with the same body, at next to no cost of its own. One thread; ends with
 * its standard input. Says "listening" when it does.
 *
 *   http_server ADDRESS PORT BODY BYTES     the body is padded with dots to that size
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define MAX_BODY 4096

static char answer[MAX_BODY + 256];
static size_t answer_size;

/* Requests are small and come whole: one end of a head is one request. */
static int serve(int fd)
{
	char data[16384];
	ssize_t got = recv(fd, data, sizeof data - 1, 0);
	if (got <= 0)
		return -1;
	data[got] = 0;
	for (char *at = data; (at = strstr(at, "\r\n\r\n")); at += 4)
		if (send(fd, answer, answer_size, MSG_NOSIGNAL) < 0)
			return -1;
	return 0;
}

int main(int count, char **arguments)
{
	struct sockaddr_in address = {.sin_family = AF_INET};
	struct epoll_event event = {.events = EPOLLIN}, ready[64];
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), epoll = epoll_create1(0), on = 1;
	if (count != 5 || inet_pton(AF_INET, arguments[1], &address.sin_addr) != 1 || atoi(arguments[4]) > MAX_BODY) {
		fprintf(stderr, "usage: http_server ADDRESS PORT BODY BYTES\n");
		return 64;
	}
	int size = atoi(arguments[4]), named = strlen(arguments[3]);
	char body[MAX_BODY + 1];
	memset(body, '.', sizeof body);
	memcpy(body, arguments[3], named < size ? named : size);
	answer_size = snprintf(answer, sizeof answer, "HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%.*s", size, size, body);
	address.sin_port = htons(atoi(arguments[2]));
	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
	if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 4096)) {
		perror("listen");
		return 1;
	}
	socklen_t length = sizeof address;
	getsockname(listener, (struct sockaddr *)&address, &length);
	printf("listening %d\n", ntohs(address.sin_port));
	fflush(stdout);
	event.data.fd = listener;
	epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event);
	event.data.fd = STDIN_FILENO;
	epoll_ctl(epoll, EPOLL_CTL_ADD, STDIN_FILENO, &event);
	for (;;) {
		int found = epoll_wait(epoll, ready, 64, -1);
		for (int i = 0; i < found; i++) {
			int fd = ready[i].data.fd, accepted;
			if (fd == STDIN_FILENO) {
				if (read(fd, body, sizeof body) <= 0)
					return 0;
			} else if (fd == listener) {
				while ((accepted = accept(listener, NULL, NULL)) >= 0) {
					setsockopt(accepted, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
					event.data.fd = accepted;
					epoll_ctl(epoll, EPOLL_CTL_ADD, accepted, &event);
				}
			} else if (serve(fd))
				close(fd);
		}
	}
}
