"""Policies: the decision table of each group of workloads, as the kernel looks it up.

The rows come from `mesh.policy_groups`, which writes the one evaluator out. The nodes' proxies always
pass: what a client reaches through them is guarded by the proxy on the client's own identity.
"""

from __future__ import annotations

from typing import Final

from xdsbpf._pb.xdsbpf.datapath.v1 import datapath_pb2
from xdsbpf.compile.datapath.encoding import resource
from xdsbpf.incremental import ABSENT, Absent, Database, query
from xdsbpf.mesh.addresses import packed
from xdsbpf.mesh.authorization import Verdict
from xdsbpf.mesh.identities import NODE_PROXY
from xdsbpf.mesh.policy_groups import PolicyRow, group_addresses, policy_groups, policy_table
from xdsbpf.model.names import POLICY
from xdsbpf.model.resource import Resource

NODE_PROXY_RULE: Final = "default: the proxy checks the client's identity"


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
    proxy_rows = [PolicyRow(NODE_PROXY, port, Verdict.ALLOW, NODE_PROXY_RULE) for port in (*table.ports, None)]
    for row in (*table.rows, *proxy_rows):
        message.entries.append(_entry(row))
    return resource(POLICY, name, message)


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
    if row.port is not None:
        entry.port = row.port
    return entry
