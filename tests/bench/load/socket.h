// SPDX-License-Identifier: Apache-2.0
/*
 * The socket of one client: plain TCP, or mutual TLS with a certificate of its own.
 *
 * As recv(2) and send(2): -1 with EAGAIN if there is nothing to be done now. Included by client.h.
 */
#pragma once
#include <linux/filter.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <sys/socket.h>

#include "bytes.h"

static SSL_CTX *tls; /* NULL: plain */
static const char *identities; /* directory: ca.pem, and for each client NUMBER.pem with its certificate and key */

static void tls_fail(const char *what)
{
	ERR_print_errors_fp(stderr);
	errno = EPROTO;
	fail(what);
}

static void tls_init(const char *directory)
{
	char path[600];
	identities = directory;
	tls = SSL_CTX_new(TLS_client_method());
	snprintf(path, sizeof path, "%s/ca.pem", directory);
	if (!SSL_CTX_load_verify_locations(tls, path, NULL))
		tls_fail(path);
	SSL_CTX_set_verify(tls, SSL_VERIFY_PEER, NULL);
	SSL_CTX_set_alpn_protos(tls, (const uint8_t *)"\2h2", 3);
	SSL_CTX_set_mode(tls, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER | SSL_MODE_RELEASE_BUFFERS);
}

static SSL *tls_open(int fd, int number)
{
	char path[600];
	SSL *ssl = SSL_new(tls);
	snprintf(path, sizeof path, "%s/%06d.pem", identities, number);
	if (SSL_use_certificate_file(ssl, path, SSL_FILETYPE_PEM) != 1 ||
	    SSL_use_PrivateKey_file(ssl, path, SSL_FILETYPE_PEM) != 1 || !SSL_set_fd(ssl, fd))
		tls_fail(path);
	SSL_set_connect_state(ssl);
	return ssl;
}

static ssize_t tls_result(SSL *ssl, int done)
{
	int why = SSL_get_error(ssl, done);
	ERR_clear_error();
	if (why == SSL_ERROR_WANT_READ || why == SSL_ERROR_WANT_WRITE)
		errno = EAGAIN;
	else if (why == SSL_ERROR_ZERO_RETURN)
		return 0;
	else
		errno = EPROTO;
	return -1;
}

/* 1: done; -1: as above. */
static ssize_t socket_shake_hands(SSL *ssl)
{
	int done = ssl ? SSL_do_handshake(ssl) : 1;
	return done == 1 ? 1 : tls_result(ssl, done) ? -1 : (errno = EPROTO, -1);
}

static ssize_t socket_receive(int fd, SSL *ssl, void *to, size_t size)
{
	if (!ssl)
		return recv(fd, to, size, 0);
	size_t filled = 0;
	while (filled < size) { /* a record of 16 KB at a time, and none may stay behind: epoll would not tell */
		int got = SSL_read(ssl, (uint8_t *)to + filled, size - filled);
		if (got <= 0)
			return filled ? (ssize_t)filled : tls_result(ssl, got);
		filled += got;
	}
	return filled;
}

static ssize_t socket_send(int fd, SSL *ssl, const void *from, size_t size)
{
	if (!ssl)
		return send(fd, from, size, MSG_NOSIGNAL);
	int done = SSL_write(ssl, from, size);
	return done > 0 ? done : tls_result(ssl, done);
}

/* Drop what comes, before TCP sees it: to the server the machine is gone, for nothing is ever acknowledged. */
static void socket_vanish(int fd)
{
	struct sock_filter nothing = BPF_STMT(BPF_RET | BPF_K, 0);
	struct sock_fprog program = {1, &nothing};
	if (setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program))
		fail("SO_ATTACH_FILTER");
}
