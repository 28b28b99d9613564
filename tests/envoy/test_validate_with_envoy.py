"""`--validate-with-envoy`: what a real Envoy refuses is not published, and said in its words at the place."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.raw_texts import PLACE, T, cluster, endpoint, listener, raw_file
from xdsbpf.model.envoy_resource import EnvoyResource
from xdsbpf.sources.catalog import Catalog
from xdsbpf.sources.envoy_validation import EnvoyValidator
from xdsbpf.sources.files import FileSource
from xdsbpf.sources.loading import load_once

pytestmark = pytest.mark.envoy

DEADLINE_S = 20.0
RING = "lb_policy: RING_HASH\n  ring_hash_lb_config: {minimum_ring_size: 9, maximum_ring_size: 3}"
BAD = raw_file(cluster(name="first"), cluster(name="bad", extra=RING), cluster(name="last"))
REASON = "minimum_ring_size (9) > maximum_ring_size (3)"


def routes(regex: str) -> str:
    match = f"{{safe_regex: {{regex: '{regex}'}}}}"
    return f"""\
- "@type": {T}.config.route.v3.RouteConfiguration
  name: web
  virtual_hosts: [{{name: a, domains: ["*"], routes: [{{match: {match}, route: {{cluster: db}}}}]}}]
"""


def assignment(address: str) -> str:
    return f"""\
- "@type": {T}.config.endpoint.v3.ClusterLoadAssignment
  cluster_name: web
  endpoints: [{{lb_endpoints: [{endpoint(address)}]}}]
"""


def secret(content: str) -> str:
    return f"""\
- "@type": {T}.extensions.transport_sockets.tls.v3.Secret
  name: ca
  {content}
