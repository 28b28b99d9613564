"""Files on disk -> batches, with the real watcher; every wait is for a condition."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.manifest_texts import documents, put_names, removed_names, service, service_id, services
from tests.waiting import until
from xdsbpf.errors import ConfigError
from xdsbpf.sources.catalog import HOLD_S, CatalogDelta
from xdsbpf.sources.files import FileSource, Scanner, merge_deltas
from xdsbpf.sources.loading import load_once

DEADLINE_S = 20.0


class Watched:
    """A running FileSource and everything that it handed on."""

    def __init__(self, *paths: Path) -> None:
        self.batches: list[CatalogDelta] = []
        self.source = FileSource(paths, self.batches.append)

    @property
    def put(self) -> list[str]:
        return [name for batch in self.batches for name in put_names(batch)]

    @property
    def removed(self) -> list[str]:
        return [name for batch in self.batches for name in removed_names(batch)]

    def names(self) -> set[str]:
        return {key.name for key in self.source.catalog.manifests()}

    def states(self) -> set[str]:
        return {source.state for source in self.source.catalog.sources()}


@asynccontextmanager
async def watching(*paths: Path) -> AsyncIterator[Watched]:
    watched = Watched(*paths)
    task = asyncio.create_task(watched.source.run())
    try:
        await asyncio.wait_for(watched.source.synced.wait(), DEADLINE_S)
        yield watched
    finally:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


def write(path: Path, text: str) -> None:
    """As careful writers do: a new file under another name, then a rename."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    temporary.rename(path)


async def test_the_first_content_comes_in_one_batch(tmp_path: Path) -> None:
    write(tmp_path / "b.yaml", service("b"))
    (tmp_path / "deep").mkdir()
    write(tmp_path / "deep" / "a.yml", service("a"))
    write(tmp_path / "notes.txt", "not a manifest")
    async with watching(tmp_path) as watched:
        assert [put_names(batch) for batch in watched.batches] == [["a", "b"]]


async def test_an_empty_directory_is_synced_too(tmp_path: Path) -> None:
    async with watching(tmp_path) as watched:
        assert watched.batches == [CatalogDelta()]


async def test_a_file_that_appears_changes_and_goes_is_followed(tmp_path: Path) -> None:
    write(tmp_path / "keep.yaml", service("keep"))
    async with watching(tmp_path) as watched:
        write(tmp_path / "a.yaml", service("a"))
        await until(lambda: "a" in watched.put)
        write(tmp_path / "a.yaml", service("a", 81))
        await until(lambda: watched.put.count("a") == 2)
        (tmp_path / "a.yaml").unlink()
        await until(lambda: "a" in watched.removed)
        assert watched.names() == {"keep"}


async def test_a_file_in_a_new_directory_is_found(tmp_path: Path) -> None:
    async with watching(tmp_path) as watched:
        (tmp_path / "new").mkdir()
        write(tmp_path / "new" / "a.yaml", service("a"))
        await until(lambda: watched.put == ["a"])


