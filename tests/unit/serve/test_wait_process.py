"""`xdsbpf wait` as a process against `xdsbpf serve` as a process: what it waits for, what it says, how it ends."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from serve_rig import REVIEWS_HOST, Client, virtual_service
from test_serve_process import Serve, serving

from tests.raw_texts import cluster, raw_file
from tests.waiting import until
from xdsbpf.cli.exits import CommandError, Exit
from xdsbpf.cli.wait import parse_duration
from xdsbpf.model.names import CLUSTER, EXTENSION, LISTENER, ROUTES, VIRTUAL_HOST

NODE = "node~10.0.0.1~node1~cluster.local"


class Waiting:
    """One `xdsbpf wait`; `said` is what it has written to standard error so far."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.said = ""
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stderr is not None
        while line := await self.process.stderr.readline():
            self.said += line.decode()

    async def ended(self) -> tuple[int, str]:
        """Exit code and standard output."""
        assert self.process.stdout is not None
        output = await asyncio.wait_for(self.process.stdout.read(), 30)
        await self._reading
        return await self.process.wait(), output.decode()


@asynccontextmanager
async def waiting(*arguments: str) -> AsyncIterator[Waiting]:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "xdsbpf", "wait", *arguments, stdout=pipe, stderr=pipe
    )
    try:
        yield Waiting(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def run(*arguments: str) -> tuple[int, str, str]:
    async with waiting(*arguments) as process:
        code, output = await process.ended()
        return code, output, process.said


@asynccontextmanager
async def node_envoy(serve: Serve) -> AsyncIterator[Client]:
    """A node's Envoy that has everything."""
    client = Client(f"unix:{serve.xds}", NODE)
    try:
        await client.subscribe([CLUSTER, LISTENER, VIRTUAL_HOST])
        await client.subscribe([ROUTES], ["9080"])
        await client.subscribe([EXTENSION], ["srcid"])
        await until(lambda: client.body(VIRTUAL_HOST, REVIEWS_HOST) is not None)
        yield client
    finally:
        await client.close()


def written(directory: Path, text: str) -> str:
    """A file that the server does not watch."""
    (directory / "wanted.yaml").write_text(text)
    return str(directory / "wanted.yaml")


async def test_it_returns_only_after_the_server_has_read_the_file_and_the_client_has_acked(tmp_path: Path) -> None:
    wanted = written(tmp_path, virtual_service())
    with serving(tmp_path) as serve:
        async with node_envoy(serve) as envoy, waiting("-v", "-f", wanted, "--admin", f"unix:{serve.admin}") as wait:
            await until(lambda: "1 of 1 objects are not in force on the server" in wait.said)
            envoy.answers = False
            seen = len(envoy.responses)
            (tmp_path / "m" / "vs.yaml").write_text("# a comment makes no difference\n" + virtual_service())
            await until(lambda: len(envoy.responses) > seen)
            await until(lambda: "1 of 1 clients do not have all of it" in wait.said)
            assert wait.process.returncode is None
            await envoy.acknowledge(VIRTUAL_HOST)
            code, output = await wait.ended()
            assert code == 0, wait.said
            assert output.startswith("1 object (")
            assert "1 clients have all of it" in output


async def test_a_refusal_ends_it_at_once_with_the_reason(tmp_path: Path) -> None:
    wanted = written(tmp_path, virtual_service())
    with serving(tmp_path) as serve:
        async with node_envoy(serve) as envoy:
            envoy.refuse = lambda item: f"{item.name}: no such filter" if item.name == REVIEWS_HOST else ""
            (tmp_path / "m" / "vs.yaml").write_text(virtual_service())
            started = time.monotonic()
            code, output, errors = await run("-f", wanted, "--timeout", "10m", "--admin", f"unix:{serve.admin}")
            assert (code, time.monotonic() - started < 30) == (1, True)
            (row,) = [line for line in output.splitlines() if REVIEWS_HOST in line]
            assert row.startswith(f"{NODE}   refused   vhds {REVIEWS_HOST}")
            assert "no such filter" in row
            assert "refused: 1 of 1 clients refuse something of it" in errors


async def test_at_the_timeout_the_json_says_who_does_not_have_it(tmp_path: Path) -> None:
    wanted = written(tmp_path, virtual_service())
    with serving(tmp_path) as serve:
        admin = f"unix:{serve.admin}"
        code, output, errors = await run("-f", wanted, "--timeout", "300ms", "-o", "json", "--admin", admin)
        document = json.loads(output)
        assert (code, document["kind"], document["verdict"]) == (1, "WaitResult", "waiting")
        assert document["objects"][0]["object"] == "VirtualService/default/reviews"
        assert document["objects"][0]["state"] == "not-read"
        assert document["waited_s"] >= 0.3
        assert "not done after 300ms" in errors
        assert "waiting:" not in errors, "progress is for terminals, and for who asks with -v"


async def test_a_removal_ends_when_the_client_has_dropped_it(tmp_path: Path) -> None:
    wanted = written(tmp_path, virtual_service())
    with serving(tmp_path) as serve:
        async with node_envoy(serve) as envoy:
            admin = f"unix:{serve.admin}"
            seen = len(envoy.responses)
            (tmp_path / "m" / "vs.yaml").write_text(virtual_service())
            await until(lambda: len(envoy.responses) > seen)
            code, output, _ = await run("-f", wanted, "--for", "delete", "--timeout", "0", "--admin", admin)
            assert code == 1
            assert "the server still has it" in output
            (tmp_path / "m" / "vs.yaml").unlink()
            code, output, errors = await run("-f", wanted, "--for", "delete", "--admin", admin)
            assert code == 0, errors


@pytest.mark.parametrize("is_refused", [False, True])
async def test_raw_resources_are_waited_for_at_the_envoys_that_get_them(tmp_path: Path, is_refused: bool) -> None:
    """Another content than that of the file, no answer yet, then an ACK or a NACK; a second Envoy has no part in it."""
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "a.yaml").write_text(raw_file(cluster(name="a")))
    wanted = tmp_path / "wanted.yaml"
    wanted.write_text(raw_file(cluster(name="a", extra="lb_policy: RANDOM"), cluster(name="b"), nodes="edge-*"))
    with serving(tmp_path, "--envoy-resources", str(raw)) as serve:
        admin = ("--admin", f"unix:{serve.admin}")
        edge, core = Client(f"unix:{serve.xds}", "edge-1"), Client(f"unix:{serve.xds}", "core-1")
        try:
            for client in (edge, core):
                await client.subscribe([CLUSTER], ["a", "b"])
                await until(lambda client=client: client.body(CLUSTER, "a") is not None)
            edge.answers = False
            async with waiting("-v", "--envoy-resources", str(wanted), *admin) as wait:
                await until(lambda: "2 of 2 objects are not in force on the server" in wait.said)
                seen = len(edge.responses)
                (raw / "edge.yaml").write_text(wanted.read_text())
                await until(lambda: len(edge.responses) > seen)
                await until(lambda: "1 of 2 clients do not have all of it" in wait.said)
                await edge.acknowledge(CLUSTER, error="a: no such policy" if is_refused else "")
                code, output = await wait.ended()
            if is_refused:
                assert code == 1, wait.said
                assert "edge-1   refused      cds a   a: no such policy" in output
                assert "core-1" not in output
            else:
                assert code == 0, wait.said
                assert output.startswith("2 objects (2 resources): 2 clients have all of it")
                assert edge.body(CLUSTER, "b") is not None
                assert core.body(CLUSTER, "b") is None
                (raw / "edge.yaml").unlink()
                edge.answers = True
                gone = await run("--envoy-resources", str(wanted), "--for", "delete", *admin)
                assert gone[0] == 0, gone
        finally:
            await edge.close()
            await core.close()


