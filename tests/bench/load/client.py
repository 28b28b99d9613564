"""Many xDS clients in a process of their own, built from the C files beside this one and driven by lines of text.

In: requests as raw messages, commands. Out: times on the monotonic clock, which both processes share, and counters.
Used by the benchmarks and by the tests of faults.
"""

from __future__ import annotations

import enum
import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import msgspec

from tests.bench.load.processes import Lines
from tests.bench.load.programs import built
from xdsbpf.xds import protocol
from xdsbpf.xds.services import METHODS, Variant

NUMBER = "@@@@@@"
"""In a request: six digits, the number of the client."""


class Answer(enum.IntEnum):
    """What a client makes of a response; FLIP takes every other one, STALE refuses with a nonce that never was."""

    ACK = 0
    NACK = 1
    FLIP = 2
    STALE = 3
    SILENT = 4


class Times(msgspec.Struct, frozen=True):
    """When clients got their last response, in seconds after a moment; `clients` are those that got one since."""

    clients: int
    p50: float
    p99: float
    max: float


class LoadClient:
    """Clients by number, from 0; `with` it, and they are gone at the end."""

    def __init__(
        self,
        address: str,
        *,
        method: str = protocol.DELTA_ADS,
        cpu: int | None = None,
        identities: Path | None = None,
    ) -> None:
        """`identities`: what `identities.write` has written, for mutual TLS; each client has its own."""
        host, _, port = address.rpartition(":")
        variant = "delta" if METHODS[method].variant is Variant.DELTA else "sotw"
        program = built("xds_load", "ssl", "crypto")
        self._lines = Lines(
            [str(program), host, port, method, variant, *([str(identities)] if identities else [])], cpu=cpu
        )
        self._files = tempfile.TemporaryDirectory()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()
        self._files.cleanup()

    @property
    def pid(self) -> int:
        return self._lines.pid

    @property
    def cpu_s(self) -> float:
        return self._lines.cpu_s

    def requests(self, messages: Iterable[bytes], *, follow: bool = False) -> None:
        """What a client sends when it has connected; `follow`: and then asks for the endpoints of new clusters."""
        data = b"".join(len(message).to_bytes(4, "big") + message for message in messages)
        self._ask(f"requests {int(follow)} {self._file(data)}")

    def refusal(self, text: bytes) -> None:
        """The text of the NACKs from now on."""
        self._ask(f"error {self._file(text)}")

    def open(self, first: int, count: int) -> float:
        """Connect clients; returns when it was. They send their requests and answer what comes."""
        return int(self._ask(f"open {first} {count}")) / 1e9

    def reopen(self, first: int, count: int) -> int:
        """Connect those again that have lost their connection; returns how many."""
        return int(self._ask(f"reopen {first} {count}"))

    def close(self, first: int, count: int) -> None:
        """Close their sockets, without a word."""
        self._ask(f"close {first} {count}")

    def set(self, first: int, count: int, answer: Answer = Answer.ACK, *, deaf: bool = False) -> None:
        """How clients answer from now on; a deaf one does not read from its socket."""
        self._ask(f"set {first} {count} {int(answer)} {int(deaf)}")

    def sip(self, first: int, count: int) -> None:
        """Let clients, who are deaf otherwise, take one byte each from their sockets."""
        self._ask(f"sip {first} {count}")

    def vanish(self, first: int, count: int) -> None:
        """To the server, the clients' machines are gone from now on: no segment of it is acknowledged."""
        self._ask(f"vanish {first} {count}")

    def wait(self, resources: int, timeout_s: float = 120.0) -> float:
        """Until all clients together have received that many resources; returns when it was. Raises: TimeoutError."""
        return int(self._ask(f"wait {resources}", timeout_s)) / 1e9

    def times(self, first: int, count: int, since: float) -> Times:
        """When the clients got their last response, after `since`."""
        clients, *values = self._ask(f"times {first} {count} {int(since * 1e9)}").split()
        p50, p99, longest = (int(value) / 1e9 for value in values)
        return Times(int(clients), p50, p99, longest)

    def stat(self) -> dict[str, Any]:
        """Resources, messages and bytes received, answers sent, connections made and lost; of all clients."""
        found: dict[str, Any] = json.loads(self._ask("stat"))
        return found

    def _file(self, data: bytes) -> Path:
        path = Path(self._files.name) / "data"
        path.write_bytes(data)
        return path

    def _ask(self, line: str, timeout_s: float = 30.0) -> str:
        return self._lines.ask(line, timeout_s)
