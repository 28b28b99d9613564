"""The conformance tests can fail: each broken server of `mutants.py` is seen by the test of the rule that it breaks.

The same test on the sound server, in the same variant, is part of the suite itself.
"""

from __future__ import annotations

import pytest

from tests.xds.drivers import InProcess
from tests.xds.lab import running_lab
from tests.xds.mutants import MUTANTS
from tests.xds.mutation import Mutant

QUIET_S = 0.08
DEADLINE_S = 0.6


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: f"{mutant.rule}: {mutant.breaks}")
async def test_a_broken_server_is_seen(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    rules = {mark.args[0] for mark in mutant.test.pytestmark}
    assert mutant.rule in {rule for rule in rules if isinstance(rule, int)}
    monkeypatch.setattr(mutant.edit.owner, mutant.edit.name, mutant.edit.apply())
    async with running_lab(InProcess(), mutant.variant, QUIET_S, DEADLINE_S) as lab:
        with pytest.raises(AssertionError) as seen:
            await mutant.test(lab, **mutant.arguments)
    assert "StatusCode.UNKNOWN" not in str(seen.value), "the server fell over instead of breaking the rule"
