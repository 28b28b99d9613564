"""Asks a real Envoy (`--mode validate`) about new texts of raw files before anything of them is taken.

In: parsed files and the raw resources in force. Out: the same files, or in place of one that Envoy refuses a broken one
with what Envoy says at the place of the resource, so that its last good content stays. Each run is a process of its
own with a time limit; it binds nothing and connects to nothing. `files` awaits it, `loading` runs it in place.
"""

from __future__ import annotations

import asyncio
import re
import tempfile
from collections.abc import Generator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

import structlog

from xdsbpf.compile.raw.resources import Globs
from xdsbpf.compile.raw.validation import Verdict, first_refused
from xdsbpf.diagnostics import Diagnostic, Location, ObjectId, Severity
from xdsbpf.model import codes
from xdsbpf.model.envoy_resource import EnvoyResource
from xdsbpf.sources.catalog import Catalog
from xdsbpf.sources.yaml_reader import ParsedFile, broken_file

LIMIT_S: Final = 10.0
MAX_SAID: Final = 2000
_REASON: Final = re.compile(r"error initializing configuration '[^']*': (?P<reason>.*)", re.DOTALL)

_log = structlog.get_logger()


class EnvoyValidator:
    """Judges raw files with the Envoy at `binary`; a run that takes longer than `limit_s` seconds counts as refusal."""

    def __init__(self, binary: Path, limit_s: float = LIMIT_S) -> None:
        """Nothing is run yet."""
        self.binary = binary
        self.limit_s = limit_s

    async def judge(self, files: Sequence[ParsedFile], catalog: Catalog) -> list[ParsedFile]:
        """The files, those that Envoy refuses replaced. They are judged in order, each beside what is in force and
        the good ones before it, without its own earlier content. Cost: one run per list of globs if all are good."""
        manifests = catalog.manifests()
        present = {id: entry for id, entry in manifests.items() if isinstance(entry, EnvoyResource)}
        good = [parsed for parsed in files if not parsed.problems]
        earlier = {parsed.file: _ids(catalog.previous(parsed.file)) for parsed in good}
        if len(good) > 1:
            everything = {entry.id: entry for parsed in good for entry in _resources(parsed)}
            gone = frozenset[ObjectId]().union(*earlier.values())
            if await self._refusal(list(everything.values()), present, gone) is None:
                return list(files)
        judged = {parsed.file: parsed for parsed in files}
        for parsed in good:
            new = _resources(parsed)
            found = await self._refusal(new, present, earlier[parsed.file])
            if found is not None:
                _log.warning("sources.envoy_refused", path=parsed.file, reason=found[1])
                judged[parsed.file] = _refused(parsed, *found)
                continue
            present = {id: entry for id, entry in present.items() if id not in earlier[parsed.file]}
            present.update((entry.id, entry) for entry in new)
        return list(judged.values())

    async def _refusal(
        self, new: Sequence[EnvoyResource], present: Mapping[ObjectId, EnvoyResource], gone: frozenset[ObjectId]
    ) -> tuple[EnvoyResource, Verdict] | None:
        """The first of `new` that is refused, and why: for each list of globs, what an Envoy that it names sees."""
        replaced = gone.union(entry.id for entry in new)
        kept = [entry for id, entry in present.items() if id not in replaced]
        for nodes in dict.fromkeys(entry.nodes for entry in new):
            mine = [entry for entry in new if entry.nodes == nodes]
            beside = _seen([*kept, *(entry for entry in new if entry.nodes != nodes)], nodes, mine)
            found = await self._search(first_refused(mine, beside))
            if found is not None:
                return mine[found[0]], found[1]
        return None

    async def _search(
        self, search: Generator[bytes, Verdict, tuple[int, Verdict] | None]
    ) -> tuple[int, Verdict] | None:
        try:
            bootstrap = next(search)
            while True:
                bootstrap = search.send(await self._run(bootstrap))
        except StopIteration as end:
            result: tuple[int, Verdict] | None = end.value
            return result

    async def _run(self, bootstrap: bytes) -> Verdict:
        """Envoy's verdict on an encoded bootstrap."""
        # Security: secrets are in it. The directory is the owner's alone.
        with tempfile.TemporaryDirectory(prefix="xdsbpf-validate-") as directory:
            path = Path(directory) / "bootstrap.pb"
            path.write_bytes(bootstrap)
            options = ("--disable-hot-restart", "--concurrency", "1", "-l", "error")
            command = (str(self.binary), "--mode", "validate", "-c", str(path), *options)
            try:
                process = await asyncio.create_subprocess_exec(
                    *command,
                    cwd=directory,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.DEVNULL,
                    stderr=asyncio.subprocess.PIPE,
                )
            except OSError as error:
                return f"{self.binary} cannot be run: {error.strerror}"
            try:
                async with asyncio.timeout(self.limit_s):
                    _, said = await process.communicate()
            except TimeoutError:
                return f"{self.binary} gave no verdict within {self.limit_s:g} s"
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()
        return "" if process.returncode == 0 else _reason(said.decode(errors="replace"), process.returncode)


def _reason(said: str, code: int | None) -> Verdict:
    found = _REASON.search(said)
    text = found["reason"] if found is not None else said
    return text.strip()[:MAX_SAID] or f"Envoy ended with {code} and said nothing"


def _resources(parsed: ParsedFile) -> list[EnvoyResource]:
    return [read.manifest for _, _, read in parsed.objects() if isinstance(read.manifest, EnvoyResource)]


def _ids(parsed: ParsedFile | None) -> frozenset[ObjectId]:
    return frozenset(read.id for _, _, read in parsed.objects()) if parsed is not None else frozenset()


def _seen(others: Iterable[EnvoyResource], nodes: Globs, mine: Iterable[EnvoyResource]) -> list[EnvoyResource]:
    """What an Envoy that `nodes` name sees beside `mine`: its own globs win over none."""
    taken = {(entry.type_url, entry.resource_name) for entry in mine}
    found: dict[tuple[str, str], EnvoyResource] = {}
    for entry in sorted(others, key=lambda entry: entry.nodes):
        key = (entry.type_url, entry.resource_name)
        if entry.nodes in ((), nodes) and key not in taken:
            found[key] = entry
    return list(found.values())


def _refused(parsed: ParsedFile, resource: EnvoyResource, said: Verdict) -> ParsedFile:
    place = Location(parsed.file)
    for first_line, _, read in parsed.objects():
        if read.id == resource.id:
            place = Location(parsed.file, first_line + read.line - 1, read.column)
    hint = "the last good content of the file stays in force"
    found = Diagnostic(codes.ENVOY_REFUSED, Severity.ERROR, resource.id, "", f"Envoy refuses it: {said}", hint, place)
    return broken_file(parsed.file, parsed.data, (found,))
