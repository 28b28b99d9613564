"""Rules 41 to 56, broken: pacing, pages, limits, life cycle, the services beside."""

from __future__ import annotations

from tests.xds import test_a1_identity as identity
from tests.xds import test_a5_flow as a5
from tests.xds import test_a5_services as services
from tests.xds import test_a5_silence as silence
from tests.xds.mutation import Edit, Mutant, Seen, Value, no_response, noise
from tests.xds.resources import CDS, EDS, RTDS
from tests.xds.wire import Variant
from xdsbpf.xds import (
    access,
    client_status,
    delta,
    exchange,
    filling,
    grpcio,
    heartbeats,
    load_reporting,
    protocol,
    shared,
    status,
    streams,
)
from xdsbpf.xds.h2 import server as h2_server
from xdsbpf.xds.h2.limits import Limits
from xdsbpf.xds.transports import FAST_TRANSPORT

DELTA = Variant.DELTA_ADS

_D = delta.DeltaSession

MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        41,
        "changes do not wait for the ACK",
        Edit(_D, "_next_update", "and not subscription.in_flight and ", "and "),
        a5.test_while_an_ack_is_out_changes_collect_and_the_latest_wins,
        DELTA,
        Seen("await client.quiet()", noise(EDS)),
    ),
    Mutant(
        52,
        "heartbeats come when the time to live is over",
        Value(heartbeats, "PER_LIFE", 0.1),
        a5.test_a_resource_with_a_ttl_is_kept_alive_by_heartbeats_without_a_body,
        DELTA,
        Seen("beat = await client.receive(RTDS)", no_response(RTDS)),
    ),
    Mutant(
        44,
        "pages have no limit of bytes",
        Value(shared, "PAGE_BYTES", 64 << 20),
        a5.test_five_megabytes_of_endpoints_come_in_pages,
        DELTA,
        Seen(
            "responses = await client.expect(EDS, dict.fromkeys(names, 1))",
            "the stream ended: StatusCode.RESOURCE_EXHAUSTED, 'Stream removed (CLIENT: Received message",
        ),
    ),
    Mutant(
        44,
        "a gRPC client is sent what it cannot take",
        Edit(filling.PageFiller, "_is_too_long", "self._max_message is not None and ", "False and "),
        a5.test_a_grpc_client_is_not_sent_what_it_cannot_take_and_keeps_what_it_has,
        DELTA,
        Seen("await client.quiet()", "the stream ended: StatusCode.RESOURCE_EXHAUSTED"),
    ),
    Mutant(
        44,
        "a set of clusters has no limit",
        Edit(
            filling.PageFiller,
            "_exceeds",
            "if not self._is_too_long(size):",
            "if not (name and self._is_too_long(size)):",
        ),
        a5.test_a_set_of_clusters_that_a_grpc_client_cannot_take_leaves_it_with_the_last_one,
        Variant.SOTW_ADS,
        Seen('await client.expect(EDS, {"a": 2})', "the stream ended: StatusCode.RESOURCE_EXHAUSTED"),
    ),
    Mutant(
        45,
        "pages have no limit of resources",
        Value(shared, "PAGE_RESOURCES", 100_000),
        a5.test_a_first_sync_of_many_clusters_comes_in_pages,
        DELTA,
        Seen("assert max(len(response.items) for response in responses) <= 2000", " <= 2000"),
    ),
    Mutant(
        46,
        "a request has four megabytes at most",
        Value(grpcio, "_OPTIONS", []),
        a5.test_a_client_that_claims_two_hundred_thousand_names_is_served,
        DELTA,
        Seen(
            "response = await client.receive(EDS)",
            "the stream ended: StatusCode.RESOURCE_EXHAUSTED, 'SERVER: Received message larger than max",
        ),
    ),
    Mutant(
        43,
        "who never answers is not told apart",
        Edit(status, "_state", "now - sent.at >= stale_s", "False"),
        silence.test_who_reads_and_never_answers_is_stale_and_is_kept,
        DELTA,
        Seen("await until(", "not within 0.6 s: STALE"),
    ),
    Mutant(
        43,
        "who reads and never answers is reset",
        Edit(
            exchange.Exchange,
            "_look_for_stalled",
            "stream.writing_since is not None and stream.writing_since <= limit and ",
            "",
        ),
        silence.test_who_reads_and_never_answers_is_stale_and_is_kept,
        DELTA,
        Seen("await until(", "not within 0.6 s"),
    ),
    Mutant(
        43,
        "who takes no data is kept for ever",
        Edit(exchange.Exchange, "_look_for_stalled", "stream.writing_since <= limit", "False"),
        silence.test_a_stopped_process_is_stale_and_is_reset_when_it_takes_no_data,
        DELTA,
        Seen("await until(", "not within 0.6 s: reset"),
    ),
    Mutant(
        46,
        "who may be no client is heard",
        Edit(access.AccessControl, "_check", "identify_client", "identify"),
        identity.test_who_may_be_no_client_at_all_is_refused_before_it_says_anything,
        DELTA,
        Seen("code, text = await nobody.end(EDS)", "the stream is still open within 0.6 s"),
    ),
    Mutant(
        47,
        "pings are punished",
        Value(grpcio, "_OPTIONS", []),
        a5.test_pings_of_a_client_are_answered_and_never_too_many,
        DELTA,
        Seen("assert head[3] != goaway, payload", "b'\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x0btoo_many_pings'"),
    ),
    Mutant(
        50,
        "changes do not wait for the ACK",
        Edit(_D, "_next_update", "and not subscription.in_flight and ", "and "),
        a5.test_ten_thousand_changes_reach_a_client_in_few_responses,
        DELTA,
        Seen("assert len(client.log) - before <= 20", " <= 20"),
    ),
    Mutant(
        55,
        "what came with a refused resource is not sent again",
        Edit(_D, "_later_request", "for name in others if self._quarantine else ():", "for name in ():"),
        a5.test_a_refused_resource_does_not_hold_back_the_others,
        DELTA,
        Seen('await client.expect(type_url, {"good": 1})', no_response(CDS)),
        {"type_url": CDS},
    ),
    Mutant(
        42,
        "responses are built before the client takes them",
        Edit(
            exchange.Exchange,
            "_take",
            "session.on_request(request)",
            "session.on_request(request)\n    "
            "self.__dict__.setdefault('kept', []).extend(map(session.encode, session.poll()))",
        ),
        a5.test_clients_that_do_not_read_cost_names_and_no_bytes,
        DELTA,
        Seen("assert resident_bytes() - before < LITTLE", "assert "),
    ),
    Mutant(
        46,
        "a request has four megabytes at most",
        Value(h2_server, "Limits", lambda: Limits(max_message=4 << 20)),
        a5.test_a_client_that_claims_two_hundred_thousand_names_is_served,
        DELTA,
        Seen("response = await client.receive(EDS)", "the stream ended: StatusCode.RESOURCE_EXHAUSTED"),
        transport=FAST_TRANSPORT,
    ),
    Mutant(
        47,
        "pings are punished",
        Value(h2_server, "Limits", lambda: Limits(idle_frames=5, idle_frames_per_s=0.1)),
        a5.test_pings_of_a_client_are_answered_and_never_too_many,
        DELTA,
        Seen("assert head[3] != goaway, payload", "too many frames that move nothing"),
        transport=FAST_TRANSPORT,
    ),
    Mutant(
        48,
        "the end of the server looks like a failure",
        Edit(streams, "_stopping", '"UNAVAILABLE"', '"INTERNAL"'),
        a5.test_a_server_that_stops_ends_its_streams_with_a_status,
        DELTA,
        Seen("assert (await client.end(EDS))[0] in", "INTERNAL"),
    ),
    Mutant(
        54,
        "a refusal is put on all that came with it",
        Edit(protocol, "blamed", "return named(text, candidates) or ", "return "),
        services.test_a_refusal_is_put_on_the_resource_that_it_names,
        DELTA,
        Seen("assert errors == ", "good"),
    ),
    Mutant(
        54,
        "the text of a refusal is shown as it came",
        Edit(protocol, "readable_error", "if char.isprintable() else", "if True else"),
        services.test_a_refusal_is_put_on_the_resource_that_it_names,
        DELTA,
        Seen("assert errors == ", "bad"),
    ),
    Mutant(
        56,
        "every load report is answered",
        Edit(
            load_reporting.LoadReporting,
            "_stream",
            "request = await _next_request(call)",
            "request = await _next_request(call)\n            await call.write(self._answer(first))",
        ),
        services.test_a_load_reporter_is_told_once_what_to_report,
        DELTA,
        Seen("assert await call.read() is aio.EOF", "is <grpc.aio.EOF>"),
    ),
    Mutant(
        56,
        "the status service hides refusals",
        Edit(client_status.ClientStatus, "_add", "if row.error:", "if False:"),
        services.test_the_status_service_knows_what_a_client_accepted_and_refused,
        DELTA,
        Seen('assert "is refused" in states[EDS].error_state.details', "assert 'is refused' in ''"),
        {"method": "FetchClientStatus"},
    ),
)
