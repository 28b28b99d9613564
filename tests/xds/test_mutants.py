"""The conformance tests can fail: each broken server of `mutants` is seen by the test of the rule that it breaks.

Seen as the mutant says, at that line of the test and with those words: a server that falls over, or a test that fails
before it comes to its rule, is no kill. The same test on the sound server is part of the suite itself.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import traceback
from pathlib import Path

import pytest

from tests.xds.drivers import InProcess
from tests.xds.lab import running_lab
from tests.xds.mutants import MUTANTS
from tests.xds.mutants.elsewhere import BROKEN
from tests.xds.mutation import Mutant
from tests.xds.wire import ALL

QUIET_S = 0.08
DEADLINE_S = 0.6
ROOT = Path(__file__).parents[2]
DESCRIBED = [f"{mutant.rule} {mutant.transport}: {mutant.breaks}" for mutant in MUTANTS]


@pytest.mark.parametrize("mutant", MUTANTS, ids=DESCRIBED)
async def test_a_broken_server_is_seen(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    crashes: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: crashes.append(str(context)))
    monkeypatch.setattr(mutant.edit.owner, mutant.edit.name, mutant.edit.apply())
    async with running_lab(InProcess(mutant.transport), mutant.variant, QUIET_S, DEADLINE_S) as lab:
        with pytest.raises(AssertionError) as seen:
            await mutant.test(lab, **mutant.arguments)
    assert failing_line(seen.value, mutant).startswith(mutant.seen.at)
    assert mutant.seen.says in str(seen.value)
    assert "StatusCode.UNKNOWN" not in str(seen.value), "the server fell over instead of breaking the rule"
    # gRPC's poller of another test's event loop may still call back.
    assert not [crash for crash in crashes if "PollerCompletionQueue" not in crash]


@pytest.mark.parametrize("mutant", MUTANTS, ids=DESCRIBED)
def test_the_suite_runs_that_test_on_the_sound_server_in_the_same_way(mutant: Mutant) -> None:
    """Otherwise it might fail on the sound server, too."""
    marks = {mark.name: mark for mark in mutant.test.pytestmark if mark.name == "rule" and mark.args[0] == mutant.rule}
    assert marks, f"{mutant.test.__name__} is no test of rule {mutant.rule}"
    assert mutant.variant in marks["rule"].kwargs.get("on", ALL)
    sets = [mark for mark in mutant.test.pytestmark if mark.name == "parametrize"]
    for name, value in mutant.arguments.items():
        assert any(mark.args[0] == name and value in mark.args[1] for mark in sets), name
    assert mutant.arguments.keys() == {mark.args[0] for mark in sets}


def test_the_tests_of_rules_elsewhere_see_a_broken_product() -> None:
    """In a process of its own: they have fixtures of their own. Each runs sound, then broken."""
    ids = [f"{broken.place}{broken.case}" for broken in BROKEN]
    for arguments, outcome in (((), "passed"), (("-p", "tests.xds.breaking"), "failed")):
        command = [sys.executable, "-m", "pytest", "-q", "-rf", "-p", "no:cacheprovider", *arguments, *ids]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "COLUMNS": "500"})
        assert f"{len(BROKEN)} {outcome} in " in result.stdout, result.stdout
    for broken, id in zip(BROKEN, ids, strict=True):
        line = next(line for line in result.stdout.splitlines() if line.startswith(f"FAILED {id} - "))
        assert broken.says in line


def failing_line(error: BaseException, mutant: Mutant) -> str:
    """The source line of the test at which it failed."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.name == mutant.test.__name__]
    return frames[-1].line or ""
