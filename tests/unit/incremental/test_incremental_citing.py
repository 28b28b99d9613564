"""Which watched queries an object was cited for: the inverse of `origins`."""

from __future__ import annotations

from pathlib import Path

from xdsbpf.compiler import Compiler
from xdsbpf.diagnostics import ObjectId, Origin
from xdsbpf.incremental import ABSENT, Database, Table, query
from xdsbpf.mesh.inputs import MeshSettings
from xdsbpf.sources.loading import load_once

EXAMPLES = Path(__file__).resolve().parents[3] / "deploy" / "examples"

WORDS: Table[ObjectId, str] = Table("words")


def object_of(word: str) -> ObjectId:
    return ObjectId("Word", "", word)


@query
def word(db: Database, key: str) -> str:
    found = db.input(WORDS, object_of(key))
    if found is ABSENT:
        return ""
    db.cite(Origin(object_of(key)))
    return str(found)


@query
def sentence(db: Database, first: str, second: str) -> str:
    return f"{word(db, first)} {word(db, second)}"


@query
def first_letter(db: Database, key: str) -> str:
    return word(db, key)[:1]


def test_every_watched_query_above_a_citation_is_found_and_no_other() -> None:
    db = Database()
    with db.change() as change:
        for text in ("a", "b", "c"):
            change.put(WORDS, object_of(text), text * 3)
    db.watch(sentence, "a", "b")
    db.watch(sentence, "b", "c")
    db.watch(first_letter, "c")
    db.drain()
    assert db.citing(WORDS, {object_of("a")}) == {(sentence, ("a", "b"))}
    assert db.citing(WORDS, {object_of("c")}) == {(sentence, ("b", "c")), (first_letter, ("c",))}
    assert db.citing(WORDS, {object_of("nobody")}) == set()
    both = db.citing(WORDS, {object_of("a"), object_of("c")})
    assert both == {(sentence, ("a", "b")), (sentence, ("b", "c")), (first_letter, ("c",))}
    for found, args in both:
        cited = {origin.object for origin in db.origins(found, *args)}
        assert cited & {object_of("a"), object_of("c")}


def test_what_no_longer_uses_an_object_is_no_longer_found() -> None:
    db = Database()
    with db.change() as change:
        change.put(WORDS, object_of("a"), "aaa")
    db.watch(first_letter, "a")
    db.drain()
    assert db.citing(WORDS, {object_of("a")})
    with db.change() as change:
        change.remove(WORDS, object_of("a"))
    db.drain()
    assert db.citing(WORDS, {object_of("a")}) == set()


def test_it_is_the_inverse_of_origins_for_every_object_of_the_example() -> None:
    """Bookinfo with Envoy's resources beside it: who is found from below is who names it from above."""
    catalog = load_once(
        [EXAMPLES / "bookinfo", EXAMPLES.parent / "compose" / "manifests"], envoy_paths=[EXAMPLES / "envoy"]
    )
    compiler = Compiler(MeshSettings())
    compiler.apply(catalog.manifests().items())
    compiler.add_nodes(["node1"])
    compiler.compile()
    cited: dict[ObjectId, set[tuple[str, str, str]]] = {}
    for scope in compiler.store.scopes():
        for type_url in compiler.store.types(scope):
            for name in compiler.store.names(scope, type_url):
                resource = compiler.store.lookup((scope,), type_url, name)
                assert resource is not None
                for origin in compiler.origins(scope, resource):
                    cited.setdefault(origin.object, set()).add((scope, type_url, name))
    assert len(cited) > 20
    for object_id in catalog.manifests():
        found = {(slot.scope, slot.type_url, slot.name) for slot in compiler.made_from({object_id}) if slot.name}
        assert found == cited.get(object_id, set()), object_id