"""


def virtual_host(domain: str) -> str:
    host = f'{{"@type": {T}.config.route.v3.VirtualHost, name: web/b, domains: [a.b, "{domain}"]}}'
    return f'- {{"@type": {T}.service.discovery.v3.Resource, name: web/b, resource: {host}}}\n'


def refusals(catalog: Catalog) -> list[tuple[int, str]]:
    """(line, message) of what Envoy refused."""
    return [(d.location.line, d.message) for d in catalog.diagnostics() if d.code == "XB1605" and d.location]


@pytest.mark.parametrize(
    ("good", "bad", "reason"),
    [
        (cluster(name="bad"), cluster(name="bad", extra=RING), REASON),
        (listener(), listener().replace("stat_prefix: db", "stat_prefix: ''"), "StatPrefix"),
        (routes("/a"), routes("(["), "missing ]"),
        (assignment("10.0.0.1"), assignment("a.host"), "malformed IP address"),
        (virtual_host("c.d"), virtual_host("a.b"), "domain"),
        (secret("generic_secret: {}"), secret("session_ticket_keys: {}"), "Keys"),
    ],
    ids=["cluster", "listener", "routes", "endpoints", "virtual host", "secret"],
)
def test_a_resource_of_each_type_is_refused_at_its_own_line(
    envoy: str, tmp_path: Path, good: str, bad: str, reason: str
) -> None:
    path = tmp_path / "raw.yaml"
    front, back = cluster(name="front"), cluster(name="back")
    validator = EnvoyValidator(Path(envoy))
    path.write_text(raw_file(front, good, back))
    assert refusals(load_once([], envoy_paths=[path], validator=validator)) == []
    path.write_text(raw_file(front, bad, back))
    catalog = load_once([], envoy_paths=[path], validator=validator)
    ((line, message),) = refusals(catalog)
    assert line == 2 + front.count("\n")
    assert message.startswith("Envoy refuses it: ")
    assert reason in message
    assert catalog.manifests() == {}
    assert len(load_once([], envoy_paths=[path]).manifests()) == 3, "without being asked Envoy refuses nothing"


class Watched:
    """A FileSource over raw files, with the real Envoy as judge or without one."""

    def __init__(self, directory: Path, validator: EnvoyValidator | None) -> None:
        self.directory = directory
        self.source = FileSource((), lambda delta: None, envoy_paths=[directory], validator=validator, settle_s=0.02)

    def write(self, name: str, text: str) -> None:
        (self.directory / f"{name}.yaml").write_text(text)

    def bodies(self) -> dict[str, bytes]:
        manifests = self.source.catalog.manifests().values()
        return {entry.resource_name: entry.body for entry in manifests if isinstance(entry, EnvoyResource)}

    def said(self) -> str:
        return "".join(message for _, message in refusals(self.source.catalog))

    async def until(self, condition: Callable[[], object]) -> None:
        end = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < end, [str(found) for found in self.source.catalog.diagnostics()]
            await asyncio.sleep(0.02)


@asynccontextmanager
async def watching(directory: Path, validator: EnvoyValidator | None, **files: str) -> AsyncIterator[Watched]:
    watched = Watched(directory, validator)
    for name, text in files.items():
        watched.write(name, text)
    task = asyncio.create_task(watched.source.run())
    try:
        await asyncio.wait_for(watched.source.synced.wait(), DEADLINE_S)
        yield watched
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_refused_edit_changes_nothing_until_it_is_repaired(envoy: str, tmp_path: Path) -> None:
    good = raw_file(cluster(name="bad"))
    async with watching(tmp_path, EnvoyValidator(Path(envoy)), a=good, b=raw_file(listener())) as watched:
        before = watched.bodies()
        assert set(before) == {"bad", "db"}
        watched.write("a", BAD)
        await watched.until(lambda: REASON in watched.said())
        assert watched.bodies() == before
        watched.write("a", BAD.replace("maximum_ring_size: 3", "maximum_ring_size: 30"))
        await watched.until(lambda: len(watched.bodies()) == 4)
        assert watched.said() == ""
        assert watched.bodies()["bad"] != before["bad"]


async def test_without_the_flag_the_same_edit_is_taken(tmp_path: Path) -> None:
    async with watching(tmp_path, None, a=raw_file(cluster(name="bad"))) as watched:
        watched.write("a", BAD)
        await watched.until(lambda: len(watched.bodies()) == 3)


async def test_of_two_listeners_at_one_address_the_second_waits_until_the_first_has_gone(
    envoy: str, tmp_path: Path
) -> None:
    first, second = raw_file(listener(name="first")), raw_file(listener(name="second"))
    async with watching(tmp_path, EnvoyValidator(Path(envoy)), a=first, b=second) as watched:
        assert set(watched.bodies()) == {"first"}
        assert "duplicate address" in watched.said()
        watched.write("c", raw_file(listener(name="other", place=PLACE.replace("5432", "5433")), nodes="edge-*"))
        await watched.until(lambda: "other" in watched.bodies())
        (tmp_path / "a.yaml").unlink()
        await watched.until(lambda: set(watched.bodies()) == {"second", "other"})
        assert watched.said() == ""


async def test_a_listener_may_be_renamed_at_its_address(envoy: str, tmp_path: Path) -> None:
    async with watching(tmp_path, EnvoyValidator(Path(envoy)), a=raw_file(listener(name="first"))) as watched:
        watched.write("a", raw_file(listener(name="second")))
        await watched.until(lambda: "second" in watched.bodies())
        assert watched.said() == ""


async def test_a_judge_that_does_not_answer_is_a_refusal_and_holds_up_nobody(tmp_path: Path) -> None:
    sleeper = tmp_path / "envoy"
    sleeper.write_text("#!/bin/sh\nexec sleep 60\n")
    sleeper.chmod(0o755)
    (tmp_path / "raw").mkdir()
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.01)
            ticks += 1

    ticking = asyncio.create_task(tick())
    async with watching(tmp_path / "raw", EnvoyValidator(sleeper, 0.5), a=raw_file(cluster())) as watched:
        await watched.until(lambda: "gave no verdict within 0.5 s" in watched.said())
        assert watched.bodies() == {}
    assert ticks > 20
    ticking.cancel()
    missing = EnvoyValidator(tmp_path / "nothing")
    async with watching(tmp_path / "raw", missing) as watched:
        await watched.until(lambda: "cannot be run" in watched.said())


def test_analyze_asks_envoy_when_it_is_told_to(envoy: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(BAD)

    def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "xdsbpf", "analyze", "--envoy-resources", str(tmp_path), *arguments]
        return subprocess.run(command, capture_output=True, text=True)

    assert analyze().returncode == 0
    asked = analyze("--validate-with-envoy", "--envoy-binary", envoy)
    assert asked.returncode == 65
    line = 1 + next(i for i, text in enumerate(BAD.splitlines(), 1) if "name: bad" in text) - 2
    assert f"a.yaml:{line}:" in asked.stderr
    assert REASON in asked.stderr
    assert analyze("--validate-with-envoy", "--envoy-binary", "/no/envoy").returncode == 64
