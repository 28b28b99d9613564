"""Policies: the decision table of each group of workloads, as the kernel looks it up.

The rows come from `mesh.policy_tables`, which writes the one evaluator out. The nodes' proxies always
pass: what a client reaches through them is guarded by the proxy on the client's own identity. Which
addresses are in which block is for the agent to say, for all policies in force at once.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from xdsbpf._pb.xdsbpf.datapath.v1 import datapath_pb2
from xdsbpf.compile.datapath.encoding import resource
from xdsbpf.incremental import ABSENT, Absent, Database, query
from xdsbpf.mesh.addresses import packed
from xdsbpf.mesh.authorization import Verdict
from xdsbpf.mesh.identities import NODE_PROXY
from xdsbpf.mesh.policy_groups import group_addresses, policy_groups
from xdsbpf.mesh.policy_tables import PolicyRow, PolicyTable, policy_table
from xdsbpf.model.address_block import parse_block
from xdsbpf.model.names import POLICY, UNLOCATED
from xdsbpf.model.resource import Resource

NODE_PROXY_RULE: Final = "default: the proxy checks the client's identity"
UNLOCATED_RULE: Final = "default: decided where the connection arrives"


@query
def policy_names(db: Database) -> tuple[str, ...]:
    """Names of all policy groups, sorted."""
    return policy_groups(db)


@query
def policy_resource(db: Database, name: str) -> Resource | Absent:
    """The policy of one group; ABSENT if it guards no workload."""
    addresses = group_addresses(db, name)
    if not addresses:
        return ABSENT
    message = datapath_pb2.Policy(name=name, destinations=[packed(address) for address in addresses])
    table = policy_table(db, name)
    fill_policy(message, table, _reserved_rows(table))
    return resource(POLICY, name, message)


def fill_policy(message: datapath_pb2.Policy, table: PolicyTable, reserved: Iterable[PolicyRow] = ()) -> None:
    """Write a table, and rows of reserved sources, into a message."""
    message.blocks.extend(_block(block) for block in table.blocks)
    message.entries.extend(_entry(row) for row in (*table.rows, *reserved))


def _reserved_rows(table: PolicyTable) -> list[PolicyRow]:
    """Rows of the sources that are the same in every block.

    A caller without an address of its own (a process on the host's network) is refused at once only if no
    address would let it through: the destination's ingress, which sees the address, decides.
    """
    ports = (*table.ports, None)
    rows = [PolicyRow(NODE_PROXY, "", port, Verdict.ALLOW, NODE_PROXY_RULE) for port in ports]
    if table.blocks:
        unknown = [row for row in table.rows if row.identity is None]
        open_ports = {row.port for row in unknown if row.verdict is Verdict.ALLOW}
        for port in ports:
            verdict = Verdict.ALLOW if port in open_ports else Verdict.DENY
            rows.append(PolicyRow(UNLOCATED, "", port, verdict, UNLOCATED_RULE))
    return rows


def _block(text: str) -> datapath_pb2.Block:
    parsed = parse_block(text)
    return datapath_pb2.Block(network=parsed.network, bits=parsed.bits)


def _entry(row: PolicyRow) -> datapath_pb2.PolicyEntry:
    entry = datapath_pb2.PolicyEntry(
        protocol=datapath_pb2.TCP,
        verdict=datapath_pb2.ALLOW if row.verdict is Verdict.ALLOW else datapath_pb2.DENY,
        rule=row.rule,
    )
    if row.identity is None:
        entry.any_source.SetInParent()
    else:
        entry.identity = row.identity
    if row.block:
        entry.block.CopyFrom(_block(row.block))
    if row.port is not None:
        entry.port = row.port
    return entry
