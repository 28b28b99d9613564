"""A file is read when it has been still for the settling time, and forgotten when it stays away."""

from __future__ import annotations

from xdsbpf.sources.loading import Found, Stamp
from xdsbpf.sources.settling import PATIENCE_S, SETTLE_S, Settler


def found(file: str, size: int = 1, inode: int = 1) -> Found:
    return Found((0, file), Stamp(size, 0, 0, inode))


def read_at(settler: Settler, now: float, **sizes: int) -> list[str]:
    due = settler.observe(now, {name: found(name, size) for name, size in sizes.items()})
    for name, item in due.reads:
        settler.mark_read(name, item)
    for name in due.deletes:
        settler.mark_deleted(name)
    return [f"+{name}" for name, _ in due.reads] + [f"-{name}" for name in due.deletes]


def test_a_file_is_read_once_after_it_has_been_still() -> None:
    settler = Settler()
    assert read_at(settler, 0.0, a=1) == []
    assert settler.next_deadline() == SETTLE_S
    assert read_at(settler, SETTLE_S - 0.01, a=1) == []
    assert read_at(settler, SETTLE_S, a=1) == ["+a"]
    assert read_at(settler, 10.0, a=1) == []
    assert settler.is_settled()


def test_a_file_that_keeps_changing_is_not_read() -> None:
    settler = Settler()
    for step in range(20):
        assert read_at(settler, step * 0.09, a=step) == []
    assert read_at(settler, 19 * 0.09 + SETTLE_S, a=19) == ["+a"]


def test_a_change_that_is_undone_is_no_change() -> None:
    settler = Settler()
    read_at(settler, 0.0, a=1)
    read_at(settler, 1.0, a=1)
    assert read_at(settler, 2.0, a=2) == []
    assert read_at(settler, 2.05, a=1) == []
    assert settler.is_settled()


def test_a_file_replaced_by_one_of_the_same_size_and_time_is_read() -> None:
    settler = Settler()
    settler.mark_read("a", found("a", inode=1))
    settler.observe(0.0, {"a": found("a", inode=2)})
    assert [name for name, _ in settler.observe(SETTLE_S, {"a": found("a", inode=2)}).reads] == ["a"]


def test_a_file_that_stays_away_is_forgotten_and_one_that_comes_back_is_not() -> None:
    settler = Settler()
    read_at(settler, 0.0, a=1, b=1)
    read_at(settler, 1.0, a=1, b=1)
    assert read_at(settler, 2.0) == []
    assert read_at(settler, 2.05, b=1) == []
    assert read_at(settler, 2.0 + SETTLE_S, b=1) == ["-a"]
    assert read_at(settler, 9.0, b=1) == []


def test_a_renamed_file_is_read_before_its_old_name_is_forgotten() -> None:
    settler = Settler()
    read_at(settler, 0.0, a=1)
    read_at(settler, 1.0, a=1)
    read_at(settler, 2.0)
    assert read_at(settler, 2.05, b=1) == []
    assert read_at(settler, 2.0 + SETTLE_S, b=1) == []
    assert read_at(settler, 2.05 + SETTLE_S, b=1) == ["+b", "-a"]


def test_a_file_that_is_written_for_ever_does_not_hold_up_a_deletion_for_ever() -> None:
    settler = Settler()
    read_at(settler, 0.0, a=1)
    read_at(settler, 1.0, a=1)
    results = []
    for step in range(30):
        results += read_at(settler, 2.0 + step * 0.09, log=step)
    assert results == ["-a"]
    assert PATIENCE_S < 30 * 0.09


def test_files_of_a_lost_directory_are_not_forgotten() -> None:
    settler = Settler()
    read_at(settler, 0.0, a=1)
    read_at(settler, 1.0, a=1)
    for now in (2.0, 3.0, 9.0):
        assert settler.observe(now, {}, lambda file: False).deletes == ()
    assert settler.observe(9.1, {}).deletes == ()
    assert settler.observe(9.3, {}).deletes == ("a",)
