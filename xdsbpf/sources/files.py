"""The asyncio shell that keeps a catalog equal to files and directories on disk.

Watches with inotify (watchfiles), and looks again every few seconds for file systems that do not
tell. Reads settled files, feeds the catalog and hands every delta to `on_batch`, in the task that
runs `run`. `serve` owns one. What cannot be read keeps its objects; nothing here raises for a user's
mistake.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec
import structlog
import watchfiles

from xdsbpf.errors import SourceError
from xdsbpf.model.envoy_resource import KIND
from xdsbpf.sources.catalog import Catalog, CatalogDelta, Order
from xdsbpf.sources.envoy_reader import parse_envoy_steps
from xdsbpf.sources.envoy_validation import EnvoyValidator
from xdsbpf.sources.loading import (
    MAX_FILE_BYTES,
    STDIN,
    Found,
    check_arguments,
    is_manifest_name,
    read_bytes,
    scan,
    stamp_of,
)
from xdsbpf.sources.settling import SETTLE_S, Due, Settler
from xdsbpf.sources.yaml_reader import ParsedFile, parse_steps, unreadable_file

POLL_S: Final = 5.0
SYNC_AT_MOST_S: Final = 5.0
# Longer steps would delay ACKs of proxies that share the loop.
STEP_S: Final = 0.005

_log = structlog.get_logger()


class Scan(msgspec.Struct, frozen=True):
    """One look at all arguments: files present, why arguments are lost, (device, inode) of directories."""

    present: dict[str, Found]
    lost: dict[str, str]
    identities: dict[str, tuple[int, int]]


class Scanner:
    """Looks at the arguments and tells a deleted file from a directory that is gone."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self._arguments = tuple(arguments)
        self._identity: dict[str, tuple[int, int]] = {}
        self._gone: set[str] = set()
        self._argument_of: dict[str, str] = {}

    def look(self) -> Scan:
        """Stat everything. Cost: one stat per file. Raises: nothing; OSError makes an argument lost."""
        present: dict[str, Found] = {}
        lost: dict[str, str] = {}
        identities: dict[str, tuple[int, int]] = {}
        for index, argument in enumerate(self._arguments):
            if argument == STDIN:
                continue
            try:
                files = dict(scan(index, argument))
                identity = _identity_of(argument)
            except FileNotFoundError:
                # A file that is gone from a directory that is there was deleted.
                if not os.path.isdir(os.path.dirname(argument) or ".") or argument in self._identity:
                    lost[argument] = "the directory is gone"
                    self._gone.add(argument)
                continue
            except OSError as err:
                lost[argument] = f"it cannot be read: {err.strerror}"
                continue
            if identity is not None:
                identities[argument] = identity
                # What an unmount leaves is an empty directory with another inode.
                replaced = self._identity.get(argument, identity) != identity or argument in self._gone
                if replaced and not files:
                    lost[argument] = "the directory was replaced by an empty one"
                    continue
                self._identity[argument] = identity
                self._gone.discard(argument)
            present.update(files)
            self._argument_of.update(dict.fromkeys(files, argument))
        return Scan(present, lost, identities)

    def argument_of(self, file: str) -> str:
        """The argument that a file was last found under."""
        return self._argument_of.get(file, file)


def _identity_of(argument: str) -> tuple[int, int] | None:
    status = os.stat(argument)
    return (status.st_dev, status.st_ino) if os.path.isdir(argument) else None


