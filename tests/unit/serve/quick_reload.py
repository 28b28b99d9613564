"""`xdsbpf` with certificates looked at fifty times a second.

`python -m tests.unit.serve.quick_reload [broken] serve …`; `broken`: the server takes a new key beside the certificate
that it had, which nothing checks any more.
"""

from __future__ import annotations

import sys

import msgspec

from xdsbpf.cli.main import main
from xdsbpf.xds import certificates
from xdsbpf.xds.tls import Material, TlsFiles

POLL_S = 0.02


def break_reload() -> None:
    """Take the key alone."""
    first: list[Material] = []
    sound = certificates.read_material

    def read(files: TlsFiles, now: float) -> Material:
        if not first:
            first.append(sound(files, now))
        return msgspec.structs.replace(first[0], key=files.key.read_bytes())

    certificates.read_material = read


if __name__ == "__main__":
    certificates.POLL_S = POLL_S
    if sys.argv[1] == "broken":
        del sys.argv[1]
        break_reload()
    main()
