"""Paths named on the command line -> files, their bytes, and a catalog read in one go.

`load_once` serves `translate`, `analyze`, `diff` and the lab; `scan` and `read_bytes` are shared with
the watcher in `files`. Blocking file I/O lives here and nowhere else in sources.
"""

from __future__ import annotations

import asyncio
import os
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from xdsbpf.errors import ConfigError, SourceError
from xdsbpf.sources.catalog import Catalog, Order
from xdsbpf.sources.envoy_reader import parse_envoy_file
from xdsbpf.sources.envoy_validation import EnvoyValidator
from xdsbpf.sources.yaml_reader import ParsedFile, parse_file, unreadable_file

SUFFIXES: Final = (".yaml", ".yml", ".json")
STDIN: Final = "-"
MAX_FILE_BYTES: Final = 64 << 20

Parser = Callable[[str, bytes], ParsedFile]
"""(name of the file, content) -> what is in it."""


class Stamp(msgspec.Struct, frozen=True):
    """What must not change while a file is read: size in bytes, mtime in ns, device and inode."""

    size: int
    mtime_ns: int
    device: int
    inode: int


class Found(msgspec.Struct, frozen=True):
    """A manifest file: its place in the order of files and its stamp."""

    order: Order
    stamp: Stamp


def load_once(
    paths: Sequence[str | Path],
    *,
    envoy_paths: Sequence[str | Path] = (),
    stdin: bytes | None = None,
    validator: EnvoyValidator | None = None,
) -> Catalog:
    """Read files and directories into a new catalog, without waiting for files to settle.

    Args:
        paths: files, directories (recursive: *.yaml, *.yml, *.json in path order) or `-`.
        envoy_paths: files and directories of raw Envoy resources.
        validator: is asked about those files before they are taken.
        stdin: content of `-`; read from the process's own standard input if left out.

    Raises: ConfigError if a path does not exist. What cannot be read is a diagnostic of the catalog.
    """
    catalog = Catalog()
    manifests, raw = [str(path) for path in paths], [str(path) for path in envoy_paths]
    check_arguments(manifests, raw)
    readers: list[tuple[str, Parser]] = [(path, parse_file) for path in manifests]
    readers += [(path, parse_envoy_file) for path in raw]
    judged: list[tuple[ParsedFile, Order]] = []
    for index, (argument, read) in enumerate(readers):
        if argument == STDIN:
            data = sys.stdin.buffer.read(MAX_FILE_BYTES + 1) if stdin is None else stdin
            catalog.put_file(parse_file("<stdin>", data), (index, "<stdin>"), 0.0)
            continue
        for file, found in scan(index, argument):
            parsed = read_file(file, read)
            if validator is not None and read is parse_envoy_file:
                judged.append((parsed, found.order))
            else:
                catalog.put_file(parsed, found.order, 0.0)
    if validator is not None and judged:
        verdicts = asyncio.run(validator.judge([parsed for parsed, _ in judged], catalog))
        for verdict, (_, order) in zip(verdicts, judged, strict=True):
            catalog.put_file(verdict, order, 0.0)
    return catalog


def read_texts(paths: Sequence[str | Path], *, stdin: bytes | None = None) -> tuple[tuple[str, bytes], ...]:
    """(name, content) of every manifest file under these paths, for `load_texts`; `stdin` see `load_once`.

    Raises: ConfigError for a path that does not exist, or a file that cannot be read.
    """
    check_arguments([str(path) for path in paths], ())
    found: list[tuple[str, bytes]] = []
    for index, argument in enumerate(map(str, paths)):
        if argument == STDIN:
            found.append(("<stdin>", sys.stdin.buffer.read(MAX_FILE_BYTES + 1) if stdin is None else stdin))
            continue
        for file, _ in scan(index, argument):
            try:
                found.append((file, read_bytes(file, waits=True)))
            except (OSError, SourceError) as error:
                raise ConfigError(f"{file} cannot be read: {error}") from error
    return tuple(found)


