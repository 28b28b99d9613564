"""`xdsbpf diff` against `xdsbpf serve` as processes: what it foretells is what comes, and nothing comes of it."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from serve_rig import REVIEWS_FRONTEND, REVIEWS_HOST, Client, content, virtual_service
from test_serve_process import Serve, serving

from tests.raw_texts import cluster, raw_file
from tests.waiting import until
from xdsbpf.model.names import CLUSTER, EXTENSION, FRONTEND, LISTENER, ROUTES, VIRTUAL_HOST
from xdsbpf.xds import protocol

ENVOY = "node~10.0.0.1~node1~cluster.local"
SIDECAR = "sidecar~10.0.0.7~web.default~default.svc.cluster.local"


async def diff(serve: Serve, *arguments: str) -> tuple[int, dict[str, Any]]:
    """Exit code and document."""
    command = [sys.executable, "-m", "xdsbpf", "diff", *arguments, "-o", "json", "--admin", f"unix:{serve.admin}"]
    process = await asyncio.create_subprocess_exec(*command, stdout=-1, stderr=-1)
    output, errors = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode in (0, 1), errors
    return process.returncode, json.loads(output)


def sent(responses: list[protocol.ReceivedResponse]) -> set[tuple[str, str]]:
    """(type, name) of everything that came or went."""
    return {
        (response.type_url, name)
        for response in responses
        for name in (*(item.name for item in content(response)), *response.removed)
    }


async def test_an_envoy_is_sent_what_was_foretold_once_the_file_is_there_and_nothing_before(tmp_path: Path) -> None:
    wanted = tmp_path / "wanted.yaml"
    wanted.write_text(virtual_service())
    with serving(tmp_path) as serve:
        envoy = Client(f"unix:{serve.xds}", ENVOY)
        try:
            await envoy.subscribe([CLUSTER, LISTENER, VIRTUAL_HOST])
            await envoy.subscribe([ROUTES], ["9080"])
            await envoy.subscribe([EXTENSION], ["srcid"])
            await until(lambda: envoy.body(VIRTUAL_HOST, REVIEWS_HOST) is not None)
            seen = len(envoy.responses)
            before = json.loads(serve.get("/objects")[1])

            code, everything = await diff(serve, "-f", str(wanted))
            assert code == 1
            assert {(item["type_url"], item["name"]) for item in everything["resources"]} == {
                (VIRTUAL_HOST, REVIEWS_HOST),
                (FRONTEND, REVIEWS_FRONTEND),
            }
            code, foretold = await diff(serve, "-f", str(wanted), "--proxy", ENVOY)
            assert code == 1
            assert json.loads(serve.get("/objects")[1]) == before
            assert len(envoy.responses) == seen

            (tmp_path / "m" / "vs.yaml").write_text(virtual_service())
            await until(lambda: len(envoy.responses) > seen)
            assert sent(envoy.responses[seen:]) == {(item["type_url"], item["name"]) for item in foretold["resources"]}
            assert (await diff(serve, "-f", str(wanted)))[0] == 0
            code, gone = await diff(serve, "-f", str(wanted), "--delete")
            assert (code, gone["planes"][0]["before"], gone["planes"][0]["after"]) == (1, "L7", "L4")
        finally:
            await envoy.close()


async def test_what_connected_sidecars_see_is_compared_as_well(tmp_path: Path) -> None:
    """They have a scope of their own, which is compiled because they are there."""
    wanted = tmp_path / "wanted.yaml"
    wanted.write_text(virtual_service())
    with serving(tmp_path) as serve:
        scope = "sidecar/default/"
        assert scope not in {item["scope"] for item in (await diff(serve, "-f", str(wanted)))[1]["resources"]}
        sidecar = Client(f"unix:{serve.xds}", SIDECAR)
        try:
            await sidecar.subscribe([ROUTES], ["9080"])
            await until(lambda: sidecar.body(ROUTES, "9080") is not None)
            _, found = await diff(serve, "-f", str(wanted))
            assert {item["name"] for item in found["resources"] if item["scope"] == scope} == {"9080"}
        finally:
            await sidecar.close()


@pytest.mark.parametrize("node", ["edge-1", "core-1"])
async def test_raw_resources_are_compared_for_those_they_are_addressed_to(tmp_path: Path, node: str) -> None:
    wanted = tmp_path / "wanted.yaml"
    wanted.write_text(raw_file(cluster(name="a"), nodes="edge-*"))
    (tmp_path / "raw").mkdir()
    with serving(tmp_path, "--envoy-resources", str(tmp_path / "raw")) as serve:
        code, found = await diff(serve, "--envoy-resources", str(wanted), "--proxy", node)
        assert code == (1 if node == "edge-1" else 0)
        assert [item["name"] for item in found["resources"]] == (["a"] if node == "edge-1" else [])
