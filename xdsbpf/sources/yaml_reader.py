"""Text of one manifest file -> the objects that it holds, good and bad, with their positions.

The text is cut at its document markers into chunks; each chunk is read on its own and its result
depends on nothing but its text, so a re-read takes unchanged chunks over (`previous`) and a comment
on top moves lines only. A chunk that is no YAML or no object breaks the whole file: half a document
must not pass for a smaller one. Called by `files` and `loading`; no I/O here.
"""

from __future__ import annotations

import codecs
import itertools
import re
from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

from xdsbpf.diagnostics import Diagnostic, Location, ObjectId, Severity
from xdsbpf.model import codes
from xdsbpf.sources.yaml_findings import Finding
from xdsbpf.sources.yaml_nodes import TextError, compose
from xdsbpf.sources.yaml_objects import ReadObject, read_objects

_DOCUMENT_START: Final = re.compile(r"^---(?=[ \t\r\n]|$)", re.MULTILINE)
_DIRECTIVE: Final = re.compile(r"^%", re.MULTILINE)


class Chunk(msgspec.Struct, frozen=True):
    """A piece of text between document markers and what was read from it; lines count from 1."""

    text: str
    objects: tuple[ReadObject, ...]
    problem: Finding | None


class ParsedFile(msgspec.Struct, frozen=True):
    """One version of one file.

    `chunks` holds (line in the file where the chunk starts, chunk). `problems` says why the text
    as a whole cannot be used; if there are any, nothing of it is to be taken.
    """

    file: str
    data: bytes
    chunks: tuple[tuple[int, Chunk], ...]
    problems: tuple[Diagnostic, ...] = ()

    def objects(self) -> Iterator[tuple[int, Chunk, ReadObject]]:
        """(first line of the chunk, chunk, object) in the order of the file."""
        for first_line, chunk in self.chunks:
            for read in chunk.objects:
                yield (
                    first_line,
                    chunk,
                    read if read.named else _name_after_place(read, self.file, first_line),
                )


def _name_after_place(read: ReadObject, file: str, first_line: int) -> ReadObject:
    """Objects without a name must not be taken for one another: each is named after its place."""
    name = f"unnamed@{file}:{first_line + read.line - 1}"
    placeholder = read.placeholder
    if placeholder is not None:
        metadata = msgspec.structs.replace(placeholder.metadata, name=name)
        placeholder = msgspec.structs.replace(placeholder, metadata=metadata)
    return msgspec.structs.replace(read, id=msgspec.structs.replace(read.id, name=name), placeholder=placeholder)


def decode(data: bytes) -> str:
    """Text of a file: UTF-8 with or without BOM, or UTF-16 with one. Raises: UnicodeDecodeError."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16")
    return data.decode("utf-8-sig")


def split_documents(text: str) -> list[tuple[int, str]]:
    """(line where it starts, text) of each document; blank ones are left out.

    `---` in the first column ends a document in every context of YAML, so cutting there is exact.
    Text with directives (%TAG, %YAML) is not cut, since they belong to the document after them.
    """
    if _DIRECTIVE.search(text) is not None:
        return [(1, text)]
    cuts = [0, *(match.start() for match in _DOCUMENT_START.finditer(text) if match.start()), len(text)]
    pieces: list[tuple[int, str]] = []
    line = 1
    for start, end in itertools.pairwise(cuts):
        piece = text[start:end]
        if piece.removeprefix("---").strip():
            pieces.append((line, piece))
        line += piece.count("\n")
    return pieces


def read_chunk(text: str) -> Chunk:
    """Everything in one chunk. Never raises: text that is no YAML is the chunk's `problem`."""
    objects: list[ReadObject] = []
    try:
        for root in compose(text):
            found = read_objects(root)
            if isinstance(found, Finding):
                return Chunk(text, (), found)
            objects.extend(found)
    except TextError as err:
        hint = "half a document is not taken; the last good content of the file stays in force"
        problem = Finding(codes.SYNTAX, Severity.ERROR, "", err.message, hint, err.line, err.column)
        return Chunk(text, (), problem)
    return Chunk(text, tuple(objects), None)


def parse_steps(file: str, data: bytes, previous: ParsedFile | None = None) -> Iterator[ParsedFile | None]:
    """Read a file in steps of one chunk: yields None between them and the result last.

    Args:
        file: name of the file as it is printed.
        data: its content.
        previous: what was read from the same file before; its unchanged chunks are taken over.
    """
    text = text_of(file, data)
    if isinstance(text, ParsedFile):
        yield text
        return
    known = {chunk.text: chunk for _, chunk in previous.chunks} if previous is not None else {}
    chunks: list[tuple[int, Chunk]] = []
    for first_line, piece in split_documents(text):
        chunk = known.get(piece) or read_chunk(piece)
        if chunk.problem is not None:
            yield broken_file(file, data, [chunk.problem.diagnostic(None, file, first_line)])
            return
        chunks.append((first_line, chunk))
        yield None
    yield ParsedFile(file, data, tuple(chunks))


def parse_file(file: str, data: bytes, previous: ParsedFile | None = None) -> ParsedFile:
    """`parse_steps` in one go."""
    result: ParsedFile | None = None
    for step in parse_steps(file, data, previous):
        result = step
    return result if result is not None else ParsedFile(file, data, ())


def text_of(file: str, data: bytes) -> str | ParsedFile:
    """The text of a file, or its parsed form if it is no text."""
    try:
        return decode(data)
    except UnicodeDecodeError as err:
        line = data.count(b"\n", 0, err.start) + 1
        message = f"the file is neither UTF-8 nor UTF-16 with a byte order mark: {err.reason}"
        return _broken(file, codes.SYNTAX, message, line)


def broken_file(file: str, data: bytes, problems: Iterable[Diagnostic]) -> ParsedFile:
    """The parsed form of a text of which nothing is to be taken."""
    return ParsedFile(file, data, (), tuple(problems))


def unreadable_file(file: str, reason: str) -> ParsedFile:
    """The parsed form of a file that could not be read."""
    return _broken(file, codes.UNREADABLE_FILE, reason, 0)


def _broken(file: str, code: str, message: str, line: int) -> ParsedFile:
    hint = "the last good content of the file stays in force"
    location = Location(file, line, 1 if line else 0)
    return ParsedFile(file, b"", (), (Diagnostic(code, Severity.ERROR, None, "", message, hint, location),))


def diagnostics_of(read: ReadObject, file: str, first_line: int) -> tuple[Diagnostic, ...]:
    """Findings of an object as diagnostics with positions in `file`."""
    return tuple(finding.diagnostic(read.id, file, first_line) for finding in read.findings)


__all__ = [
    "Chunk", "ObjectId", "ParsedFile", "ReadObject", "broken_file", "decode", "diagnostics_of", "parse_file",
    "parse_steps", "read_chunk", "split_documents", "text_of", "unreadable_file",
]  # fmt: skip
