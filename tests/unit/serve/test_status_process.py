"""`serve --no-quarantine`, `ps -v` and `why` against a server process and a client that refuses something."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest
from serve_rig import REVIEWS_HOST, virtual_service
from test_serve_process import Serve, serving
from test_wait_process import NODE, node_envoy

from tests.waiting import until
from xdsbpf.model.names import CLUSTER, VIRTUAL_HOST

DETAILS_HOST = REVIEWS_HOST.replace("reviews", "details")


async def xdsbpf(serve: Serve, *arguments: str) -> str:
    """Standard output of a command that asks the server."""
    pipe = asyncio.subprocess.PIPE
    command = (sys.executable, "-m", "xdsbpf", *arguments, "--admin", f"unix:{serve.admin}")
    process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe)
    output, errors = await process.communicate()
    assert process.returncode == 0, errors
    return output.decode()


@pytest.mark.parametrize(("arguments", "times"), [((), 2), (("--no-quarantine",), 1)])
async def test_what_came_with_a_refused_resource_comes_again_unless_that_is_turned_off(
    arguments: tuple[str, ...], times: int, tmp_path: Path
) -> None:
    with serving(tmp_path, *arguments) as serve:
        async with node_envoy(serve) as envoy:
            envoy.refuse = lambda item: f"{item.name}: no such filter" if item.name == REVIEWS_HOST else ""
            seen = len(envoy.responses)
            both = virtual_service("kim") + "---\n" + virtual_service("kim").replace("reviews", "details")
            (tmp_path / "m" / "vs.yaml").write_text(both)
            await until(lambda: len(envoy.responses) > seen)
            first = {item.name for item in envoy.responses[seen].resources}
            assert first == {REVIEWS_HOST, DETAILS_HOST}
            await envoy.subscribe([VIRTUAL_HOST], ["9080/asked-later.example"])
            await until(lambda: any("asked-later" in str(response) for response in envoy.responses))
            sent = [item.name for response in envoy.responses[seen:] for item in response.resources]
            assert sent.count(DETAILS_HOST) == times
            assert sent.count(REVIEWS_HOST) == 1, "a refused version is not sent again"


async def test_ps_and_why_tell_what_is_refused_and_where_it_is_written(tmp_path: Path) -> None:
    with serving(tmp_path) as serve:
        async with node_envoy(serve) as envoy:
            envoy.refuse = lambda item: f"{item.name}: no such filter" if item.name == REVIEWS_HOST else ""
            seen = len(envoy.responses)
            (tmp_path / "m" / "vs.yaml").write_text(virtual_service("kim"))
            await until(lambda: len(envoy.responses) > seen)
            (row,) = json.loads(await xdsbpf(serve, "ps", "-o", "json"))["items"]
            vhds = next(entry for entry in row["types"] if entry["type"] == "vhds")
            assert (vhds["state"], vhds["nacked"][0]["name"]) == ("NACKED", REVIEWS_HOST)
            place = f"{tmp_path}/m/vs.yaml:"
            assert any(found.startswith(place) for found in vhds["nacked"][0]["manifests"])
            assert 0 <= vhds["nacked_age_s"] < 60
            lds = next(entry for entry in row["types"] if entry["type"] == "lds")
            assert (lds["state"], lds["version"]) == ("SYNCED", lds["acked_version"])
            assert lds["accepted"] == lds["held"] > 0
            text = await xdsbpf(serve, "ps", "-v", "node1")
            assert place in text
            assert "no such filter" in text
            answer = await xdsbpf(serve, "why", NODE, REVIEWS_HOST)
            assert "the client refused version" in answer
            assert place in answer
            assert "it has version" in await xdsbpf(serve, "why", "node1", DETAILS_HOST, "--type", "vhds")


async def test_pc_lists_what_a_client_has_with_its_state_its_lines_and_the_resource_itself(tmp_path: Path) -> None:
    with serving(tmp_path) as serve:
        async with node_envoy(serve) as envoy:
            await envoy.subscribe([CLUSTER], ["no-such-cluster"])
            await until(lambda: any("no-such-cluster" in response.removed for response in envoy.responses))
            items = json.loads(await xdsbpf(serve, "pc", "route", NODE, "-o", "json"))["items"]
            assert {item["type"] for item in items} == {"rds", "vhds"}
            reviews = next(item for item in items if item["name"] == REVIEWS_HOST)
            assert (reviews["state"], reviews["node"]) == ("ACKED", NODE)
            assert reviews["body"]["domains"][0] == "reviews.default.svc.cluster.local"
            assert any("m/mesh.yaml:" in place for place in reviews["manifests"])
            table = await xdsbpf(serve, "pc", "cluster", "node1")
            (row,) = [line.split() for line in table.splitlines() if "no-such-cluster" in line]
            assert row == ["cds", "no-such-cluster", "MISSING", "-", "-", "-"]
            names = await xdsbpf(serve, "pc", "all", NODE, "--name", "details", "-o", "name")
            assert names.splitlines() == [DETAILS_HOST]
            assert "body" not in (await xdsbpf(serve, "proxy-config", "listener", NODE))
