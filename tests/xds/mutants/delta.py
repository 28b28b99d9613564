"""Rules 17 to 31, broken: the delta protocol."""

from __future__ import annotations

import itertools

from tests.xds import test_a3_delta as a3
from tests.xds.mutation import Edit, Mutant, Seen, Value, no_response, noise
from tests.xds.resources import CDS, EDS
from tests.xds.wire import Variant
from xdsbpf.model import resource
from xdsbpf.xds import delta, protocol, response, subscription

DELTA = Variant.DELTA_ADS

_D, _SUB = delta.DeltaSession, subscription.Subscription

_numbers = itertools.count()


def _counted(body: bytes) -> str:
    """A version that says nothing about the content."""
    return str(next(_numbers))


MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        17,
        "a stale nonce drops the lists",
        Edit(_D, "_later_request", "star = ", "if request.nonce and sent is None: return\n    star = "),
        a3.test_a_request_with_a_stale_nonce_still_subscribes_and_unsubscribes,
        DELTA,
        Seen('await client.expect(EDS, {"b": 1})', no_response(EDS)),
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
        Seen("await client.quiet()", noise(EDS)),
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
        Seen('await client.expect(EDS, {"a": 1})', no_response(EDS)),
    ),
    Mutant(
        20,
        "claims spare nothing",
        Edit(_D, "_first_request", "claimed.keys() - owed", "frozenset()"),
        a3.test_names_that_a_reconnecting_client_holds_are_not_sent_again,
        DELTA,
        Seen("await client.quiet()", noise(EDS)),
    ),
    Mutant(
        21,
        "missing names are not reported",
        Edit(_D, "_settle_missing", "if forced and ", "if False and "),
        a3.test_a_missing_name_is_reported_as_removed_and_sent_when_it_is_created,
        DELTA,
        Seen('await client.expect(type_url, {"there": 1}, removed=("missing",))', no_response(EDS)),
        {"type_url": EDS},
    ),
    Mutant(
        22,
        "deletions are not sent",
        Edit(_D, "_next_removal", "for name in self._may_leave(subscription, later):", "for name in ():"),
        a3.test_a_deletion_reaches_every_stream_that_was_sent_it_and_no_other,
        DELTA,
        Seen('await wildcard.expect(CDS, {}, removed=("a",))', no_response(CDS)),
    ),
    Mutant(
        23,
        "an unsubscribe under a wildcard is not answered",
        Edit(_SUB, "unsubscribe", "elif self.is_wildcard or self.in_glob(name):", "elif False:"),
        a3.test_a_name_unsubscribed_under_a_wildcard_is_answered_with_what_the_wildcard_holds,
        DELTA,
        Seen('await client.expect(CDS, {"a": 1})', no_response(CDS)),
    ),
    Mutant(
        24,
        "a name ends the legacy wildcard",
        Edit(
            _SUB,
            "subscribe",
            "self._add_name(name)",
            "self._add_name(name); self.wildcard = Wildcard.NONE",
        ),
        a3.test_a_legacy_wildcard_outlives_names_and_ends_with_a_star,
        DELTA,
        Seen('await client.expect(CDS, {"b": 2})', no_response(CDS)),
    ),
    Mutant(
        25,
        "an empty request of endpoints is a wildcard",
        Value(protocol, "NAMED_ONLY", frozenset()),
        a3.test_an_empty_first_request_of_a_named_type_subscribes_to_nothing,
        DELTA,
        Seen("await client.quiet()", noise(EDS)),
        {"type_url": EDS},
    ),
    Mutant(
        26,
        "a glob is a name",
        Edit(_SUB, "in_glob", "return any(", "return False and any("),
        a3.test_a_glob_collection_is_a_wildcard_of_its_prefix,
        DELTA,
        Seen(
            'await client.expect(CDS, {inside + "a": 1})',
            "removed {'xdstp://mesh/envoy.config.cluster.v3.Cluster/blue/a'}, expected ()",
        ),
    ),
    Mutant(
        26,
        "context parameters do not count",
        Edit(protocol, "glob_matches", "return others == parameters", "return True"),
        a3.test_a_glob_collection_is_that_of_its_context_parameters,
        DELTA,
        Seen(
            'await client.expect(CDS, {path + "a?x=1&y=2": 1})',
            "got {'xdstp://mesh/envoy.config.cluster.v3.Cluster/blue/a': 1",
        ),
    ),
    Mutant(
        26,
        "members of a glob are sent though they are claimed",
        Edit(_D, "_force", "if member not in spared:", "if True:"),
        a3.test_a_glob_collection_comes_back_to_a_client_as_it_is_now,
        DELTA,
        Seen('await client.expect(CDS, {path + "changed": 2}', "Cluster/blue/same': 1}"),
    ),
    Mutant(
        27,
        "claims of what is gone are forgotten",
        Edit(_D, "_take_claims", "if current is None:", "if current is None:\n            continue\n        if False:"),
        a3.test_a_reconnecting_client_gets_what_changed_and_learns_what_went,
        DELTA,
        Seen('await client.expect(CDS, {"changed": 2, "new": 1}, removed=("gone",))', no_response(CDS)),
    ),
    Mutant(
        28,
        "versions differ between replicas",
        Value(resource, "version_of", _counted),
        a3.test_a_failover_to_a_replica_sends_nothing_again,
        DELTA,
        Seen("await client.expect(CDS, {})", "'b': 1"),
    ),
    Mutant(
        29,
        "a change that changes nothing has another version",
        Value(resource, "version_of", _counted),
        a3.test_a_version_changes_if_and_only_if_the_content_does,
        DELTA,
        Seen("await client.quiet()", noise(EDS)),
    ),
    Mutant(
        30,
        "a resource is put on a page twice",
        Edit(response.Page, "add", "self.resources.append(resource)", "self.resources.extend((resource, resource))"),
        a3.test_a_name_listed_twice_is_answered_once,
        DELTA,
        Seen("response = await client.receive(EDS)", "rule 30: a name twice in one response: ['a', 'a', 'missing']"),
    ),
    Mutant(
        31,
        "an unknown virtual host is removed",
        Edit(_D, "_settle_missing", "if held is None and subscription.type_url == names.VIRTUAL_HOST:", "if False:"),
        a3.test_an_unknown_virtual_host_is_answered_with_its_name_as_alias_and_no_body,
        DELTA,
        Seen(
            "assert [(item.name, item.aliases, item.edition) for item in response.items] ==",
            "assert [] == [('r/unknown'...own',), None)]",
        ),
    ),
)
