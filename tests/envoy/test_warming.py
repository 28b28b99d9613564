"""What a real Envoy warms with: endpoints under a shared name, secrets of clusters; never for over a second."""

from __future__ import annotations

from pathlib import Path

import pytest
from envoy.extensions.transport_sockets.tls.v3.secret_pb2 import Secret
from envoy.extensions.transport_sockets.tls.v3.tls_pb2 import UpstreamTlsContext  # noqa: F401  (registers an Any type)

from tests.authority import Authority
from tests.envoy.load_rig import DEADLINE_S, Rig, Step, running
from tests.envoy.real_envoy import config_source, until
from tests.envoy.web_resources import WARM_WITHIN, endpoints, made
from tests.xds.wire import ADS, Variant
from xdsbpf.model.names import CLUSTER, SECRET
from xdsbpf.model.resource import Resource
from xdsbpf.xds.session import Session

pytestmark = pytest.mark.envoy

TLS = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext"


def shared(rig: Rig, name: str, edition: int = 1) -> Resource:
    """A cluster whose endpoints are called `shared`."""
    return rig.web.cluster(name, edition, service_name="shared")


def encrypted(rig: Rig, edition: int, secret: str) -> Resource:
    """A cluster of fixed endpoints that warms until it has a secret."""
    source = config_source(rig.variant, WARM_WITHIN)
    needs = {"validation_context_sds_secret_config": {"name": secret, "sds_config": source}}
    socket = {"name": "tls", "typed_config": {"@type": TLS, "common_tls_context": needs}}
    fixed = {"cluster_name": "tls", "endpoints": []}
    return rig.web.cluster(
        "tls", edition, type="STATIC", eds_cluster_config=None, load_assignment=fixed, transport_socket=socket
    )


def secret(name: str) -> Resource:
    """A validation context that trusts an authority of its own."""
    trusted = {"trusted_ca": {"inline_string": Authority().pem.decode()}}
    return made(Secret(), SECRET, name, {"name": name, "validation_context": trusted})


async def clusters_share_endpoints(rig: Rig) -> None:
    """Rule 39: Envoy does not ask for a name again that it has."""
    async with rig.load.running("web"):
        rig.put(shared(rig, "first"), endpoints("shared", rig.servers.ports["two"]))
        await rig.synced()
        rig.put(shared(rig, "second"), rig.web.routes({"web": "second", "db": "z"}))
        await rig.answered_by("web", "two")
        rig.put(shared(rig, "first", 2), shared(rig, "second", 2))
        await rig.synced()
        rig.put(rig.web.routes({"web": "first", "db": "z"}), removes=((CLUSTER, "second"),))
        await rig.answered_by("web", "two")
        await rig.synced()
    assert not rig.load.failures


async def new_clusters_check_health_and_resolve_names(rig: Rig) -> None:
    """Each in one write with its route. Over a stream per type nobody sees when they are warm: they get a moment."""
    port = rig.servers.ports["two"]
    checks = {"timeout": "1s", "interval": "5s", "unhealthy_threshold": 1, "healthy_threshold": 1}
    checked = rig.web.cluster("checked", health_checks=[{**checks, "tcp_health_check": {}}])
    address = {"socket_address": {"address": "localhost", "port_value": port}}
    fixed = {"cluster_name": "named", "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}]}
    named = rig.web.cluster(
        "named", type="STRICT_DNS", eds_cluster_config=None, dns_lookup_family="V4_ONLY", load_assignment=fixed
    )
    async with rig.load.running("web"):
        for puts in ((checked, endpoints("checked", port)), (named,)):
            rig.put(*puts, rig.web.routes({"web": puts[0].name, "db": "z"}))
            await rig.answered_by("web", "two")
            rig.put(rig.web.routes({"web": "a", "db": "z"}))
            await rig.answered_by("web", "one")
    assert not rig.load.failures


async def a_secret_stays(rig: Rig) -> None:
    """Rule 36: a cluster changes, its secret does not."""
    rig.put(encrypted(rig, 1, "ca"), secret("ca"))
    await rig.synced()
    for edition in (2, 3):
        rig.put(encrypted(rig, edition, "ca"))
        await rig.synced()
    rig.put(secret("ca"))
    await rig.synced()


async def a_secret_is_missing(rig: Rig) -> None:
    """Rule 36: the answer that there is none ends the wait."""
    rig.put(encrypted(rig, 1, "nosuch"))
    await rig.synced()


CASES = [
    *((needs, variant) for needs in (clusters_share_endpoints, a_secret_stays) for variant in Variant),
    *((new_clusters_check_health_and_resolve_names, variant) for variant in ADS),
    (new_clusters_check_health_and_resolve_names, Variant.DELTA_TYPE),
    pytest.param(new_clusters_check_health_and_resolve_names, Variant.SOTW_TYPE, marks=pytest.mark.slow),
    (a_secret_is_missing, Variant.DELTA_ADS),  # the state of the world has no word for it
]


@pytest.mark.parametrize(("needs", "variant"), CASES)
async def test_nothing_warms_for_over_a_second(tmp_path: Path, envoy: str, needs: Step, variant: Variant) -> None:
    async with running(tmp_path, envoy, variant) as rig:
        stalls = await rig.stalls()
        await needs(rig)
        assert await rig.stalls() == stalls


@pytest.mark.parametrize("variant", [Variant.DELTA_ADS, pytest.param(Variant.SOTW_ADS, marks=pytest.mark.slow)])
async def test_endpoints_that_are_not_owed_let_clusters_warm(
    tmp_path: Path, envoy: str, variant: Variant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control for endpoints. (Of a secret that it has, Envoy 1.40 does not wait for another answer.)"""
    monkeypatch.setattr(Session, "_owe", lambda *_: None)
    async with running(tmp_path, envoy, variant) as rig:
        stalls = await rig.stalls()
        await clusters_share_endpoints(rig)
        assert await rig.stalls() > stalls


async def test_a_secret_that_is_not_answered_lets_a_cluster_warm(tmp_path: Path, envoy: str) -> None:
    """The control for secrets: of one that is missing, the state of the world says nothing."""
    async with running(tmp_path, envoy, Variant.SOTW_ADS) as rig:
        stalls = await rig.stalls()
        rig.put(encrypted(rig, 1, "nosuch"))

        async def has_stalled() -> bool:
            return await rig.stalls() > stalls

        await until(has_stalled, DEADLINE_S, rig.explain)
