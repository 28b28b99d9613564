"""Plug-ins: what they change and add, in which order, what becomes of their mistakes, and how they are found."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.config.route.v3.route_components_pb2 import VirtualHost
from envoy.config.route.v3.route_pb2 import RouteConfiguration
from envoy_data_plane.envoy.config.cluster import v3 as newer

from tests.builders import bookinfo, destination_rule, route, to, virtual_service
from tests.raw_texts import cluster, listener, raw_file
from xdsbpf._pb.xdsbpf.datapath.v1.datapath_pb2 import Policy
from xdsbpf.compile.views import client_scopes
from xdsbpf.compiler import Compiler
from xdsbpf.errors import ConfigError
from xdsbpf.mesh.inputs import MeshSettings
from xdsbpf.model.destination_rule import LoadBalancerSettings, TrafficPolicy
from xdsbpf.model.names import CLUSTER, FRONTEND, LISTENER, VIRTUAL_HOST
from xdsbpf.model.resource import AS_SERVED
from xdsbpf.plugin import Added, LoadedPlugin, Plugin, Target
from xdsbpf.report.listeners import listener_rows
from xdsbpf.sources.loading import load_once
from xdsbpf.sources.plugins import load_plugins
from xdsbpf.xds.store import View

ROOT = Path(__file__).resolve().parents[3]
REVIEWS = "outbound|9080||reviews.default.svc.cluster.local"
EDGE, NODE = "edge-1", "node~10.0.0.1~node1~cluster.local"


def loaded(plugin: Plugin, name: str = "example") -> LoadedPlugin:
    return LoadedPlugin(name, "1.0", f"xdsbpf-{name}", plugin)


def mesh(*plugins: LoadedPlugin, directory: Path | None = None) -> Compiler:
    """Bookinfo, and the raw files of a directory."""
    compiler = Compiler(MeshSettings(), check_values=True, plugins=plugins)
    compiler.apply((manifest.id, manifest) for manifest in bookinfo())
    if directory is not None:
        compiler.apply(load_once([], envoy_paths=[directory]).manifests().items())
    compiler.compile()
    return compiler


def held(compiler: Compiler, client: str, type_url: str, name: str, kind: type[Any]) -> Any:
    """The decoded resource that a client sees, or None."""
    found = compiler.store.get(View(client_scopes(client, compiler.globs), "", ""), type_url, name)
    return None if found is None else kind.FromString(found.body)


def origins(compiler: Compiler, scope: str, type_url: str, name: str) -> list[str]:
    found = compiler.store.get(View((scope,), "", ""), type_url, name)
    assert found is not None
    return [str(origin) for origin in compiler.origins(scope, found)]


def with_stats(text: str) -> Any:
    def patch(target: Target, message: Cluster) -> Cluster:
        message.alt_stat_name += f"{text}@{target.scope} "
        return message

    return patch


def test_a_patch_changes_what_is_served_and_is_an_origin_of_it() -> None:
    compiler = mesh(loaded(Plugin({Cluster: with_stats("x")})))
    assert held(compiler, EDGE, CLUSTER, REVIEWS, Cluster).alt_stat_name.endswith("x@mesh ")
    assert "Plugin/example@1.0" in origins(compiler, "mesh", CLUSTER, REVIEWS)
    plain = mesh()
    assert not held(plain, EDGE, CLUSTER, REVIEWS, Cluster).alt_stat_name.endswith("x@mesh ")
    assert "Plugin/example@1.0" not in origins(plain, "mesh", CLUSTER, REVIEWS)


def test_a_plugin_may_be_typed_with_envoy_data_plane() -> None:
    def patch(target: Target, message: newer.Cluster) -> newer.Cluster:
        message.alt_stat_name = "newer"
        return message

    compiler = mesh(loaded(Plugin({newer.Cluster: patch})))
    before = held(mesh(), EDGE, CLUSTER, REVIEWS, Cluster)
    before.alt_stat_name = "newer"
    assert held(compiler, EDGE, CLUSTER, REVIEWS, Cluster) == before


def test_what_a_patch_leaves_alone_keeps_its_version_and_origins() -> None:
    compiler = mesh(loaded(Plugin({Cluster: lambda target, message: None})))
    view = View(("mesh",), "", "")
    assert compiler.store.get(view, CLUSTER, REVIEWS) == mesh().store.get(view, CLUSTER, REVIEWS)
    assert "Plugin/example@1.0" not in origins(compiler, "mesh", CLUSTER, REVIEWS)


def test_plugins_come_by_name_each_on_the_results_of_the_others() -> None:
    first, second = (loaded(Plugin({Cluster: with_stats(name)}), name) for name in ("a", "b"))
    assert held(mesh(first, second), EDGE, CLUSTER, REVIEWS, Cluster).alt_stat_name.endswith("a@mesh b@mesh ")


def audit(target: Target) -> Iterator[Any]:
    if target.scope == "raw":
        yield Cluster(name="audit", alt_stat_name="own ")
        yield Added("web/x", VirtualHost(name="x"))


def test_what_is_added_is_served_to_whom_it_is_for_and_patched_by_later_plugins(tmp_path: Path) -> None:
    adder = loaded(Plugin({Cluster: with_stats("a")}, audit), "a")
    compiler = mesh(adder, loaded(Plugin({Cluster: with_stats("b")}), "b"))
    assert held(compiler, EDGE, CLUSTER, "audit", Cluster).alt_stat_name == "own b@raw "
    assert held(compiler, NODE, CLUSTER, "audit", Cluster) is None
    assert origins(compiler, "raw", CLUSTER, "audit") == ["Plugin/a@1.0", "Plugin/b@1.0"]
    # Raw files come to the same scope, and go again.
    (tmp_path / "a.yaml").write_text(raw_file(cluster()))
    catalog = load_once([], envoy_paths=[tmp_path])
    compiler.apply(catalog.manifests().items())
    compiler.compile()
    assert held(compiler, EDGE, CLUSTER, "db", Cluster).alt_stat_name == "a@raw b@raw "
    assert held(compiler, EDGE, CLUSTER, "audit", Cluster) is not None
    compiler.apply((), catalog.manifests())
    compiler.compile()
    assert held(compiler, EDGE, CLUSTER, "db", Cluster) is None
    assert held(compiler, EDGE, CLUSTER, "audit", Cluster) is not None


def raising(target: Target, message: Cluster) -> Cluster:
    raise KeyError("zone")


def renaming(target: Target, message: Cluster) -> Cluster:
    message.name += "2"
    return message


@pytest.mark.parametrize(
    ("patch", "reason"),
    [
        (raising, "KeyError: 'zone'"),
        (renaming, "it changed the name to"),
        (lambda target, message: Listener(), "it returned Listener"),
        (lambda target, message: "no", "it returned str"),
    ],
)
def test_a_mistake_keeps_the_last_good_version_and_is_a_finding_that_names_the_plugin(patch: Any, reason: str) -> None:
    broken = False

    def sometimes(target: Target, message: Cluster) -> Any:
        return patch(target, message) if broken and "reviews" in message.name else with_stats("x")(target, message)

    compiler = mesh(loaded(Plugin({Cluster: sometimes})))
    before = held(compiler, EDGE, CLUSTER, REVIEWS, Cluster)
    broken = True
    rule = destination_rule("reviews", "reviews", traffic_policy=TrafficPolicy(LoadBalancerSettings(simple="RANDOM")))
    compiler.apply([(rule.id, rule)])
    compiler.compile()
    assert held(compiler, EDGE, CLUSTER, REVIEWS, Cluster) == before
    said = [found for found in compiler.diagnostics() if found.code == "XB9002"]
    assert said, compiler.diagnostics()
    assert all("plug-in example@1.0 failed on Cluster" in found.message for found in said)
    assert all(reason in found.message for found in said)
    assert {found.hint for found in said} == {"repair or uninstall the plug-in"}
    broken = False
    compiler.apply((), [rule.id])
    compiler.compile()
    assert not [found for found in compiler.diagnostics() if found.code == "XB9002"]


def test_a_name_that_is_there_cannot_be_added() -> None:
    def adds(target: Target) -> list[Any]:
        return [Cluster(name=REVIEWS)] if target.scope == "mesh" else []

    compiler = mesh(loaded(Plugin(adds=adds)))
    said = {found.message.rpartition(": ")[2] for found in compiler.diagnostics() if found.code == "XB9002"}
    assert len(said) == 1
    assert f"plug-in example@1.0 adds {REVIEWS!r}, which is there; patch it instead" in said.pop()


def test_what_plugins_patch_is_not_carried_by_the_kernel(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(raw_file(listener(), cluster()))
    (row,) = listener_rows(mesh(directory=tmp_path))
    assert row["plane"] == "L4"
    for kind, plane in ((Listener, "L7"), (Cluster, "L7"), (RouteConfiguration, "L4")):
        compiler = mesh(loaded(Plugin({kind: lambda target, message: None})), directory=tmp_path)
        (row,) = listener_rows(compiler)
        assert row["plane"] == plane, kind
    assert held(compiler, EDGE, LISTENER, "db", Listener) is not None


def test_a_redirect_waits_for_the_patched_virtual_host_as_it_is_served() -> None:
    def needs(*plugins: LoadedPlugin) -> set[str]:
        compiler = Compiler(MeshSettings(), plugins=plugins)
        manifests = (*bookinfo(), virtual_service("reviews", "reviews", route(to("reviews"))))
        compiler.apply((manifest.id, manifest) for manifest in manifests)
        compiler.compile()
        view = View(client_scopes("agent~10.0.0.1~node1~x", ()), "node1", "agent")
        found = [need for entry in compiler.store.wildcard(view, FRONTEND) for need in entry.requires]
        hosts = compiler.store.wildcard(View(client_scopes(NODE, ()), "", ""), VIRTUAL_HOST)
        return {need.version for need in (*found, *(need for entry in hosts for need in entry.requires))}

    assert AS_SERVED not in needs()
    patch = Plugin({VirtualHost: lambda target, message: message, RouteConfiguration: lambda target, message: message})
    assert needs(loaded(patch)) == {AS_SERVED}


def test_datapath_resources_are_not_open_to_plugins() -> None:
    with pytest.raises(ConfigError, match="not open to plug-ins"):
        mesh(loaded(Plugin({Policy: lambda target, message: message})))
    with pytest.raises(ConfigError, match="no message of xds-protos"):
        mesh(loaded(Plugin({str: lambda target, message: message})))


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The example, as an installer would leave it: the module, and a dist-info beside it."""
    shutil.copy(ROOT / "deploy/examples/plugin/xdsbpf_example_plugin.py", tmp_path)
    info = tmp_path / "xdsbpf_example_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: xdsbpf-example-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[xdsbpf.plugins]\nexample = xdsbpf_example_plugin:PLUGIN\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "xdsbpf_example_plugin", raising=False)
    return tmp_path


