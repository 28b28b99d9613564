"""Rules 8 to 16, broken: the state-of-the-world protocol."""

from __future__ import annotations

from tests.xds import test_a2_errors as errors
from tests.xds import test_a2_sotw as a2
from tests.xds.mutation import Edit, Mutant, Seen, Value, no_response, noise
from tests.xds.resources import CDS, EDS
from tests.xds.wire import Variant
from xdsbpf.xds import delta, session, sotw, streams

SOTW, DELTA = Variant.SOTW_ADS, Variant.DELTA_ADS

_S, _B = sotw.SotwSession, session.Session
_TRUE_NONCE = "if request.nonce != subscription.last_nonce:"

MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        8,
        "names of a stale request count",
        Edit(_S, "_later_request", _TRUE_NONCE, "if False:"),
        a2.test_a_request_with_a_stale_nonce_is_ignored_with_its_names,
        SOTW,
        Seen("await client.quiet()", noise(EDS)),
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
        Seen("response = await client.receive(EDS)", no_response(EDS)),
    ),
    Mutant(
        10,
        "a refused whole set is sent again",
        Edit(_S, "_refuse", "others = ", "subscription.answer_due = True\n    others = "),
        a2.test_what_was_refused_is_not_sent_again_until_it_changes,
        SOTW,
        Seen("await client.quiet()", noise(CDS)),
        {"type_url": CDS},
    ),
    Mutant(
        11,
        "an equal version spares nothing",
        Edit(_S, "_first_request", "and request.version and", "and False and"),
        a2.test_on_a_new_stream_an_equal_version_spares_a_wildcard_and_never_names,
        SOTW,
        Seen("await client.quiet()", noise(CDS)),
    ),
    Mutant(
        12,
        "new names wait for a change",
        Edit(_S, "_take_names", "for name in new:", "for name in () if subscription.last_nonce else new:"),
        a2.test_a_new_name_is_answered_though_nothing_changed,
        SOTW,
        Seen("response = await client.receive(EDS)", no_response(EDS)),
    ),
    Mutant(
        13,
        "a whole set is sent as differences",
        Value(sotw, "_is_whole", lambda found: False),
        a2.test_clusters_and_listeners_always_come_as_the_full_set,
        SOTW,
        Seen('assert response.holds == {"a": 2, "b": 1, "c": 1}', "assert {'a': 2} == {'a': 2, 'b': 1, 'c': 1}"),
        {"type_url": CDS},
    ),
    Mutant(
        14,
        "an answer waits until all names exist",
        Edit(
            _S,
            "_next_update",
            "if subscription.in_flight",
            "if any(self._visible(subscription, name) is None for name in subscription.names)",
        ),
        a2.test_what_exists_is_answered_at_once_and_the_missing_when_it_is_created,
        SOTW,
        Seen('await client.expect(type_url, {"there": 1})', no_response(EDS)),
        {"type_url": EDS},
    ),
    Mutant(
        15,
        "errors go to everybody",
        Value(streams, "is_told", lambda *_: True),
        errors.test_what_is_not_there_is_said_at_once_to_a_client_that_reads_it,
        SOTW,
        Seen('assert answers["conformance"] == {}', "assert {'missing': 5} == {}"),
        {"type_url": EDS},
    ),
    Mutant(
        15,
        "errors go to nobody",
        Value(streams, "is_told", lambda *_: False),
        errors.test_what_is_not_there_is_said_at_once_to_a_client_that_reads_it,
        DELTA,
        Seen('assert answers["told"] == {"missing": NOT_FOUND}', "assert {} == {'missing': 5}"),
        {"type_url": EDS},
    ),
    Mutant(
        15,
        "errors are left out of whole sets",
        Edit(_S, "_next_state", "with_errors(response, errors)", "response"),
        errors.test_what_is_not_there_is_said_at_once_to_a_client_that_reads_it,
        SOTW,
        Seen('assert answers["told"] == {"missing": NOT_FOUND}', "assert {} == {'missing': 5}"),
        {"type_url": CDS},
    ),
    Mutant(
        15,
        "errors are left out of shared pages",
        Edit(delta.DeltaSession, "_send_page", "removed if self.takes_errors else ()", "()"),
        errors.test_each_of_many_names_that_are_not_there_is_said_once,
        DELTA,
        Seen("assert told == dict.fromkeys(", "assert {} == {"),
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
        Seen("await client.quiet()", noise(EDS)),
        {"type_url": EDS},
    ),
)
