"""What the printed bootstrap of a stock Envoy says of the Envoy."""

from __future__ import annotations

import pytest

from xdsbpf.compile.raw.bootstrap import ClientBootstrap, envoy_bootstrap


@pytest.mark.parametrize(
    ("options", "features"),
    [
        (ClientBootstrap("edge-1", is_delta=False), ["xds.config.resource-in-sotw"]),
        (ClientBootstrap("edge-1"), []),
        (ClientBootstrap("edge-1", is_delta=False, poll_s=5.0), []),
    ],
)
def test_an_envoy_of_the_state_of_the_world_announces_that_it_knows_a_time_to_live(
    options: ClientBootstrap, features: list[str]
) -> None:
    """Rule 52: Envoy does not say so by itself. Delta needs no word, and a poll has no room for it."""
    assert envoy_bootstrap(options)["node"].get("client_features", []) == features
