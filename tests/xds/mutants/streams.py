"""Rules 1 to 7, broken."""

from __future__ import annotations

from tests.xds import test_a1_identity as identity
from tests.xds import test_a1_streams as a1
from tests.xds.mutation import Edit, Mutant, Seen, no_response
from tests.xds.resources import CDS, EDS, LDS
from tests.xds.wire import Variant
from xdsbpf.xds import delta, peers, request, session, sotw

SOTW, DELTA, DELTA_TYPE = Variant.SOTW_ADS, Variant.DELTA_ADS, Variant.DELTA_TYPE

_D, _S, _B = delta.DeltaSession, sotw.SotwSession, session.Session

MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        1,
        "an empty type is no type of the service",
        Edit(_B, "_type_of", " or self._service_type", ""),
        a1.test_on_a_stream_of_one_type_an_empty_type_url_means_that_type,
        DELTA_TYPE,
        Seen(
            'assert (await client.receive(CDS)).holds == {"a": 1}',
            "the stream ended: StatusCode.INVALID_ARGUMENT, 'a request on an ADS stream has no type_url",
        ),
    ),
    Mutant(
        1,
        "a service serves any type",
        Edit(_B, "_type_of", 'self._service_type not in ("", type_url)', "False"),
        a1.test_on_a_stream_of_one_type_another_type_is_an_invalid_argument,
        DELTA_TYPE,
        Seen("assert (await client.end(CDS))[0] is INVALID", "the stream is still open within 0.6 s"),
    ),
    Mutant(
        2,
        "a node may change",
        Edit(_B, "_type_of", "request.node.id != self.node_id", "False"),
        a1.test_a_node_that_changes_ends_the_stream_and_one_that_is_repeated_does_not,
        DELTA,
        Seen("assert (await client.end(EDS))[0] is INVALID", "the stream is still open within 0.6 s"),
    ),
    Mutant(
        2,
        "a certificate stands for no node id",
        Edit(peers.PeerRules, "node_id_of", "identity is None", "True"),
        identity.test_a_certificate_that_entitles_to_one_node_id_stands_for_it,
        DELTA,
        Seen(
            'await client.expect(EDS, {"a": 1})',
            "the stream ended: StatusCode.INVALID_ARGUMENT, 'the first request of a stream has no node.id",
        ),
    ),
    Mutant(
        2,
        "a certificate stands for the first of several node ids",
        Edit(peers.PeerRules, "node_id_of", "len(set(choices)) > 1", "False"),
        identity.test_a_certificate_that_entitles_to_several_node_ids_stands_for_none,
        Variant.SOTW_TYPE,
        Seen("code, text = await client.end(EDS)", "the stream is still open within 0.6 s"),
        {"identity": identity.SEVERAL},
    ),
    Mutant(
        3,
        "all types have one state",
        Edit(
            _B,
            "on_request",
            "self._subscriptions.get(type_url)",
            "next(iter(self._subscriptions.values()), None)",
        ),
        a1.test_each_type_has_a_state_of_its_own,
        DELTA,
        Seen("clusters, listeners = await client.receive(CDS), await client.receive(LDS)", no_response(LDS)),
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
        Seen('assert (await client.receive(EDS)).holds == {"a": 1}', no_response(EDS)),
        {"leaked": {}},
    ),
    Mutant(
        5,
        "an unknown type ends the stream",
        Edit(_B, "_type_of", "if not type_url:", "if not type_url or not self._reader.knows_type(type_url):"),
        a1.test_an_unknown_type_leaves_the_others_alone,
        DELTA,
        Seen(
            "response = await client.receive(UNKNOWN)",
            "the stream ended: StatusCode.INVALID_ARGUMENT, 'a request on an ADS stream has no type_url",
        ),
    ),
    Mutant(
        5,
        "clusters stay for the sake of a type that is not served",
        Edit(_S, "_next_update", "subscription.forced.clear()", "pass"),
        a1.test_names_of_a_type_that_is_not_served_keep_nothing_from_going,
        SOTW,
        Seen('await client.expect_state(CDS, {"a": 1})', no_response(CDS)),
    ),
    Mutant(
        6,
        "broken bytes are the server's fault",
        Edit(request, "_parse", "INVALID_ARGUMENT", "INTERNAL"),
        a1.test_bytes_that_are_no_request_end_their_own_stream_only,
        SOTW,
        Seen(
            "assert (await bad.end(EDS))[0] is INVALID",
            "assert <StatusCode.INTERNAL: (13, 'internal')> is <StatusCode.INVALID_ARGUMENT: (3, 'inval",
        ),
    ),
    Mutant(
        7,
        "only the first of pipelined requests counts",
        Edit(_S, "_later_request", "self._take_names(subscription, request.names)", "pass"),
        a1.test_of_pipelined_requests_the_last_one_is_answered_in_full,
        SOTW,
        Seen("response = await client.receive(EDS)", no_response(EDS)),
    ),
)