def test_the_example_is_found_by_its_entry_point_and_does_what_it_says(installed: Path) -> None:
    (found,) = load_plugins()
    assert (found.name, found.version, found.distribution) == ("example", "1.0", "xdsbpf-example-plugin")
    compiler = mesh(found)
    patched = held(compiler, EDGE, CLUSTER, REVIEWS, Cluster)
    assert patched.upstream_connection_options.tcp_keepalive.keepalive_time.value == 30
    assert held(compiler, EDGE, CLUSTER, "audit", Cluster).load_assignment.cluster_name == "audit"
    assert held(compiler, NODE, CLUSTER, "audit", Cluster) is None
    assert held(mesh(), EDGE, CLUSTER, "audit", Cluster) is None


def test_the_commands_list_and_use_what_is_installed(installed: Path) -> None:
    import json
    import os

    def xdsbpf(*arguments: str) -> str:
        path = os.pathsep.join((str(installed), str(ROOT)))
        command = [sys.executable, "-m", "xdsbpf", *arguments]
        return subprocess.run(
            command, cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=True
        ).stdout

    (item,) = json.loads(xdsbpf("plugins", "-o", "json"))["items"]
    assert item == {
        "name": "example",
        "version": "1.0",
        "distribution": "xdsbpf-example-plugin",
        "patches": ["envoy.config.cluster.v3.Cluster"],
        "adds": True,
    }
    text = xdsbpf("translate", "-f", "deploy/examples/bookinfo", "--proxy", EDGE, "--type", "cds", "-o", "json")
    rows = json.loads(text)["resources"][CLUSTER]
    assert all("Plugin/example@1.0" in row["origins"] for row in rows)
    assert "audit" in {row["name"] for row in rows}


def test_what_cannot_be_loaded_is_said_at_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "xb_bad_plugin.py").write_text("x = 1 +\n")
    for value, reason in (
        ("xb_bad_plugin:x", "SyntaxError"),
        ("json:nothing", "AttributeError"),
        ("no_such:x", "Module"),
    ):
        with pytest.raises(ConfigError, match=reason):
            load_plugins([EntryPoint("bad", value, "xdsbpf.plugins")])
    with pytest.raises(ConfigError, match=r"is no xdsbpf\.plugin\.Plugin"):
        load_plugins([EntryPoint("bad", "json:dumps", "xdsbpf.plugins")])
