"""What a hostile pod may try, run inside it: `python escape_attempts.py TRICK ... < plan.json`.

Input: addresses as JSON. Output: JSON, outcome by trick. An outcome is "served <app>" when a server
of that app answered, "http <status>", the name of an errno, "timeout", or "closed" without an answer. Every
trick runs in a child of its own, all at once; standard library only. Called by test_escapes.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import re
import select
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TIMEOUT = 0.6
MPTCP, TCP_FASTOPEN_CONNECT, SO_MARK, CLONE_NEWNET, IP_FREEBIND = 262, 30, 36, 0x40000000, 15
NOBODY = 65534
Place = tuple[str, int]


def tcp(protocol: int = 0) -> socket.socket:
    """An IPv4 stream socket with the time limit of every trick."""
    found = socket.socket(socket.AF_INET, socket.SOCK_STREAM, protocol)
    found.settimeout(TIMEOUT)
    return found


def request(host: str = "anything", path: str = "/", *lines: str) -> bytes:
    """A request that closes its connection."""
    head = (f"GET {path} HTTP/1.1", f"Host: {host}", "Connection: close", *lines)
    return ("\r\n".join(head) + "\r\n\r\n").encode()


def talk(sock: socket.socket, data: bytes) -> str:
    """Send requests over a connected socket and say what came back: every answer, joined with ", ".

    A proxy that refuses may keep the connection open for a while: one complete answer to one request is enough.
    """
    received = b""
    with sock:
        if data:
            sock.sendall(data)
        try:
            while chunk := sock.recv(65536):
                received += chunk
                if data.count(b"HTTP/1") < 2 and complete(received):
                    break
        except TimeoutError:
            if not received:
                raise
    answers = [named(b"HTTP/1" + answer) for answer in received.split(b"HTTP/1")[1:]]
    return ", ".join(answers) or "closed"


def complete(answer: bytes) -> bool:
    """Whether a response is here with its body."""
    head, end, body = answer.partition(b"\r\n\r\n")
    length = re.search(rb"content-length: *(\d+)", head, re.IGNORECASE)
    return bool(end) and length is not None and len(body) >= int(length[1])


def named(answer: bytes) -> str:
    """Who answered, or with which status."""
    head, _, body = answer.partition(b"\r\n\r\n")
    with contextlib.suppress(ValueError, KeyError):
        return "served " + str(json.loads(body[body.index(b"{") : body.rindex(b"}") + 1])["service"])
    return f"http {head.split(b' ', 2)[1].decode()}"


# --- ways to open a connection ------------------------------------------------------------------


def plain(to: Place, host: str) -> str:
    """No trick: the yardstick of the others."""
    with tcp() as sock:
        sock.connect(to)
        return talk(sock, request(host))


def mapped(to: Place, host: str) -> str:
    """IPv4 through an IPv6 socket."""
    with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as sock:
        sock.settimeout(TIMEOUT)
        sock.connect((f"::ffff:{to[0]}", to[1]))
        return talk(sock, request(host))


def fast_open(to: Place, host: str) -> str:
    """No connect(): sendto() with MSG_FASTOPEN opens."""
    with tcp() as sock:
        sock.settimeout(None)  # non-blocking, the call would be EINPROGRESS
        limit = struct.pack("=qq", 0, int(TIMEOUT * 1e6))
        for option in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):
            sock.setsockopt(socket.SOL_SOCKET, option, limit)
        sock.sendto(request(host), socket.MSG_FASTOPEN, to)
        return talk(sock, b"")


def fast_open_connect(to: Place, host: str) -> str:
    """connect() that only opens with the first byte."""
    with tcp() as sock:
        sock.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)
        sock.connect(to)
        return talk(sock, request(host))


def mptcp(to: Place, host: str) -> str:
    """Multipath TCP, whose subflows the kernel makes."""
    with tcp(MPTCP) as sock:
        sock.connect(to)
        return talk(sock, request(host))


def marked(to: Place, host: str) -> str:
    """The marks that a proxy's packets may bear."""
    outcome = ""
    for mark in (0x200, 0x202, 0x400, 0x1337):
        with tcp() as sock:
            sock.setsockopt(socket.SOL_SOCKET, SO_MARK, mark)
            sock.connect(to)
            outcome = talk(sock, request(host))
    return outcome