class FileSource:
    """Manifests and raw Envoy resources from paths. `synced` is set when the first content was taken and handed on."""

    def __init__(
        self,
        paths: Sequence[str | Path],
        on_batch: Callable[[CatalogDelta], None],
        *,
        envoy_paths: Sequence[str | Path] = (),
        validator: EnvoyValidator | None = None,
        clock: Callable[[], float] = time.monotonic,
        settle_s: float = SETTLE_S,
        poll_s: float = POLL_S,
    ) -> None:
        """`validator` is asked about raw files before they are taken.

        Raises: ConfigError if a path does not exist, or is given for both formats.
        """
        self.catalog = Catalog()
        self._validator = validator
        self._refused: dict[str, tuple[ParsedFile, Order]] = {}
        """Newest content of the raw files that the validator refused: another file's change may be what they need."""
        self.synced = asyncio.Event()
        manifests, raw = [str(path) for path in paths], [str(path) for path in envoy_paths]
        check_arguments(manifests, raw)
        self._arguments = (*manifests, *raw)
        self._raw = frozenset(raw)
        self._on_batch = on_batch
        self._clock = clock
        self._poll_s = poll_s
        self._scanner = Scanner(self._arguments)
        self._settler = Settler(settle_s)
        self._lost: frozenset[str] = frozenset()
        self._changed = asyncio.Event()
        self._identities: dict[str, tuple[int, int]] = {}
        self._stop_watch = asyncio.Event()
        self._started = clock()

    async def run(self) -> None:
        """Watch until cancelled."""
        if STDIN in self._arguments:
            await self._take_stdin()
        watcher = asyncio.create_task(self._watch())
        try:
            while True:
                await self.step()
                await _wait_for(self._changed, self._pause())
                self._changed.clear()
        finally:
            watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watcher

    async def step(self) -> None:
        """Look once, read what has settled, and hand on what follows from it and from the time."""
        looked = self._scanner.look()
        self._note_lost(looked.lost)
        if looked.identities != self._identities:
            # The watch of a directory that was replaced sees nothing any more.
            self._identities = looked.identities
            self._stop_watch.set()
        due = self._settler.observe(
            self._clock(), looked.present, lambda file: self._scanner.argument_of(file) not in looked.lost
        )
        deltas = await self._read_due(due)
        deltas += [self.catalog.delete_file(file) for file in due.deletes]
        for file in due.deletes:
            self._settler.mark_deleted(file)
            self._refused.pop(file, None)
        deltas.append(self.catalog.tick(self._clock()))
        if self._refused and _touches_raw(merge_deltas(deltas)):
            deltas += await self._take_raw([*self._refused.values()])
        self._hand_on(merge_deltas(deltas))

    def confirm(self, file: str | None = None) -> CatalogDelta:
        """Let held removals happen; hands the delta on and returns it."""
        delta = self.catalog.confirm(self._clock(), file)
        self._hand_on(delta)
        return delta

    def _hand_on(self, delta: CatalogDelta) -> None:
        first = not self.synced.is_set() and (
            self._settler.is_settled() or self._clock() - self._started >= SYNC_AT_MOST_S
        )
        if delta or first:
            self._on_batch(delta)
            _log.info("sources.batch_taken", puts=len(delta.puts), removes=len(delta.removes))
        if first:
            self.synced.set()

    async def _read_due(self, due: Due) -> list[CatalogDelta]:
        deltas: list[CatalogDelta] = []
        raw: list[tuple[ParsedFile, Order]] = []
        for file, found in due.reads:
            parsed = await self._read(file, found)
            if parsed is None:
                continue
            self._settler.mark_read(file, found)
            if self._validator is not None and self._is_raw(file):
                raw.append((parsed, found.order))
            else:
                deltas.append(self.catalog.put_file(parsed, found.order, self._clock()))
        if raw and (ready := merge_deltas(deltas)):
            self._on_batch(ready)  # the manifests do not wait for Envoy
            deltas = []
        return deltas + await self._take_raw(raw)

    async def _take_raw(self, files: Sequence[tuple[ParsedFile, Order]]) -> list[CatalogDelta]:
        """Put raw files into the catalog, those that Envoy refuses as broken ones."""
        if self._validator is None or not files:
            return []
        judged = await self._validator.judge([parsed for parsed, _ in files], self.catalog)
        for (parsed, order), verdict in zip(files, judged, strict=True):
            self._refused.pop(parsed.file, None)
            if verdict is not parsed:
                self._refused[parsed.file] = (parsed, order)
        return [
            self.catalog.put_file(verdict, order, self._clock())
            for (_, order), verdict in zip(files, judged, strict=True)
        ]

    def _is_raw(self, file: str) -> bool:
        return self._scanner.argument_of(file) in self._raw

    async def _read(self, file: str, found: Found) -> ParsedFile | None:
        """Parsed content, or None if the file changed while it was read (it settles again then)."""
        try:
            data = read_bytes(file)
            if stamp_of(os.stat(file)) != found.stamp:
                return None
        except FileNotFoundError:
            return None
        except OSError as err:
            return unreadable_file(file, f"the file cannot be read: {err.strerror}")
        except SourceError as err:
            return unreadable_file(file, f"the file cannot be read: {err}")
        return await self._parse(file, data)

    async def _parse(self, file: str, data: bytes) -> ParsedFile:
        result: ParsedFile | None = None
        began = self._clock()
        parse = parse_envoy_steps if self._is_raw(file) else parse_steps
        for step in parse(file, data, self.catalog.previous(file)):
            result = step
            if self._clock() - began >= STEP_S:
                await asyncio.sleep(0)
                began = self._clock()
        return result if result is not None else ParsedFile(file, data, ())

    async def _take_stdin(self) -> None:
        data = await asyncio.to_thread(sys.stdin.buffer.read, MAX_FILE_BYTES + 1)
        order = (self._arguments.index(STDIN), "<stdin>")
        if len(data) > MAX_FILE_BYTES:
            parsed = unreadable_file("<stdin>", f"larger than {MAX_FILE_BYTES >> 20} MiB")
        else:
            parsed = await self._parse("<stdin>", data)
        self._on_batch(self.catalog.put_file(parsed, order, self._clock()))

    def _note_lost(self, lost: dict[str, str]) -> None:
        for argument in self._lost - lost.keys():
            self.catalog.source_found(argument)
            _log.info("sources.path_found", path=argument)
        for argument, reason in lost.items():
            self.catalog.source_lost(argument, reason)
            if argument not in self._lost:
                _log.error("sources.path_lost", path=argument, reason=reason)
        self._lost = frozenset(lost)

    def _pause(self) -> float:
        """Seconds until something is due, at most the polling interval."""
        times = (self._settler.next_deadline(), self.catalog.next_deadline())
        wait = min((time for time in times if time is not None), default=float("inf")) - self._clock()
        return max(0.005, min(wait, self._poll_s))

    async def _watch(self) -> None:
        """Wake `run` on changes; a watch that ends is set up again, and polling bridges the gap."""
        while True:
            self._stop_watch = stop = asyncio.Event()
            directories, parents = _watched(self._arguments)
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._watch_paths(directories, stop, recursive=True))
                    group.create_task(self._watch_paths(parents, stop, recursive=False))
                    group.create_task(self._look_again(stop))
            except* (OSError, RuntimeError) as failure:
                _log.warning("sources.watch_failed", reason=str(failure.exceptions[0]))
            if not stop.is_set():
                await asyncio.sleep(self._poll_s)

    async def _look_again(self, stop: asyncio.Event) -> None:
        """Changes between the last look and the start of the watch have woken nobody."""
        await _wait_for(stop, 0.2)
        self._changed.set()

    async def _watch_paths(self, paths: frozenset[str], stop: asyncio.Event, *, recursive: bool) -> None:
        names = frozenset(os.path.basename(argument) for argument in self._arguments)

        def is_ours(_: watchfiles.Change, path: str) -> bool:
            name = os.path.basename(path)
            return is_manifest_name(name) or name in names or name.startswith("..")

        if not paths:
            return
        changes = watchfiles.awatch(
            *paths,
            watch_filter=is_ours,
            debounce=50,
            step=20,
            stop_event=stop,
            recursive=recursive,
            ignore_permission_denied=True,
        )
        async for _ in changes:
            self._changed.set()


