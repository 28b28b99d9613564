"""The datapath resources of the raw listeners that the kernel carries: the messages of any service port.

One scope per list of globs, beside the one for Envoys: an agent sees those that match its node's name or id, and
those without. Frontends are named by address; backends and policies by the listener, so that no two have the same.
"""

from __future__ import annotations

from collections.abc import Iterator

from xdsbpf._pb.xdsbpf.datapath.v1 import datapath_pb2
from xdsbpf.compile.datapath import names
from xdsbpf.compile.datapath.encoding import resource
from xdsbpf.compile.datapath.policies import fill_policy
from xdsbpf.compile.generator import Generator
from xdsbpf.compile.raw.kernel_listeners import LISTENERS_BY_PLACE, Carried, raw_listeners, raw_mode
from xdsbpf.compile.raw.kernel_rbac import RbacFilter, asks_everybody, blocks_of, decide, names_of
from xdsbpf.compile.raw.resources import Globs
from xdsbpf.diagnostics import ObjectId
from xdsbpf.incremental import ABSENT, Absent, Database, query
from xdsbpf.mesh.addresses import packed
from xdsbpf.mesh.authorization import Verdict, source_of_identity
from xdsbpf.mesh.identities import identities
from xdsbpf.mesh.inputs import ENVOY_RESOURCES
from xdsbpf.mesh.policy_tables import PolicyRow, PolicyTable
from xdsbpf.model.envoy_resource import GROUP, KIND
from xdsbpf.model.names import BACKENDS, FRONTEND, LISTENER, POLICY, UNLOCATED
from xdsbpf.model.resource import Resource

UNLOCATED_RULE = "default: whose address is not known is not let in unless everybody is"


def kernel_generators(nodes: Globs) -> tuple[Generator, ...]:
    """Generators of what the listeners with these globs are in the kernel."""
    scope = names.raw_scope(nodes)
    return (
        Generator(scope, POLICY, raw_policy_names, raw_policy, (nodes,)),
        Generator(scope, BACKENDS, raw_backends_names, raw_backends_resource, (nodes,)),
        Generator(scope, FRONTEND, raw_frontend_names, raw_frontend, (nodes,)),
    )


def kernel_families(families: tuple[tuple[Globs, str], ...]) -> tuple[Globs, ...]:
    """The lists of globs with listeners."""
    return tuple(nodes for nodes, type_url in families if type_url == LISTENER)


def _carried(db: Database, nodes: Globs) -> Iterator[tuple[str, Carried]]:
    """(name of the object, what the kernel does) for the listeners with these globs that it carries, sorted."""
    for id in raw_listeners(db, nodes):
        carried = raw_mode(db, id).carried
        if carried is not None:
            yield str(id), carried


@query
def raw_frontend_names(db: Database, nodes: Globs) -> tuple[str, ...]:
    """Names of the frontends, sorted."""
    return tuple(sorted(names.frontend_name(carried.address, carried.port) for _, carried in _carried(db, nodes)))


@query
def raw_backends_names(db: Database, nodes: Globs) -> tuple[str, ...]:
    """Names of the backends: of the listeners, sorted."""
    return tuple(name for name, _ in _carried(db, nodes))


@query
def raw_policy_names(db: Database, nodes: Globs) -> tuple[str, ...]:
    """Names of the policies: of the listeners that have any, sorted."""
    return tuple(name for name, carried in _carried(db, nodes) if carried.filters)


def _carried_by_name(db: Database, nodes: Globs, name: str) -> Carried | None:
    """What the kernel does for a listener with these globs, by its object's name."""
    id = ObjectId(KIND, "Listener", name.removeprefix(f"{KIND}/Listener/"), GROUP)
    entry = db.input(ENVOY_RESOURCES, id)
    return raw_mode(db, id).carried if entry is not ABSENT and entry.nodes == nodes else None


@query
def raw_frontend(db: Database, nodes: Globs, name: str) -> Resource | Absent:
    """The frontend of that address and port; ABSENT if the kernel carries no listener there."""
    place = names.parse_frontend(name)
    # Two at one place are not carried, so there is one to look at.
    entries = db.bucket(LISTENERS_BY_PLACE, (nodes, *place)) if place is not None else ()
    mode = raw_mode(db, entries[0].id) if entries else None
    if mode is None or mode.carried is None:
        return ABSENT
    carried, owner = mode.carried, str(mode.id)
    message = datapath_pb2.Frontend(
        address=packed(carried.address), port=carried.port, protocol=datapath_pb2.TCP, service=owner
    )
    if carried.filters:
        message.guarded_balance.backends = message.guarded_balance.policy = owner
        message.guarded_balance.policy_port = carried.port
    else:
        message.balance.backends = owner
    return resource(FRONTEND, name, message)


@query
def raw_backends_resource(db: Database, nodes: Globs, name: str) -> Resource | Absent:
    """The endpoints of a listener, possibly none; ABSENT if the kernel does not carry it."""
    carried = _carried_by_name(db, nodes, name)
    if carried is None:
        return ABSENT
    message = datapath_pb2.Backends(service=name)
    for entry in carried.backends:
        message.backends.add(address=packed(entry.address), port=entry.port, weight=entry.weight)
    return resource(BACKENDS, name, message)


@query
def raw_policy(db: Database, nodes: Globs, name: str) -> Resource | Absent:
    """Who may connect to a listener; ABSENT if everybody may. It guards no address, only the frontend."""
    carried = _carried_by_name(db, nodes, name)
    if carried is None or not carried.filters:
        return ABSENT
    message = datapath_pb2.Policy(name=name)
    fill_policy(message, guard_table(db, name, carried.filters))
    return resource(POLICY, name, message)


def guard_table(db: Database, name: str, filters: tuple[RbacFilter, ...]) -> PolicyTable:
    """The decisions on every identity and block that makes a difference. Cost: O(identities x blocks x conditions).

    Nothing after the frontend asks again, so who connects from a network that is no workload's is let in only if
    everybody is.
    """
    blocks = blocks_of(filters)
    known = names_of(filters).union(identities(db) if asks_everybody(filters) else ())

    def rows(identity: str | None) -> list[PolicyRow]:
        found = ((block, decide(filters, source_of_identity(identity, block))) for block in ("", *blocks))
        return [PolicyRow(identity, block, None, decision.verdict, decision.rule) for block, decision in found]

    table = rows(None)
    default = [(row.block, row.verdict, row.rule) for row in table]
    for identity in sorted(known):
        own = rows(identity)
        if [(row.block, row.verdict, row.rule) for row in own] != default:
            table += own
    is_open = all(row.verdict is Verdict.ALLOW for row in table)
    unlocated = PolicyRow(UNLOCATED, "", None, Verdict.ALLOW if is_open else Verdict.DENY, UNLOCATED_RULE)
    return PolicyTable(name, (), blocks, (*table, unlocated))
