"""Broken servers: for a rule, the smallest change of the product that breaks it, and the test that must see it."""

from __future__ import annotations

import itertools

from tests.xds import test_a1_streams as a1
from tests.xds import test_a2_sotw as a2
from tests.xds import test_a3_delta as a3
from tests.xds import test_a4_ordering as a4
from tests.xds import test_a5_flow as a5
from tests.xds.mutation import Edit, Mutant, Value
from tests.xds.resources import CDS, EDS
from tests.xds.wire import Variant
from xdsbpf.model import resource
from xdsbpf.xds import delta, grpcio, protocol, request, session, shared, sotw, subscription

SOTW, SOTW_TYPE = Variant.SOTW_ADS, Variant.SOTW_TYPE
DELTA, DELTA_TYPE = Variant.DELTA_ADS, Variant.DELTA_TYPE


_numbers = itertools.count()


def _counted(body: bytes) -> str:
    """A version that says nothing about the content."""
    return str(next(_numbers))


_D, _S, _B, _SUB = delta.DeltaSession, sotw.SotwSession, session.Session, subscription.Subscription
_TRUE_NONCE = "if request.nonce != subscription.last_nonce:"

MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        1,
        "an empty type is no type of the service",
        Edit(_B, "_type_of", " or self._service_type", ""),
        a1.test_on_a_stream_of_one_type_an_empty_type_url_means_that_type,
        DELTA_TYPE,
    ),
    Mutant(
        1,
        "a service serves any type",
        Edit(_B, "_type_of", 'self._service_type not in ("", type_url)', "False"),
        a1.test_on_a_stream_of_one_type_another_type_is_an_invalid_argument,
        DELTA_TYPE,
    ),
    Mutant(
        2,
        "a node may change",
        Edit(_B, "_type_of", "request.node.id != self.node_id", "False"),
        a1.test_a_node_that_changes_ends_the_stream_and_one_that_is_repeated_does_not,
        DELTA,
    ),
    Mutant(
        3,
        "an ACK settles nothing",
        Edit(_SUB, "answered", "if nonce not in self.in_flight:", "if True:"),
        a1.test_each_type_has_a_state_of_its_own,
        DELTA,
    ),
    Mutant(
        4,
        "a first request with a nonce is none",
        Edit(
            _D,
            "_first_request",
            "subscription.subscribe(asked)",
            "if request.nonce: return\n    subscription.subscribe(asked)",
        ),
        a1.test_a_first_request_is_answered_whatever_nonce_it_carries,
        DELTA,
        {"leaked": {}},
    ),
    Mutant(
        8,
        "names of a stale request count",
        Edit(_S, "_later_request", _TRUE_NONCE, "if False:"),
        a2.test_a_request_with_a_stale_nonce_is_ignored_with_its_names,
        SOTW,
    ),
    Mutant(
        10,
        "a refused whole set is sent again",
        Edit(_S, "_refuse", "others = ", "subscription.answer_due = True\n    others = "),
        a2.test_what_was_refused_is_not_sent_again_until_it_changes,
        SOTW,
        {"type_url": CDS},
    ),
    Mutant(
        11,
        "an equal version spares nothing",
        Edit(_S, "_first_request", "and request.version and", "and False and"),
        a2.test_on_a_new_stream_an_equal_version_spares_a_wildcard_and_never_names,
        SOTW,
    ),
    Mutant(
        12,
        "new names wait for a change",
        Edit(_S, "_take_names", "for name in new:", "for name in ():"),
        a2.test_a_new_name_is_answered_though_nothing_changed,
        SOTW,
    ),
    Mutant(
        13,
        "a whole set is sent as differences",
        Value(sotw, "_is_whole", lambda found: False),
        a2.test_clusters_and_listeners_always_come_as_the_full_set,
        SOTW,
        {"type_url": CDS},
    ),
    Mutant(
        17,
        "a stale nonce drops the lists",
        Edit(_D, "_later_request", "star = ", "if request.nonce and sent is None: return\n    star = "),
        a3.test_a_request_with_a_stale_nonce_still_subscribes_and_unsubscribes,
        DELTA,
    ),
    Mutant(
        19,
        "a name asked for again is not answered",
        Edit(
            _D,
            "_later_request",
            "if name != protocol.WILDCARD:",
            "if name != protocol.WILDCARD and name not in subscription.held:",
        ),
        a3.test_a_name_that_is_subscribed_again_is_answered_again,
        DELTA,
    ),
    Mutant(
        20,
        "claims spare nothing",
        Edit(_D, "_first_request", "(name not in claimed or name in owed)", "True"),
        a3.test_names_that_a_reconnecting_client_holds_are_not_sent_again,
        DELTA,
    ),
    Mutant(
        21,
        "missing names are not reported",
        Edit(_D, "_settle_missing", "if forced and ", "if False and "),
        a3.test_a_missing_name_is_reported_as_removed_and_sent_when_it_is_created,
        DELTA,
        {"type_url": EDS},
    ),
    Mutant(
        22,
        "deletions are not sent",
        Edit(_D, "_next_removal", "if stamp < limit and ", "if False and "),
        a3.test_a_deletion_reaches_every_stream_that_was_sent_it_and_no_other,
        DELTA,
    ),
    Mutant(
        25,
        "an empty request of endpoints is a wildcard",
        Value(protocol, "NAMED_ONLY", frozenset()),
        a3.test_an_empty_first_request_of_a_named_type_subscribes_to_nothing,
        DELTA,
        {"type_url": EDS},
    ),
    Mutant(
        27,
        "claims of what is gone are forgotten",
        Edit(_D, "_take_claims", "if current is None:", "if current is None:\n            continue\n        if False:"),
        a3.test_a_reconnecting_client_gets_what_changed_and_learns_what_went,
        DELTA,
    ),
    Mutant(
        33,
        "endpoints do not follow their cluster",
        Edit(_B, "_owe_endpoints", "endpoints.names & clusters.keys()", "()"),
        a4.test_the_endpoints_of_a_changed_cluster_follow_it_though_unchanged,
        DELTA,
    ),
    Mutant(
        34,
        "what is owed to a reconnect is forgotten",
        Edit(_D, "_first_request", " or name in owed", ""),
        a4.test_after_a_reconnect_the_endpoints_of_a_changed_cluster_come_though_held,
        DELTA,
        {"first": CDS},
    ),
    Mutant(
        41,
        "changes do not wait for the ACK",
        Edit(_D, "_next_update", "and not subscription.in_flight and ", "and "),
        a5.test_while_an_ack_is_out_changes_collect_and_the_latest_wins,
        DELTA,
    ),
    Mutant(
        44,
        "pages have no limit of bytes",
        Value(shared, "PAGE_BYTES", 64 << 20),
        a5.test_five_megabytes_of_endpoints_come_in_pages,
        DELTA,
    ),
    Mutant(
        45,
        "pages have no limit of resources",
        Value(shared, "PAGE_RESOURCES", 100_000),
        a5.test_a_first_sync_of_many_clusters_comes_in_pages,
        DELTA,
    ),
    Mutant(
        55,
        "what came with a refused resource is not sent again",
        Edit(_D, "_later_request", "for name in others if self._quarantine else ():", "for name in ():"),
        a5.test_a_refused_resource_does_not_hold_back_the_others,
        DELTA,
        {"type_url": CDS},
    ),
    Mutant(
        5,
        "an unknown type ends the stream",
        Edit(_B, "_type_of", "if not type_url:", "if not type_url or not self._reader.knows_type(type_url):"),
        a1.test_an_unknown_type_leaves_the_others_alone,
        DELTA,
    ),
    Mutant(
        6,
        "broken bytes are the server's fault",
        Edit(request, "_parse", "INVALID_ARGUMENT", "INTERNAL"),
        a1.test_bytes_that_are_no_request_end_their_own_stream_only,
        SOTW,
    ),
    Mutant(
        7,
        "only the first of pipelined requests counts",
        Edit(_S, "_later_request", "self._take_names(subscription, request.names)", "pass"),
        a1.test_of_pipelined_requests_the_last_one_is_answered_in_full,
        SOTW,
    ),
    Mutant(
        9,
        "names count only in an ACK or a NACK",
        Edit(
            _S,
            "_later_request",
            _TRUE_NONCE,
            "if request.nonce != subscription.last_nonce or (request.error is None and not subscription.in_flight):",
        ),
        a2.test_names_that_change_at_an_old_version_are_no_nack,
        SOTW,
    ),
    Mutant(
        14,
        "an answer waits until all names exist",
        Edit(
            _S,
            "_next_update",
            "if subscription.in_flight or ",
            "if any(self._visible(subscription, name) is None for name in subscription.names) or ",
        ),
        a2.test_what_exists_is_answered_at_once_and_the_missing_when_it_is_created,
        SOTW,
        {"type_url": EDS},
    ),
    Mutant(
        16,
        "giving up all names is answered",
        Edit(
            _S,
            "_take_names",
            "forgotten = ",
            "subscription.answer_due = subscription.answer_due or not wanted\n    forgotten = ",
        ),
        a2.test_giving_up_all_names_is_not_answered,
        SOTW,
        {"type_url": EDS},
    ),
    Mutant(
        18,
        "unsubscribe comes first",
        Edit(
            _D,
            "_later_request",
            "star = subscription.subscribe(request.subscribe)",
            "subscription.unsubscribe(request.unsubscribe, self._stamp)\n    "
            "star = subscription.subscribe(request.subscribe)\n    request = DeltaRequest('', request.subscribe)",
        ),
        a3.test_a_name_in_both_lists_ends_unsubscribed,
        DELTA,
    ),
    Mutant(
        23,
        "an unsubscribe under a wildcard is not answered",
        Edit(_SUB, "unsubscribe", "elif self.is_wildcard or self.in_glob(name):", "elif False:"),
        a3.test_a_name_unsubscribed_under_a_wildcard_is_answered_with_what_the_wildcard_holds,
        DELTA,
    ),
    Mutant(
        24,
        "a name ends the legacy wildcard",
        Edit(
            _SUB,
            "subscribe",
            "self._own_names().add(name)",
            "self._own_names().add(name); self.wildcard = Wildcard.NONE",
        ),
        a3.test_a_legacy_wildcard_outlives_names_and_ends_with_a_star,
        DELTA,
    ),
    Mutant(
        26,
        "a glob is a name",
        Edit(_SUB, "in_glob", "return any(", "return False and any("),
        a3.test_a_glob_collection_is_a_wildcard_of_its_prefix,
        DELTA,
    ),
    Mutant(
        28,
        "versions differ between replicas",
        Value(resource, "version_of", _counted),
        a3.test_a_failover_to_a_replica_sends_nothing_again,
        DELTA,
    ),
    Mutant(
        29,
        "a change that changes nothing has another version",
        Value(resource, "version_of", _counted),
        a3.test_a_version_changes_if_and_only_if_the_content_does,
        DELTA,
    ),
    Mutant(
        31,
        "an unknown virtual host is removed",
        Edit(_D, "_settle_missing", "if held is None and subscription.type_url == names.VIRTUAL_HOST:", "if False:"),
        a3.test_an_unknown_virtual_host_is_answered_with_its_name_as_alias_and_no_body,
        DELTA,
    ),
    Mutant(
        32,
        "types are sent in no order",
        Edit(_B, "_insert", "_RANK.get(item[0], len(_RANK))", "-_RANK.get(item[0], len(_RANK))"),
        a4.test_one_change_arrives_in_the_order_of_references,
        DELTA,
    ),
    Mutant(
        32,
        "a removal waits for nothing",
        Edit(_B, "_may_leave", "default=self._stamp + 1)", "default=0) * 0 + self._stamp + 1"),
        a4.test_a_cluster_leaves_only_after_the_routes_that_left_it_were_acked,
        DELTA,
    ),
    Mutant(
        37,
        "no endpoints are a removal",
        Edit(
            _B,
            "_visible",
            "if resource is None or ",
            "if resource is not None and len(resource.body) == 3:\n        return None\n    if resource is None or ",
        ),
        a4.test_no_endpoints_are_sent_as_an_empty_assignment_and_not_as_a_removal,
        DELTA,
    ),
    Mutant(
        46,
        "a request has four megabytes at most",
        Value(grpcio, "_OPTIONS", []),
        a5.test_a_client_that_claims_two_hundred_thousand_names_is_served,
        DELTA,
    ),
    Mutant(
        47,
        "pings are punished",
        Value(grpcio, "_OPTIONS", []),
        a5.test_pings_of_a_client_are_answered_and_never_too_many,
        DELTA,
    ),
    Mutant(
        50,
        "changes do not wait for the ACK",
        Edit(_D, "_next_update", "and not subscription.in_flight and ", "and "),
        a5.test_a_burst_of_changes_reaches_a_client_in_few_responses,
        DELTA,
    ),
)
