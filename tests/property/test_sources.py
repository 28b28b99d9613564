"""Sources under hostile input: cut-off, shuffled and mangled files change nothing they should not."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import LONG
from tests.manifest_texts import deny_policy, documents, put, read, service, services, virtual_service
from xdsbpf.diagnostics import Severity, State
from xdsbpf.sources.catalog import Catalog
from xdsbpf.sources.report import format_lines
from xdsbpf.sources.yaml_reader import parse_file

ROUTES = """
  - match: [{headers: {end-user: {exact: jason}}}]
    fault: {delay: {fixedDelay: 7s, percentage: {value: 100.0}}}
    route: [{destination: {host: reviews, subset: v2}, weight: 90}, {destination: {host: reviews}, weight: 10}]
  - route: [{destination: {host: reviews, subset: v1}}]
"""
POLICY = "{selector: {matchLabels: {app: ratings}}, action: DENY, rules: [{from: [{source: {namespaces: [dev]}}]}]}"
MESH = documents(
    service("reviews"),
    virtual_service("reviews", ROUTES),
    deny_policy("ratings", POLICY),
    service("ratings"),
    deny_policy("details", "{action: ALLOW, rules: [{to: [{operation: {methods: [GET], ports: ['9080']}}]}]}"),
)
FOUR_KILOBYTES = documents(MESH, services(21))
EXAMPLES = 2000 if LONG else 150


def test_a_file_cut_off_at_any_byte_changes_nothing_but_the_status() -> None:
    data = FOUR_KILOBYTES.encode()
    assert len(data) > 4000
    catalog = read(data)
    before = catalog.manifests()
    for end in range(len(data)):
        now = end * 10.0
        assert not put(catalog, data[:end], at=now), end
        assert not catalog.tick(now + 1.9), end
        assert [source.state for source in catalog.sources()] != ["ok"], end
        assert not put(catalog, data, at=now + 1.95), end
        assert not catalog.tick(now + 9.0), end
        assert catalog.manifests() == before


def test_the_same_cut_is_seen_where_nothing_guards_against_it() -> None:
    """The control of the test above: without an old content, cuts do give other objects."""
    data = FOUR_KILOBYTES.encode()
    whole = read(data).manifests()
    cuts = [read(data[:end]).manifests() for end in range(0, len(data), 7)]
    assert any(cut and cut != whole for cut in cuts)


@settings(max_examples=EXAMPLES, deadline=None)
@given(seed=st.integers(0, 2**32), count=st.integers(1, 8))
def test_the_order_in_which_files_arrive_does_not_matter(seed: int, count: int) -> None:
    chooser = random.Random(seed)
    files = {
        f"f{index}.yaml": documents(
            *(service(f"s{chooser.randrange(6)}", chooser.randrange(0, 4)) for _ in range(chooser.randrange(1, 5)))
        )
        for index in range(count)
    }
    results = []
    for _ in range(3):
        names = list(files)
        chooser.shuffle(names)
        catalog = Catalog()
        for name in names:
            put(catalog, files[name], file=name)
        results.append((catalog.manifests(), catalog.states(), catalog.sources()))
    assert results[0] == results[1] == results[2]


@settings(max_examples=EXAMPLES, deadline=None)
@given(seed=st.integers(0, 2**32), steps=st.integers(1, 25))
def test_deltas_add_up_to_what_is_in_force(seed: int, steps: int) -> None:
    chooser = random.Random(seed)
    catalog, mirror, now = Catalog(), {}, 0.0
    for _ in range(steps):
        now += chooser.choice((0.1, 1.0, 3.0))
        name = f"f{chooser.randrange(3)}.yaml"
        kind = chooser.randrange(6)
        if kind == 0:
            delta = catalog.delete_file(name)
        elif kind == 1:
            delta = catalog.tick(now)
        elif kind == 2:
            delta = catalog.confirm(now)
        else:
            text = documents(*(service(f"s{chooser.randrange(4)}", chooser.randrange(3)) for _ in range(3)))
            delta = put(catalog, text[: chooser.choice((len(text), len(text), 90))], file=name, at=now)
        for key, manifest in delta.puts:
            assert mirror.get(key) != manifest
            mirror[key] = manifest
        for key in delta.removes:
            del mirror[key]
        assert mirror == catalog.manifests()
        deadline = catalog.next_deadline()
        assert deadline is None or deadline <= now + 2.0


ALPHABET = st.sampled_from(
    b"""\n|  |- |: |{|}|[|]|*a|&a |<<: |!!int|---\n|'|"|\t|\0|\xff|%TAG|null|yes|1e400|?|#|\xef\xbb\xbf|...\n""".split(
        b"|"
    )
)


@settings(max_examples=EXAMPLES * 3, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(MESH)), st.integers(0, 12), ALPHABET | st.binary(max_size=3)), max_size=6))
def test_mangled_bytes_never_crash_and_always_end_in_a_state(edits: list[tuple[int, int, bytes]]) -> None:
    data = MESH.encode()
    for position, length, insert in edits:
        data = data[:position] + insert + data[position + length :]
    catalog = read(data)
    for status in catalog.states():
        rejected = any(item.severity is Severity.ERROR for item in status.diagnostics)
        assert rejected or status.state is not State.REJECTED
        assert catalog.locate(status.object, "spec.rules[0].from") is not None
    assert all(": " in line for line in format_lines(catalog.diagnostics(), catalog))
    assert parse_file("a.yaml", data, catalog.previous("a.yaml")) == parse_file("a.yaml", data)