@pytest.mark.parametrize(
    ("text", "arguments", "code", "said"),
    [
        (virtual_service(), ("--timeout", "soon"), 64, "--timeout 'soon' is not a duration"),
        (virtual_service(), (), 69, "the control plane does not answer"),
        (virtual_service().replace("timeout", "timeoot"), (), 65, "timeoot"),
        ("kind: [", (), 65, "wanted.yaml:2:1: error: "),
        ("", (), 65, "no object could be read"),
    ],
)
async def test_what_cannot_be_waited_for_is_said(
    text: str, arguments: tuple[str, ...], code: int, said: str, tmp_path: Path
) -> None:
    found = await run("-f", written(tmp_path, text), *arguments, "--admin", f"unix:{tmp_path}/nobody.sock")
    assert found[0] == code, found
    assert said in found[2]


async def test_a_file_that_is_not_there_is_bad_input(tmp_path: Path) -> None:
    code, _, errors = await run("-f", str(tmp_path / "nothing.yaml"))
    assert (code, "no such file" in errors) == (65, True)


@pytest.mark.parametrize(
    ("text", "seconds"), [("60", 60), ("0", 0), ("300ms", 0.3), ("1m30s", 90), ("2h", 7200), ("1.5s", 1.5)]
)
def test_a_duration_is_read_as_people_write_it(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "s", "-1s", "5 s", "1d", "ms", "1m30x"])
def test_what_is_no_duration_is_wrong_usage(text: str) -> None:
    with pytest.raises(CommandError) as caught:
        parse_duration(text)
    assert caught.value.code is Exit.USAGE
