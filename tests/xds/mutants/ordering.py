"""Rules 32 to 39, broken: order and warming."""

from __future__ import annotations

from tests.xds import test_a4_ordering as a4
from tests.xds.mutation import Edit, Mutant, Seen, no_response, noise
from tests.xds.resources import CDS, EDS, LDS, LEDS, RDS, SDS
from tests.xds.wire import Variant
from xdsbpf.xds import delta, guard, references, session, store, streams, warming

SOTW, DELTA = Variant.SOTW_ADS, Variant.DELTA_ADS
_PER_TYPE = (Variant.SOTW_TYPE, Variant.DELTA_TYPE)

_D, _B = delta.DeltaSession, session.Session

MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        32,
        "types are sent in no order",
        Edit(_B, "_insert", "_RANK.get(item[0], len(_RANK))", "-_RANK.get(item[0], len(_RANK))"),
        a4.test_one_change_arrives_in_the_order_of_references,
        DELTA,
        Seen(
            "assert [response.type_url for response in seen] == order",
            "assert ['type.google",
        ),
    ),
    Mutant(
        32,
        "a removal waits for nothing",
        Edit(_B, "_may_leave", "self._guard.free(", "list(subscription.removals) or self._guard.free("),
        a4.test_a_cluster_leaves_only_after_the_routes_that_left_it_were_acked,
        DELTA,
        Seen("await client.quiet()", noise(CDS)),
    ),
    Mutant(
        32,
        "a removal waits for changes only, not for what names the cluster",
        Edit(guard.ClusterGuard, "took", "if clusters and name in subscription.held:", "if False:"),
        a4.test_a_cluster_stays_while_an_accepted_route_names_it,
        DELTA,
        Seen("await client.quiet()", noise(CDS)),
    ),
    Mutant(
        33,
        "endpoints do not follow their cluster",
        Edit(_B, "_owe", "subscription.names & wanted", "()"),
        a4.test_the_endpoints_of_a_changed_cluster_follow_it_though_unchanged,
        DELTA,
        Seen("changed, follows = await client.receive(), await client.receive()", "no response of any type"),
    ),
    Mutant(
        34,
        "what is owed to a reconnect is forgotten",
        Edit(_D, "_first_request", "claimed.keys() - owed", "claimed.keys()"),
        a4.test_after_a_reconnect_the_endpoints_of_a_changed_cluster_come_though_held,
        DELTA,
        Seen('assert (await client.receive(EDS)).holds == {"a": 1}', no_response(EDS)),
        {"first": CDS},
    ),
    Mutant(
        33,
        "single endpoints do not follow",
        Edit(_D, "_owe_members", "self._force(subscription, name)", "pass"),
        a4.test_single_endpoints_follow_the_cluster_whose_endpoints_name_their_collection,
        Variant.DELTA_ADS,
        Seen("response = await client.receive()", "no response of any type"),
    ),
    Mutant(
        34,
        "single endpoints that are held are not owed",
        Edit(_D, "_first_request", "spared if name not in owed else frozenset()", "spared"),
        a4.test_after_a_reconnect_single_endpoints_of_a_changed_cluster_come_though_held,
        Variant.DELTA_ADS,
        Seen('assert (await client.receive(LEDS)).holds == {MEMBERS + "one": 1}', no_response(LEDS)),
        {"first": CDS},
    ),
    Mutant(
        35,
        "listeners wait for the ACK of clusters",
        Edit(_D, "_next_update", "self._held_back(subscription, earlier)", "any(item.in_flight for item in earlier)"),
        a4.test_nothing_waits_for_the_ack_of_clusters,
        DELTA,
        Seen('assert (await client.receive(type_url)).holds == {"r/a": 2}', no_response(LDS)),
    ),
    Mutant(
        36,
        "secrets do not follow who names them",
        Edit(_B, "_owe", ", (names.SECRET, references.secrets)", ","),
        a4.test_the_secret_of_a_changed_cluster_follows_it_though_unchanged,
        DELTA,
        Seen('await client.expect(SDS, {"s": 1})', no_response(SDS)),
    ),
    Mutant(
        37,
        "no endpoints are a removal",
        Edit(store.ResourceStore, "lookup", "if resource is not None:", "if resource and len(resource.body) != 3:"),
        a4.test_no_endpoints_are_sent_as_an_empty_assignment_and_not_as_a_removal,
        DELTA,
        Seen('await client.expect(EDS, {"a": 0})', "removed {'a'}, expected ()"),
    ),
    Mutant(
        38,
        "routes do not wait for their clusters",
        Edit(guard.ClusterGuard, "holds_back", "if not missing:", "if True:"),
        a4.test_a_route_waits_until_its_new_cluster_is_acknowledged,
        DELTA,
        Seen('assert other.holds == {"q": 2}', "'r': 2"),
    ),
    Mutant(
        38,
        "a cluster that was sent is there",
        Edit(guard.ClusterGuard, "_unsettled_on", "unsent | (wanted & clusters.unusable)", "unsent"),
        a4.test_a_route_waits_until_its_new_cluster_is_acknowledged,
        SOTW,
        Seen('assert other.holds == {"q": 2}', "'r': 2"),
    ),
    Mutant(
        38,
        "a cluster that does not exist is not waited for",
        Edit(guard.ClusterGuard, "_missing", "if is_update:", "if False:"),
        a4.test_a_route_to_a_cluster_that_is_created_after_it_comes_after_it,
        DELTA,
        Seen("await client.quiet()", noise(RDS)),
    ),
    Mutant(
        38,
        "nobody looks again when a wait ends",
        Edit(guard.ClusterGuard, "is_due", " or now >= self.next_limit", ""),
        a4.test_a_route_to_a_cluster_that_nobody_serves_comes_after_a_moment,
        DELTA,
        Seen('await client.expect(RDS, {"r": 2})', no_response(RDS)),
    ),
    Mutant(
        39,
        "endpoints follow a cluster of their own name only",
        Edit(references, "_of_cluster", "message.eds_cluster_config.service_name or resource.name", "resource.name"),
        a4.test_endpoints_follow_every_cluster_that_has_their_service_name,
        DELTA,
        Seen("follows = await client.receive()", "no response of any type"),
    ),
    *(
        Mutant(
            38,
            f"the streams of one client know nothing of each other ({variant.value})",
            Edit(streams, "_client", "if method.type_url not in LINKED_TYPES:", "if True:"),
            a4.test_over_streams_of_their_own_a_route_waits_until_its_new_cluster_is_warm,
            variant,
            Seen("await client.quiet()", noise(RDS)),
        )
        for variant in _PER_TYPE
    ),
    Mutant(
        38,
        "a cluster that was accepted on a stream of its own is warm",
        Edit(warming.Warming, "reason", "if found is None:", "if True:"),
        a4.test_over_streams_of_their_own_a_route_waits_until_its_new_cluster_is_warm,
        Variant.DELTA_TYPE,
        Seen("await client.quiet()", noise(RDS)),
    ),
    *(
        Mutant(
            32,
            f"a cluster leaves whatever the client has on other streams ({variant.value})",
            Edit(guard.ClusterGuard, "users_elsewhere", "yield from self._siblings.users()", "yield from ()"),
            a4.test_over_streams_of_their_own_a_cluster_leaves_after_the_routes_that_left_it_were_acked,
            variant,
            Seen("await client.quiet()", noise(CDS)),
        )
        for variant in _PER_TYPE
    ),
)