def load_texts(manifests: Iterable[tuple[str, bytes]], raw: Iterable[tuple[str, bytes]] = ()) -> Catalog:
    """A catalog of texts that somebody else has read: (name, content) of manifests and of raw Envoy resources."""
    catalog = Catalog()
    parsed = [*(parse_file(*entry) for entry in manifests), *(parse_envoy_file(*entry) for entry in raw)]
    for index, entry in enumerate(parsed):
        catalog.put_file(entry, (index, entry.file), 0.0)
    return catalog


def check_arguments(paths: Sequence[str], envoy_paths: Sequence[str]) -> None:
    """Raises: ConfigError for a path that does not exist, or whose files would be read in both formats."""
    for argument in (*paths, *envoy_paths):
        if argument != STDIN and not os.path.exists(argument):
            raise ConfigError(f"{argument}: no such file or directory", hint="name manifest files or directories")
    manifests = [Path(path).resolve() for path in paths if path != STDIN]
    for envoy_path in envoy_paths:
        if envoy_path == STDIN:
            raise ConfigError("Envoy resources cannot be read from standard input", hint="name a file")
        raw = Path(envoy_path).resolve()
        for manifest in manifests:
            if raw == manifest or raw in manifest.parents or manifest in raw.parents:
                text = f"{envoy_path} holds Envoy resources, and -f reads it as manifests as well"
                raise ConfigError(text, hint="keep the two in directories of their own")


def scan(index: int, argument: str) -> Iterator[tuple[str, Found]]:
    """(path, Found) of every manifest file under a command-line argument, in path order.

    Hidden files and directories inside a directory are left out (editors, git, Kubernetes' ..data).
    Raises: OSError if the argument or a directory in it cannot be listed.
    """
    if not os.path.isdir(argument):
        yield argument, Found((index, argument), stamp_of(os.stat(argument)))
        return
    files: list[str] = []
    for root, directories, names in os.walk(argument, onerror=_raise):
        directories[:] = [name for name in directories if not name.startswith(".")]
        files += [os.path.join(root, name) for name in names if is_manifest_name(name)]
    for file in sorted(files):
        try:
            status = os.stat(file)
        except FileNotFoundError:
            continue
        if stat.S_ISREG(status.st_mode):
            yield file, Found((index, file), stamp_of(status))


def _raise(error: OSError) -> None:
    raise error


def is_manifest_name(name: str) -> bool:
    """Whether a file in a watched directory is read."""
    return name.endswith(SUFFIXES) and not name.startswith(".")


def stamp_of(status: os.stat_result) -> Stamp:
    """Stamp of a stat result."""
    return Stamp(status.st_size, status.st_mtime_ns, status.st_dev, status.st_ino)


def read_bytes(file: str, *, waits: bool = False) -> bytes:
    """Content of a regular file of at most 64 MiB. Raises: OSError; SourceError if it is too large or no such file.

    Unless `waits` it never blocks: a watcher must not be held up by a pipe that nobody writes to.
    """
    flags = os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC | (0 if waits else os.O_NONBLOCK)
    with open(os.open(file, flags), "rb") as stream:
        mode = os.fstat(stream.fileno()).st_mode
        if not stat.S_ISREG(mode) and not (waits and stat.S_ISFIFO(mode)):
            raise SourceError("it is not a regular file; a pipe can be given as standard input (-f -)")
        data = stream.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise SourceError(f"larger than {MAX_FILE_BYTES >> 20} MiB", hint="split the file")
    return data


def read_file(file: str, parse: Parser = parse_file) -> ParsedFile:
    """Read and parse one file; a failure to read is the parsed file's problem."""
    try:
        data = read_bytes(file, waits=True)
    except OSError as err:
        return unreadable_file(file, f"the file cannot be read: {err.strerror}")
    except SourceError as err:
        return unreadable_file(file, f"the file cannot be read: {err}")
    return parse(file, data)
