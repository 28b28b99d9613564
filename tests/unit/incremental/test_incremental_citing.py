"""Which watched queries an object was cited for: the inverse of `origins`."""

from __future__ import annotations

from xdsbpf.diagnostics import ObjectId, Origin
from xdsbpf.incremental import ABSENT, Database, Table, query

WORDS: Table[str, str] = Table("words")


def object_of(word: str) -> ObjectId:
    return ObjectId("Word", "", word)


@query
def word(db: Database, key: str) -> str:
    found = db.input(WORDS, key)
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
            change.put(WORDS, text, text * 3)
    db.watch(sentence, "a", "b")
    db.watch(sentence, "b", "c")
    db.watch(first_letter, "c")
    db.drain()
    assert db.citing({object_of("a")}) == {(sentence, ("a", "b"))}
    assert db.citing({object_of("c")}) == {(sentence, ("b", "c")), (first_letter, ("c",))}
    assert db.citing({object_of("nobody")}) == set()
    both = db.citing({object_of("a"), object_of("c")})
    assert both == {(sentence, ("a", "b")), (sentence, ("b", "c")), (first_letter, ("c",))}
    for found, args in both:
        cited = {origin.object for origin in db.origins(found, *args)}
        assert cited & {object_of("a"), object_of("c")}


def test_what_no_longer_uses_an_object_is_no_longer_found() -> None:
    db = Database()
    with db.change() as change:
        change.put(WORDS, "a", "aaa")
    db.watch(first_letter, "a")
    db.drain()
    assert db.citing({object_of("a")})
    with db.change() as change:
        change.remove(WORDS, "a")
    db.drain()
    assert db.citing({object_of("a")}) == set()