def other_user(to: Place, host: str) -> str:
    """Another user id, as if that were what makes the proxy (root is Envoy's in the lab, too)."""
    os.setresuid(NOBODY, NOBODY, NOBODY)
    return plain(to, host)


def nested_cgroup(to: Place, host: str) -> str:
    """A cgroup of one's own below the pod's, named like the proxy's."""
    own = next(line for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
    mounts = (Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup"))
    directory = next(mount for mount in mounts if (mount / "cgroup.procs").exists())
    nested = directory / own.removeprefix("0::/") / f"own{os.getpid()}" / "proxy"
    nested.mkdir(parents=True, exist_ok=True)
    (nested / "cgroup.procs").write_text("0")
    try:
        return plain(to, host)
    finally:
        (nested.parents[1] / "cgroup.procs").write_text("0")
        nested.rmdir()
        nested.parent.rmdir()


def bound(to: Place, host: str) -> str:
    """Bound before it connects, to the pod's own address and a privileged port."""
    with tcp() as sock:
        sock.bind((os.environ["OWN_ADDRESS"], 600 + os.getpid() % 400))
        sock.connect(to)
        return talk(sock, request(host))


def bound_anywhere(to: Place, host: str) -> str:
    """Bound to an address that others send from, any port."""
    with tcp() as sock:
        sock.bind((os.environ["OWN_ADDRESS"], 0))
        sock.connect(to)
        return talk(sock, request(host))


def reconnected(to: Place, host: str) -> str:
    """A socket with a past: connected to what everybody may, disconnected (AF_UNSPEC), connected anew."""
    with tcp() as sock:
        sock.connect((os.environ["OPEN_ADDRESS"], int(os.environ["OPEN_PORT"])))
        libc = ctypes.CDLL(None, use_errno=True)
        unspecified = struct.pack("=H14x", socket.AF_UNSPEC)
        if libc.connect(sock.fileno(), unspecified, len(unspecified)):
            raise OSError(ctypes.get_errno(), "disconnect")
        sock.connect(to)
        return talk(sock, request(host))


def foreign_address(to: Place, host: str) -> str:
    """Bound to the address of the pod that is allowed (IP_FREEBIND: it need not be there)."""
    with tcp() as sock:
        sock.setsockopt(socket.IPPROTO_IP, IP_FREEBIND, 1)
        sock.bind((os.environ["FOREIGN_ADDRESS"], 0))
        sock.connect(to)
        return talk(sock, request(host))


def raw_syn(to: Place, host: str) -> str:
    """A SYN made by hand: no connect() for any hook to see. "answered" if a SYN-ACK came back."""
    source, port = os.environ["OWN_ADDRESS"], 40000 + os.getpid() % 20000
    head = struct.pack("!HHIIBBHHH", port, to[1], 7, 0, 5 << 4, 2, 64240, 0, 0)
    pseudo = socket.inet_aton(source) + socket.inet_aton(to[0]) + struct.pack("!BBH", 0, 6, len(head))
    words = struct.unpack(f"!{len(pseudo + head) // 2}H", pseudo + head)
    total = sum(words)
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    packet = head[:16] + struct.pack("!H", ~total & 0xFFFF) + head[18:]
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP) as sock:
        sock.sendto(packet, (to[0], 0))
        deadline = time.monotonic() + TIMEOUT
        while (left := deadline - time.monotonic()) > 0 and select.select([sock], [], [], left)[0]:
            answer = sock.recv(2048)
            offset = (answer[0] & 15) * 4
            from_port, to_port = struct.unpack_from("!HH", answer, offset)
            if (from_port, to_port) == (to[1], port) and answer[offset + 13] & 0x12 == 0x12:
                return "answered"
    return "timeout"


def datagram(to: Place, host: str) -> str:
    """UDP to the same place: nobody answers, and it opens no TCP."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(TIMEOUT)
        sock.connect(to)
        sock.send(request(host))
        return f"answered {sock.recv(2048)!r}"


def reused_port(to: Place, host: str) -> str:
    """Leave a record at the proxy by a redirected connection, then dial the proxy itself from the same port."""
    for _ in range(20):
        with tcp() as first:
            first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            first.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("=ii", 1, 0))
            first.setblocking(False)
            first.connect_ex((os.environ["REDIRECTED_ADDRESS"], int(os.environ.get("REDIRECTED_PORT", "9080"))))
            port = first.getsockname()[1]
        with tcp() as second:
            second.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                second.bind((os.environ["OWN_ADDRESS"], port))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                continue  # a trick that runs at the same time has got the port in between
            second.connect(to)
            return talk(second, request(host))
    return "no port was free"


# --- a network namespace of one's own -----------------------------------------------------------


def nested_netns(to: Place, host: str) -> str:
    """A new namespace on the pod's interface with the pod's address: the kernel does not know whose it is."""
    own = os.environ["OWN_ADDRESS"]
    inside, outside = socket.socketpair()
    child = os.fork()
    if not child:
        _unshare()
        inside.send(b"1")
        inside.recv(1)
        _ip("link set lo up", f"addr add {own}/32 dev mac0", "link set mac0 up")
        _ip("route add 169.254.1.1/32 dev mac0 scope link", "route add default via 169.254.1.1 dev mac0")
        inside.send(outcome(plain, to, host).encode())
        os._exit(0)
    outside.recv(1)
    try:
        _ip("link add link eth0 name mac0 type macvlan mode passthru", f"link set mac0 netns {child}")
        _ip(f"addr del {own}/32 dev eth0")
        outside.send(b"1")
        return outside.recv(1024).decode()
    finally:
        os.waitpid(child, 0)
        _ip(f"addr replace {own}/32 dev eth0", "link set eth0 up", "route replace 169.254.1.1/32 dev eth0 scope link")
        _ip("route replace default via 169.254.1.1 dev eth0")


def _unshare() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare")


def _ip(*commands: str) -> None:
    for command in commands:
        subprocess.run(["ip", *command.split()], check=True, capture_output=True)


# --- what is said over a connection that is allowed ---------------------------------------------


def said(data: bytes, to: Place) -> str:
    """These bytes to a place that may be reached."""
    with tcp() as sock:
        sock.connect(to)
        return talk(sock, data)


TRICKS: dict[str, Callable[[Place, str], str]] = {
    function.__name__: function
    for function in (
        plain, mapped, fast_open, fast_open_connect, mptcp, marked, other_user, nested_cgroup, bound, bound_anywhere,
        reconnected, foreign_address, raw_syn, datagram, reused_port, nested_netns,
    )
}  # fmt: skip


def outcome(function: Callable[..., str], *arguments: Any) -> str:
    """What a trick came to."""
    try:
        return function(*arguments)
    except (TimeoutError, BlockingIOError):
        return "timeout"
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, repr(error))


def together(tricks: dict[str, Callable[[], str]]) -> dict[str, str]:
    """The outcome of every trick, each in a process of its own, all at once."""
    readers = {}
    for name, trick in tricks.items():
        reader, writer = os.pipe()
        if not os.fork():
            os.write(writer, outcome(trick).encode())
            os._exit(0)
        os.close(writer)
        readers[name] = reader
    found = {}
    for name, reader in readers.items():
        with os.fdopen(reader) as answer:
            found[name] = answer.read() or "crashed"
        os.wait()
    return found


def main() -> None:
    """Plan on stdin: {"env": {...}, "tricks": [[name, trick, ip, port, host]], "said": [[name, text, ip, port]]}."""
    plan = json.load(sys.stdin)
    os.environ.update(plan["env"])
    tricks: dict[str, Callable[[], str]] = {}
    for name, trick, address, port, host in plan.get("tricks", ()):
        tricks[name] = lambda f=TRICKS[trick], a=address, p=port, h=host: f((a, p), h)  # type: ignore[misc]
    for name, text, address, port in plan.get("said", ()):
        tricks[name] = lambda t=text, a=address, p=port: said(t.encode("latin-1"), (a, p))  # type: ignore[misc]
    json.dump(together(tricks), sys.stdout)


if __name__ == "__main__":
    main()
