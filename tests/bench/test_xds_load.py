"""The benchmark's own parts work: its clients speak to the product on each transport, and to the floors."""

from __future__ import annotations

import pytest

from tests.bench.load.rig import all_clusters, named, started
from tests.bench.load.subject import SUBJECTS


@pytest.mark.parametrize("kind", SUBJECTS)
def test_every_client_gets_a_change_once_and_answers_it(kind: str) -> None:
    with started(kind, endpoint_sets=40) as rig:
        rig.client.requests([named(40)])
        rig.client.open(0, 3)
        rig.client.wait(3 * 40)
        answered = rig.ask("answers")
        changed_at = rig.ask("change", 7, 1, 1)
        rig.client.wait(3 * 41)
        rig.ask("answered", answered + 3)
        assert rig.client.times(0, 3, changed_at).clients == 3
        stat = rig.client.stat()
        assert (stat["resources"], stat["messages"], stat["closed"]) == (3 * 41, 3 * 2, 0)


@pytest.mark.parametrize("kind", ["grpcio", "fast"])
def test_clients_ask_for_the_endpoints_of_clusters_as_envoy_does(kind: str) -> None:
    with started(kind, clusters=2500, endpoint_sets=2500) as rig:
        rig.client.requests([all_clusters()], follow=True)
        rig.client.open(0, 2)
        rig.client.wait(2 * 2 * 2500)
        assert rig.client.stat()["closed"] == 0
