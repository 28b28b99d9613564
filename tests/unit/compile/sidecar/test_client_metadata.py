"""Node metadata of a sidecar: what is refused, and what is said to have no effect."""

from __future__ import annotations

import pytest

from xdsbpf.compile.client_metadata import check_interception, without_effect
from xdsbpf.compile.views import client_view
from xdsbpf.errors import ProtocolError

NODE_ID = "sidecar~10.1.0.1~r1.default~default.svc.cluster.local"


@pytest.mark.parametrize("mode", ["NONE", "TPROXY", 1])
def test_a_sidecar_that_connections_do_not_reach_by_redirection_is_refused(mode: object) -> None:
    with pytest.raises(ProtocolError) as caught:
        client_view(NODE_ID, {"INTERCEPTION_MODE": mode}, lambda _namespace, _pod: None)
    assert caught.value.status == "UNIMPLEMENTED"
    assert str(mode) in str(caught.value)


def test_redirection_is_what_there_is_and_a_grpc_program_needs_none() -> None:
    check_interception({})
    check_interception({"INTERCEPTION_MODE": "REDIRECT"})
    assert client_view(NODE_ID, {"INTERCEPTION_MODE": "NONE", "GENERATOR": "grpc"}, lambda _namespace, _pod: None)


@pytest.mark.parametrize(
    ("metadata", "key"),
    [
        ({"HTTP10": "1"}, "HTTP10"),
        ({"DNS_CAPTURE": True}, "DNS_CAPTURE"),
        ({"ENABLE_HBONE": "true"}, "ENABLE_HBONE"),
        ({"IDLE_TIMEOUT": "5m"}, "IDLE_TIMEOUT"),
        ({"INSTANCE_IPS": "10.1.0.1,fd00::1"}, "INSTANCE_IPS"),
        ({"INSTANCE_IPS": ["fd00::1"]}, "INSTANCE_IPS"),
    ],
)
def test_metadata_without_effect_are_named(metadata: dict[str, object], key: str) -> None:
    (text,) = without_effect(metadata)
    assert text.startswith(key)


def test_what_istios_agent_says_of_every_proxy_is_nothing_to_report() -> None:
    usual = {"NAMESPACE": "a", "LABELS": {"app": "x"}, "INSTANCE_IPS": "10.1.0.1", "DNS_CAPTURE": "false", "HTTP10": ""}
    assert without_effect({**usual, "ISTIO_VERSION": "1.30.0", "PROXY_CONFIG": {}, "ENABLE_HBONE": "False"}) == ()
