"""Who may connect to a TCP service port, wherever its routes lead.

Policies guard workloads. Nobody knows which endpoint a connection will get, so through the node's proxy
it must satisfy the policies of all of them. `compile.envoy.tcp_listener` and the frontends enforce the answer; it
is the one evaluator's, joined.
"""

from __future__ import annotations

from collections.abc import Iterable

from xdsbpf.incremental import Database, query
from xdsbpf.mesh.authorization import Verdict
from xdsbpf.mesh.policy_groups import GroupPort, destination_groups
from xdsbpf.mesh.policy_tables import Admission, admitted
from xdsbpf.mesh.tcp_routes import tcp_targets
from xdsbpf.model.address_block import BlockSet, parse_block


@query
def tcp_groups(db: Database, host: str, port: int) -> tuple[GroupPort, ...]:
    """The policy groups and workload ports of all endpoints behind a TCP service port, sorted."""
    found = {
        group
        for target in tcp_targets(db, host, port)
        if target.is_known
        for group in destination_groups(db, target.host, target.port, target.subset)
    }
    return tuple(sorted(found))


@query
def tcp_admission(db: Database, host: str, port: int) -> Admission:
    """Who may connect to a TCP service port: whom the policies of every endpoint behind it admit."""
    return conjunction(tuple(admitted(db, found.group, found.port) for found in tcp_groups(db, host, port)))


def conjunction(admissions: tuple[Admission, ...]) -> Admission:
    """Admits whom all of `admissions` admit; everybody if there are none.

    >>> one, two = Admission(Verdict.ALLOW, ("a",)), Admission(Verdict.DENY, ("a", "b"))
    >>> conjunction((one, two))
    Admission(default=<Verdict.DENY: 'DENY'>, exceptions=('b',), inside=())
    """
    blocks = sorted({block for admission in admissions for block, _ in admission.inside}, key=parse_block)
    outside = _everywhere(admissions)
    inside = tuple((block, _everywhere(tuple(_within(found, block) for found in admissions))) for block in blocks)
    return Admission(outside.default, outside.exceptions, inside)


def _everywhere(admissions: tuple[Admission, ...]) -> Admission:
    """The conjunction of admissions of one block."""
    named = sorted({name for admission in admissions for name in admission.exceptions})
    default = _joined(admission.default for admission in admissions)
    exceptions = (name for name in named if _joined(_verdict(found, name) for found in admissions) is not default)
    return Admission(default, tuple(exceptions))


def _within(admission: Admission, block: str) -> Admission:
    """What an admission says of sources in a block, its own or another's."""
    own = {parse_block(text): found for text, found in admission.inside}
    narrowest = BlockSet(own).around_block(parse_block(block))
    return admission if narrowest is None else own[narrowest]


def _verdict(admission: Admission, identity: str) -> Verdict:
    if identity not in admission.exceptions:
        return admission.default
    return Verdict.DENY if admission.default is Verdict.ALLOW else Verdict.ALLOW


def _joined(verdicts: Iterable[Verdict]) -> Verdict:
    return Verdict.ALLOW if all(verdict is Verdict.ALLOW for verdict in verdicts) else Verdict.DENY
