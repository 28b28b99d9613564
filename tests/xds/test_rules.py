"""No rule of the protocol is without a test unseen: each is tested here, elsewhere, or listed as open."""

from __future__ import annotations

import ast
from pathlib import Path

from tests.xds.mutants import MUTANTS
from tests.xds.mutants.elsewhere import BROKEN

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
RULES = frozenset(range(1, 58))

ELSEWHERE = {
    40: "tests/unit/serve/test_serve_grpc_raw.py::test_no_envoy_that_asks_for_all_listeners_gets_one_for_grpc_clients",
    57: "tests/unit/compile/raw/test_grpc_endpoints.py::test_priorities_are_counted_from_zero_without_gaps",
    53: "tests/unit/web/test_web_rest.py::test_a_poll_gets_everything_once_and_then_only_what_changed",
    49: "tests/unit/xds/test_xds_admission.py::test_a_storm_begins_with_a_burst_and_goes_on_at_the_rate",
    51: "tests/unit/xds/test_xds_streams.py::test_what_is_rendered_does_not_grow_with_the_streams",
}
"""What a client on the wire cannot see, or not in a second."""

OPEN: dict[int, str] = {}
"""Rules without a test, and why."""

NO_MUTANT: set[int] = set()
"""Rules that are tested here, and that no broken server of `mutants` breaks yet."""


def rules_tested_here() -> set[int]:
    """Numbers in the rule markers of this directory."""
    found: set[int] = set()
    for path in HERE.glob("test_a*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.rule":
                found.add(ast.literal_eval(node.args[0]))
    return found


def test_every_rule_is_tested_here_or_elsewhere_or_is_listed_as_open() -> None:
    here = rules_tested_here()
    assert here | set(ELSEWHERE) | set(OPEN) == RULES
    assert not here & (set(ELSEWHERE) | set(OPEN))
    assert not set(ELSEWHERE) & set(OPEN)


def test_the_places_of_rules_tested_elsewhere_exist() -> None:
    for rule, place in ELSEWHERE.items():
        path, _, name = place.partition("::")
        assert f"def {name}(" in (ROOT / path).read_text(), f"rule {rule}: {place} is gone"


def test_every_rule_tested_elsewhere_has_a_broken_product() -> None:
    assert {broken.rule: broken.place for broken in BROKEN} == ELSEWHERE


def test_every_rule_tested_here_has_a_broken_server_or_is_listed_without_one() -> None:
    broken = {mutant.rule for mutant in MUTANTS}
    assert rules_tested_here() - broken == NO_MUTANT
