"""A reconnect storm on a clock of the test's own: who begins when, who waits, who is refused."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from xdsbpf.errors import ProtocolError
from xdsbpf.xds.access import AccessControl
from xdsbpf.xds.admission import Admission, AdmissionLimits, Ticket
from xdsbpf.xds.peers import PeerRules
from xdsbpf.xds.token_bucket import TokenBucket
from xdsbpf.xds.transport import Call, Peer, Take

LIMITS = AdmissionLimits(
    per_s=10, burst=5, identity_per_s=5, identity_burst=3, streams_per_identity=8, first_answers=4, max_waiting=50,
    max_wait_s=3.0,
)  # fmt: skip


class Line:
    """An admission, its clock, and when each stream began."""

    def __init__(self, limits: AdmissionLimits = LIMITS) -> None:
        self.now = 100.0
        self.admission = Admission(limits)
        self.began: dict[Ticket, float] = {}
        self.refused: list[Ticket] = []

    def enter(self, identity: str = "") -> Ticket:
        ticket = self.admission.enter(identity, self.now)
        self.turn()
        return ticket

    def turn(self) -> float | None:
        turn = self.admission.turn(self.now)
        self.began |= dict.fromkeys(turn.admitted, self.now - 100.0)
        self.refused += turn.refused
        return turn.again_at

    def run(self) -> None:
        """Until nothing is left to do; each stream that begins has its first answer at once."""
        while True:
            for ticket in self.began:
                self.admission.answered(ticket)
            before = len(self.began)
            again_at = self.turn()
            if len(self.began) > before:
                continue
            if again_at is None:
                return
            self.now = again_at


def test_a_storm_begins_with_a_burst_and_goes_on_at_the_rate() -> None:
    line = Line()
    tickets = [line.enter() for _ in range(25)]
    line.run()
    begun = [line.began[ticket] for ticket in tickets]
    assert begun[:5] == [0.0] * 5
    assert begun[5:] == pytest.approx([number / 10 for number in range(1, 21)])


def test_no_more_are_at_their_first_answer_than_may_be() -> None:
    line = Line()
    tickets = [line.enter() for _ in range(5)]
    assert len(line.began) == LIMITS.first_answers
    line.admission.answered(tickets[0])
    line.admission.answered(tickets[0])
    line.turn()
    assert len(line.began) == 5
    assert line.admission.answering == LIMITS.first_answers


def test_an_identity_with_many_streams_delays_another_one_by_one_place() -> None:
    line = Line(AdmissionLimits(per_s=10, burst=1, identity_per_s=100, identity_burst=100))
    crowd = [line.enter("crowd") for _ in range(20)]
    single = line.enter("single")
    line.run()
    assert line.began[single] == pytest.approx(0.2)
    assert line.began[crowd[-1]] == pytest.approx(2.0)


def test_an_identity_has_a_rate_of_its_own_and_the_others_do_not_wait_for_it() -> None:
    line = Line(AdmissionLimits(per_s=100, burst=100, identity_per_s=5, identity_burst=3))
    crowd = [line.enter("crowd") for _ in range(8)]
    single = line.enter("single")
    local = [line.enter() for _ in range(20)]
    line.run()
    assert line.began[single] == 0.0
    assert [line.began[ticket] for ticket in local] == [0.0] * 20
    assert [line.began[ticket] for ticket in crowd] == pytest.approx([0, 0, 0, 0.2, 0.4, 0.6, 0.8, 1.0])


def test_an_identity_has_only_so_many_streams_and_an_ended_one_makes_room() -> None:
    line = Line()
    tickets = [line.enter("one") for _ in range(8)]
    with pytest.raises(ProtocolError, match="one has 8 streams, which is the limit") as error:
        line.enter("one")
    assert error.value.status == "RESOURCE_EXHAUSTED"
    line.enter("two")
    line.admission.leave(tickets[0], line.now)
    line.enter("one")


def test_who_waits_for_too_long_is_refused() -> None:
    line = Line()
    tickets = [line.enter() for _ in range(50)]
    line.run()
    assert [ticket for ticket in tickets if ticket not in line.began] == line.refused
    assert len(line.refused) == 50 - 5 - 30 + 1
    assert line.admission.waiting == 0


def test_a_full_line_refuses_at_once() -> None:
    line = Line()
    for _ in range(50 + LIMITS.first_answers):
        line.enter()
    with pytest.raises(ProtocolError, match="50 new streams are waiting") as error:
        line.enter()
    assert error.value.status == "RESOURCE_EXHAUSTED"


def test_nothing_is_kept_of_who_has_gone() -> None:
    line = Line()
    for number in range(1000):
        ticket = line.enter(f"identity-{number}")
        line.admission.leave(ticket, line.now)
        line.now += 1.0
    line.enter("last")
    assert len(line.admission._accounts) <= 2
    assert line.admission.answering == 1


def test_leaving_from_the_line_gives_the_place_up() -> None:
    line = Line()
    tickets = [line.enter() for _ in range(6)]
    assert tickets[5] not in line.began
    line.admission.leave(tickets[5], line.now)
    line.run()
    assert tickets[5] not in line.began
    assert line.admission.waiting == 0


class SilentCall:
    """A call whose client sends `requests` and then nothing."""

    def __init__(self, requests: int, peer: Peer) -> None:
        self.method = "/a.Service/Method"
        self.peer = peer
        self._requests = requests

    async def read(self) -> bytes | None:
        if not self._requests:
            await asyncio.Event().wait()
        self._requests -= 1
        return b"request"

    async def read_all(self, handle: Take) -> None:
        while (message := await self.read()) is not None:
            handle(message)

    def write_now(self, message: bytes) -> bool:
        return True

    async def write(self, message: bytes) -> None: ...


async def reading(call: Call) -> None:
    while await call.read() is not None:
        pass


async def begun(access: AccessControl, *calls: SilentCall) -> list[asyncio.Task[None]]:
    handler = access.protect({"/a.Service/Method": reading})["/a.Service/Method"]
    return [asyncio.create_task(handler(call)) for call in calls]  # type: ignore[arg-type]


async def settled(condition: Callable[[], bool]) -> float:
    """Seconds until the condition holds."""
    started = time.monotonic()
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)
    return time.monotonic() - started


@pytest.mark.parametrize("requests", [0, 1, 5])
async def test_clients_that_say_nothing_more_do_not_hold_up_the_others(
    monkeypatch: pytest.MonkeyPatch, requests: int
) -> None:
    monkeypatch.setattr("xdsbpf.xds.access.FIRST_REQUEST_S", 0.2)
    limits = AdmissionLimits(first_answers=2)
    access = AccessControl(PeerRules(), {}, time.monotonic, limits)
    tasks = await begun(access, *(SilentCall(requests, Peer("unix:")) for _ in range(6)))
    assert await settled(lambda: access.admission.waiting == 0 and access.admission.answering == 0) < 2.0
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert not access.admission._accounts[""].streams if "" in access.admission._accounts else True


async def test_who_gets_no_turn_is_told_so() -> None:
    limits = AdmissionLimits(per_s=0.001, burst=1, max_wait_s=0.05)
    access = AccessControl(PeerRules(), {}, time.monotonic, limits)
    first, second = await begun(access, SilentCall(1, Peer("unix:")), SilentCall(1, Peer("unix:")))
    with pytest.raises(ProtocolError, match=r"no turn for a new stream within 0\.05 s") as error:
        await asyncio.wait_for(second, 5)
    assert error.value.status == "RESOURCE_EXHAUSTED"
    assert not first.done()
    assert access.refused == {"RESOURCE_EXHAUSTED": 1}
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)


async def test_the_limit_of_an_identity_is_its_own() -> None:
    limits = AdmissionLimits(streams_per_identity=2)
    access = AccessControl(PeerRules(), {}, time.monotonic, limits)
    one = Peer("ipv4:10.0.0.1:1", ("spiffe://cluster.local/node/one",), is_encrypted=True)
    two = Peer("ipv4:10.0.0.2:1", ("spiffe://cluster.local/node/two",), is_encrypted=True)
    tasks = await begun(access, *(SilentCall(1, peer) for peer in (one, one, one, two, Peer("unix:"))))
    await settled(lambda: tasks[2].done())
    with pytest.raises(ProtocolError, match=r"spiffe://cluster\.local/node/one has 2 streams"):
        await tasks[2]
    assert [task.done() for task in tasks] == [False, False, True, False, False]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def test_the_work_for_a_stream_does_not_grow_with_those_that_wait() -> None:
    """By lines of code: of a mesh that comes back as a whole everybody waits."""

    def lines_for(identities: int) -> int:
        count = 0

        def trace(frame: FrameType, event: str, _: object) -> Any:
            nonlocal count
            count += event == "line"
            return trace if frame.f_globals.get("__name__") == Admission.__module__ else None

        admission, now, began = Admission(AdmissionLimits(max_wait_s=1e6)), 100.0, []
        before = sys.gettrace()
        sys.settrace(trace)
        try:
            for number in range(identities):
                admission.enter(str(number), now)
                began += admission.turn(now).admitted
            for ticket in began:  # it grows meanwhile
                admission.answered(ticket)
                now += 0.005
                began += admission.turn(now).admitted
            for ticket in began:
                admission.leave(ticket, now)
        finally:
            sys.settrace(before)
        assert len(began) == identities
        return count

    assert lines_for(1200) < 2.5 * lines_for(600)


def test_the_order_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a rate of all together, the storm of the first test begins at once."""
    monkeypatch.setattr(TokenBucket, "ready_at", lambda self, now, cost=1.0: now)
    line = Line()
    tickets = [line.enter() for _ in range(25)]
    line.run()
    assert {line.began[ticket] for ticket in tickets} == {0.0}