async def test_a_single_file_is_followed_through_replacement(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    write(path, service("a"))
    async with watching(path) as watched:
        write(tmp_path / "other.yaml", service("other"))
        write(path, service("a", 81))
        await until(lambda: watched.put == ["a", "a"])
        assert watched.names() == {"a"}


async def test_a_renamed_file_removes_nothing(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", service("a"))
    async with watching(tmp_path) as watched:
        (tmp_path / "a.yaml").rename(tmp_path / "z.yaml")
        files = watched.source.catalog.sources
        await until(lambda: [Path(source.path).name for source in files()] == ["z.yaml"])
        assert watched.removed == []
        assert watched.put == ["a"]


async def test_a_directory_that_goes_keeps_its_objects_and_is_followed_when_it_comes_back(tmp_path: Path) -> None:
    directory = tmp_path / "config"
    directory.mkdir()
    write(directory / "a.yaml", service("a"))
    async with watching(directory) as watched:
        shutil.rmtree(directory)
        await until(lambda: "lost" in watched.states())
        directory.mkdir()
        for _ in range(3):
            await watched.source.step()
        assert "lost" in watched.states()
        assert (watched.names(), watched.removed) == ({"a"}, [])
        write(directory / "a.yaml", service("a", 81))
        await until(lambda: watched.put == ["a", "a"])
        assert watched.states() == {"ok"}
        write(directory / "b.yaml", service("b"))
        await until(lambda: "b" in watched.put)


async def test_a_mass_removal_waits_for_the_confirmation(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", services(12))
    async with watching(tmp_path) as watched:
        write(tmp_path / "a.yaml", "# nothing left\n")
        await until(lambda: watched.states() == {"held"})
        assert watched.removed == []
        assert len(watched.source.confirm().removes) == 12
        assert len(watched.removed) == 12


async def test_a_vanished_object_is_removed_by_time_alone(tmp_path: Path) -> None:
    now = 0.0
    batches: list[CatalogDelta] = []
    write(tmp_path / "a.yaml", documents(service("a"), service("b")))
    source = FileSource([tmp_path], batches.append, clock=lambda: now)
    await source.step()
    now = 1.0
    await source.step()
    assert put_names(batches[-1]) == ["a", "b"]
    write(tmp_path / "a.yaml", service("b"))
    for moment in (2.0, 3.0, 3.0 + HOLD_S - 0.01):
        now = moment
        await source.step()
        assert len(batches) == 1
    now = 3.0 + HOLD_S
    await source.step()
    assert removed_names(batches[-1]) == ["a"]


async def test_a_file_that_changes_while_it_is_read_is_read_again(tmp_path: Path) -> None:
    now = 0.0
    path = tmp_path / "a.yaml"
    write(path, service("a", 1))
    source = FileSource([tmp_path], lambda delta: None, clock=lambda: now)
    await source.step()
    look = source._scanner.look

    def look_then_write() -> object:
        seen = look()
        write(path, service("a", 22))
        return seen

    source._scanner.look = look_then_write  # type: ignore[method-assign, assignment]
    now = 1.0
    await source.step()
    assert source.catalog.manifests() == {}
    source._scanner.look = look  # type: ignore[method-assign]
    for moment in (2.0, 3.0):
        now = moment
        await source.step()
    manifest = source.catalog.get(service_id("a"))
    assert manifest is not None
    assert manifest.spec.ports[0].port == 22  # type: ignore[attr-defined]


def test_a_path_that_does_not_exist_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        FileSource([tmp_path / "nothing"], lambda delta: None)
    with pytest.raises(ConfigError, match="no such file"):
        load_once([tmp_path / "nothing"])


def test_an_unmounted_directory_is_told_from_an_emptied_one(tmp_path: Path) -> None:
    directory = tmp_path / "config"
    directory.mkdir()
    write(directory / "a.yaml", service("a"))
    scanner = Scanner([str(directory)])
    assert len(scanner.look().present) == 1
    (directory / "a.yaml").unlink()
    assert scanner.look().lost == {}
    write(directory / "a.yaml", service("a"))
    scanner.look()
    # What is seen where a file system was mounted: another directory, and nothing in it.
    directory.rename(tmp_path / "mounted")
    directory.mkdir()
    assert list(scanner.look().lost) == [str(directory)]


def test_arguments_come_in_order_and_files_by_path(tmp_path: Path) -> None:
    for name, port in (("z.yaml", 1), ("a/b.yaml", 2), ("m.json", 3)):
        (tmp_path / "d" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "d" / name).write_text(service("x", port))
    catalog = load_once([tmp_path / "d"])
    assert catalog.get(service_id("x")).spec.ports[0].port == 1  # type: ignore[union-attr]
    catalog = load_once([tmp_path / "d" / "z.yaml", tmp_path / "d" / "a", "-"], stdin=service("w").encode())
    assert catalog.get(service_id("x")).spec.ports[0].port == 2  # type: ignore[union-attr]
    assert service_id("w") in catalog.manifests()


def test_a_file_that_cannot_be_read_is_a_diagnostic(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(b"\xff\xfe\xff")
    catalog = load_once([path])
    assert [source.state for source in catalog.sources()] == ["broken"]


def test_deltas_in_a_row_are_one_with_the_last_word() -> None:
    catalog_a = load_once(["-"], stdin=service("a").encode())
    put = CatalogDelta(tuple(catalog_a.manifests().items()))
    removed = CatalogDelta((), (service_id("a"),))
    assert merge_deltas([put, removed]) == removed
    assert merge_deltas([removed, put]) == put


async def test_a_pipe_a_device_or_a_socket_as_a_manifest_holds_nothing_up(tmp_path: Path) -> None:
    """In a directory they are no manifests; named, or put in a manifest's place, they are refused."""
    directory = tmp_path / "m"
    directory.mkdir()
    (directory / "good.yaml").write_text(service("good"))
    os.mkfifo(directory / "pipe.yaml")
    (directory / "device.yaml").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "named.yaml")
    async with watching(directory, tmp_path / "named.yaml", Path("/dev/zero")) as watched:
        assert watched.names() == {"good"}
        broken = {source.path for source in watched.source.catalog.sources() if source.state == "broken"}
        assert broken == {str(tmp_path / "named.yaml"), "/dev/zero"}
        replacement = tmp_path / "replacement"
        os.mkfifo(replacement)
        os.replace(replacement, directory / "good.yaml")
        (directory / "other.yaml").write_text(service("other"))
        await until(lambda: "other" in watched.names())


def test_a_pipe_is_read_where_there_is_nothing_to_hold_up(tmp_path: Path) -> None:
    """`translate -f <(generate)` of a shell."""
    reader, writer = os.pipe()
    os.write(writer, service("piped").encode())
    os.close(writer)
    try:
        assert {key.name for key in load_once([f"/dev/fd/{reader}"]).manifests()} == {"piped"}
    finally:
        os.close(reader)


@pytest.mark.parametrize("steps", range(5))
async def test_it_ends_when_it_is_cancelled_just_as_something_changed(tmp_path: Path, steps: int) -> None:
    source = FileSource([tmp_path], lambda delta: None)
    task = asyncio.create_task(source.run())
    await asyncio.wait_for(source.synced.wait(), 5)
    await asyncio.sleep(0.3)  # past the look that follows the start of the watch, which would wake it as well
    source._changed.set()
    for _ in range(steps):
        await asyncio.sleep(0)
    task.cancel()
    done, _ = await asyncio.wait([task], timeout=3)
    assert done, "the cancellation was lost"
