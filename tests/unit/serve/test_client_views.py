"""Views of connected clients: compiled before they are used, shared, kept a while, and bounded."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.compiling import pod, service
from tests.waiting import until
from xdsbpf import client_views
from xdsbpf.client_views import ClientViews
from xdsbpf.compile.views import ClientView
from xdsbpf.compiler import Compiler
from xdsbpf.errors import ProtocolError
from xdsbpf.mesh.clients import Client
from xdsbpf.mesh.inputs import MeshSettings, object_id
from xdsbpf.sources.loading import load_once

VIEW = ClientView("sidecar", Client("default", (("app", "web"),)))
OTHER = ClientView("grpc", Client("shop"))
NODE_ID = "sidecar~10.1.0.1~web.default~default.svc.cluster.local"


class Shell:
    """A compiler over one service, and the views of its clients; `wake` counts how often it is asked to compile."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.compiler = Compiler(MeshSettings())
        self.compiler.apply(load_once([str(directory)]).manifests().items())
        self.compiler.compile()
        self.wakes = 0
        self.views = ClientViews(self.compiler, self._wake)

    def _wake(self) -> None:
        self.wakes += 1

    def apply(self, text: str) -> None:
        (self.directory / "more.yaml").write_text(text)
        self.compiler.apply(load_once([str(self.directory / "more.yaml")]).manifests().items())

    def compile(self) -> None:
        self.compiler.compile()
        self.views.published()

    def scopes(self) -> set[str]:
        return {scope for scope in self.compiler.store.scopes() if scope.partition("/")[0] in ("sidecar", "grpc")}


@pytest.fixture
def shell(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    directory = tmp_path_factory.mktemp("m")
    (directory / "web.yaml").write_text(
        service("web", "80/http", address="10.96.0.1") + pod("web", "10.1.0.1", app="web")
    )
    return Shell(directory)


async def hold(shell: Shell, view: ClientView, entered: asyncio.Event, leave: asyncio.Event) -> None:
    async with shell.views.use(NODE_ID, view):
        entered.set()
        await leave.wait()


async def test_a_stream_waits_until_its_view_is_compiled_and_the_next_one_does_not(shell: Shell) -> None:
    first, second, leave = asyncio.Event(), asyncio.Event(), asyncio.Event()
    streams = [asyncio.create_task(hold(shell, VIEW, first, leave))]
    await until(lambda: shell.wakes)
    assert not first.is_set()
    assert not shell.views.is_compiled(VIEW)
    shell.compile()
    await asyncio.wait_for(first.wait(), 5)
    assert shell.views.is_compiled(VIEW)
    assert VIEW.scope in shell.scopes()
    streams.append(asyncio.create_task(hold(shell, VIEW, second, leave)))
    await asyncio.wait_for(second.wait(), 5)
    assert shell.wakes == 1
    leave.set()
    await asyncio.gather(*streams)


async def test_a_view_outlives_its_last_stream_for_a_while_only(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    entered, leave = asyncio.Event(), asyncio.Event()
    stream = asyncio.create_task(hold(shell, VIEW, entered, leave))
    await until(lambda: shell.wakes)
    shell.compile()
    await asyncio.wait_for(entered.wait(), 5)
    leave.set()
    await stream
    assert shell.views.is_compiled(VIEW)
    monkeypatch.setattr(client_views, "LINGER_S", 0.0)
    async with shell.views.use(NODE_ID, VIEW):
        pass
    await until(lambda: not shell.views.is_compiled(VIEW))
    shell.compile()
    assert shell.scopes() == set()


async def test_a_view_in_use_is_not_dropped_by_a_stream_that_ended_before(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_views, "LINGER_S", 0.0)
    entered, leave = asyncio.Event(), asyncio.Event()
    waiting = asyncio.create_task(hold(shell, VIEW, asyncio.Event(), leave))
    await until(lambda: shell.wakes)
    waiting.cancel()  # the client gave up before its view was compiled
    stream = asyncio.create_task(hold(shell, VIEW, entered, leave))
    await asyncio.sleep(0)
    await asyncio.wait((waiting,))
    shell.compile()
    await asyncio.wait_for(entered.wait(), 5)
    assert shell.views.is_compiled(VIEW)
    leave.set()
    await stream


async def test_clients_name_so_many_views_and_no_more(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_views, "MAX_VIEWS", 1)
    entered, leave = asyncio.Event(), asyncio.Event()
    stream = asyncio.create_task(hold(shell, VIEW, entered, leave))
    await until(lambda: shell.wakes)
    with pytest.raises(ProtocolError) as caught:
        async with shell.views.use("x", OTHER):
            pass
    assert caught.value.status == "RESOURCE_EXHAUSTED"
    shell.compile()
    await asyncio.wait_for(entered.wait(), 5)
    leave.set()
    await stream


async def test_a_view_changes_with_the_labels_of_its_pod_and_with_nothing_else(shell: Shell) -> None:
    own = object_id("Pod", "default", "web")
    labels = (("app", "web"), ("version", "v1"))
    view = ClientView("sidecar", Client("default", labels))
    entered, leave = asyncio.Event(), asyncio.Event()
    stream = asyncio.create_task(hold(shell, view, entered, leave))
    await until(lambda: shell.wakes)
    others = [object_id("Pod", "default", "other"), object_id("Service", "default", "web")]
    assert not shell.views.concerns([own, *others])
    shell.apply(pod("web", "10.1.0.1", app="web", version="v2"))
    assert not shell.views.concerns(others)
    assert shell.views.concerns([own])
    shell.compile()
    leave.set()
    await stream
    assert not shell.views.concerns([own])