async def _wait_for(event: asyncio.Event, seconds: float) -> None:
    """Until the event or the time. Of `asyncio.wait_for`, Python 3.11 forgets a cancellation that meets the event."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()


def _watched(arguments: Sequence[str]) -> tuple[frozenset[str], frozenset[str]]:
    """(directories to watch whole, directories whose entries are watched).

    A file is watched through its directory, since editors replace files; so is a directory, to see
    it come back.
    """
    paths = [argument for argument in arguments if argument != STDIN]
    whole = frozenset(path for path in paths if os.path.isdir(path))
    parents = frozenset(os.path.dirname(os.path.abspath(path)) for path in paths)
    return whole, frozenset(parent for parent in parents if os.path.isdir(parent))


def _touches_raw(delta: CatalogDelta) -> bool:
    return any(id.kind == KIND for id in (*(id for id, _ in delta.puts), *delta.removes))


def merge_deltas(deltas: Sequence[CatalogDelta]) -> CatalogDelta:
    """One delta with the effect of several in a row; the last word about an object counts."""
    puts = {}
    removes = set()
    for delta in deltas:
        for object_id, manifest in delta.puts:
            puts[object_id] = manifest
            removes.discard(object_id)
        for object_id in delta.removes:
            puts.pop(object_id, None)
            removes.add(object_id)
    return CatalogDelta(tuple((key, puts[key]) for key in sorted(puts)), tuple(sorted(removes)))
