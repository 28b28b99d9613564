"""Network RBAC in the kernel decides as Envoy's own rules say, over random rules and every kind of source."""

from __future__ import annotations

import ipaddress
from typing import Any

from envoy.config.rbac.v3 import rbac_pb2 as rbac
from envoy.extensions.filters.network.rbac.v3 import rbac_pb2 as network
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import Mesh, pod
from xdsbpf.compile.raw.kernel_outputs import guard_table
from xdsbpf.compile.raw.kernel_rbac import rbac_filter
from xdsbpf.incremental import query
from xdsbpf.mesh.authorization import Verdict
from xdsbpf.mesh.policy_tables import PolicyTable
from xdsbpf.model.address_block import BlockSet, parse_block
from xdsbpf.model.names import UNLOCATED, spiffe_id

NAMES = [spiffe_id("cluster.local", "default", account) for account in ("app", "apps", "web")]
BLOCKS = ["10.1.0.0/16", "10.1.2.0/24", "10.1.2.3/32", "0.0.0.0/0", "::/0"]
ADDRESSES = ["10.1.2.3", "10.1.2.4", "10.1.9.9", "10.9.0.1"]
LISTENER = ("10.96.0.7", 5432)


def _cidr(block: str) -> dict[str, Any]:
    address, _, bits = block.partition("/")
    return {"address_prefix": address, "prefix_len": {"value": int(bits)}}


principals = st.recursive(
    st.one_of(
        st.just(rbac.Principal(any=True)),
        st.builds(
            lambda name: rbac.Principal(authenticated={"principal_name": {"exact": name}}), st.sampled_from(NAMES)
        ),
        st.builds(lambda text: rbac.Principal(authenticated={"principal_name": {"suffix": text}}), st.just("/sa/app")),
        st.builds(lambda text: rbac.Principal(authenticated={"principal_name": {"prefix": text}}), st.just(NAMES[0])),
        st.builds(lambda text: rbac.Principal(authenticated={"principal_name": {"contains": text}}), st.just("sa/w")),
        st.just(rbac.Principal(authenticated={})),
        st.builds(lambda block: rbac.Principal(source_ip=_cidr(block)), st.sampled_from(BLOCKS)),
    ),
    lambda inner: st.one_of(
        st.builds(lambda ids: rbac.Principal(and_ids={"ids": ids}), st.lists(inner, min_size=1, max_size=2)),
        st.builds(lambda ids: rbac.Principal(or_ids={"ids": ids}), st.lists(inner, min_size=1, max_size=2)),
        st.builds(lambda other: rbac.Principal(not_id=other), inner),
    ),
    max_leaves=4,
)
permissions = st.sampled_from(
    [
        rbac.Permission(any=True),
        rbac.Permission(destination_port=5432),
        rbac.Permission(not_rule=rbac.Permission(destination_port=5432)),
    ]
)
policies = st.builds(
    lambda allowed, who: rbac.Policy(permissions=allowed, principals=who),
    st.lists(permissions, min_size=1, max_size=2),
    st.lists(principals, min_size=1, max_size=2),
)
rules = st.builds(
    lambda action, named: rbac.RBAC(action=action, policies=named),
    st.sampled_from([rbac.RBAC.ALLOW, rbac.RBAC.DENY]),
    st.dictionaries(st.sampled_from(["a", "b"]), policies, max_size=2),
)
chains = st.lists(rules, max_size=3)


def permits(message: Any) -> bool:
    """Envoy's answer for a connection to the listener."""
    kind = message.WhichOneof("rule")
    return not permits(message.not_rule) if kind == "not_rule" else kind == "any" or message.destination_port == 5432


def is_principal(message: Any, name: str, address: str) -> bool:
    """Envoy's answer for an authenticated peer."""
    match message.WhichOneof("identifier"):
        case "and_ids":
            return all(is_principal(entry, name, address) for entry in message.and_ids.ids)
        case "or_ids":
            return any(is_principal(entry, name, address) for entry in message.or_ids.ids)
        case "not_id":
            return not is_principal(message.not_id, name, address)
        case "source_ip":
            block = f"{message.source_ip.address_prefix}/{message.source_ip.prefix_len.value}"
            return ipaddress.ip_address(address) in ipaddress.ip_network(block)
        case "authenticated":
            text = message.authenticated.principal_name
            match text.WhichOneof("match_pattern"):
                case "exact":
                    return bool(name == text.exact)
                case "prefix":
                    return name.startswith(text.prefix)
                case "suffix":
                    return name.endswith(text.suffix)
                case "contains":
                    return text.contains in name
    return True


def admits(chain: list[Any], name: str, address: str) -> bool:
    """Envoy's answer of a chain of filters."""
    for entry in chain:
        matched = any(
            any(map(permits, policy.permissions)) and any(is_principal(p, name, address) for p in policy.principals)
            for policy in entry.policies.values()
        )
        if matched is not (entry.action == rbac.RBAC.ALLOW):
            return False
    return True


@query
def table_of(db: Any, encoded: tuple[bytes, ...]) -> PolicyTable:
    """The table of a chain of encoded filters."""
    filters = (rbac_filter(network.RBAC.FromString(body), *LISTENER, "", "x") for body in encoded)
    return guard_table(db, "x", tuple(entry for entry in filters if entry is not None))


def looked_up(table: PolicyTable, name: str | None, address: str) -> bool:
    """The agent's answer: the row of (identity, narrowest block), else that of (any, narrowest block)."""
    block = BlockSet(map(parse_block, table.blocks)).around(ipaddress.ip_address(address).packed)
    text = "" if block is None else str(block)
    rows = {(row.identity, row.block): row.verdict for row in table.rows}
    return rows.get((name, text), rows[None, text]) is Verdict.ALLOW


@given(chain=chains)
def test_the_table_says_of_every_known_source_what_envoy_says(chain: list[Any]) -> None:
    mesh = Mesh(*(pod(name.rpartition("/")[2], f"10.3.0.{i}", account=name.rpartition("/")[2])
                  for i, name in enumerate(NAMES, 1)))  # fmt: skip
    table = table_of(mesh.db, tuple(network.RBAC(rules=entry).SerializeToString() for entry in chain))
    everybody = []
    for address in ADDRESSES:
        for name in NAMES:
            everybody.append(looked_up(table, name, address))
            assert everybody[-1] is admits(chain, name, address), (name, address, table)
        # Who is not known is let in only where a stranger with any name would be.
        if looked_up(table, None, address) and all(entry.action == rbac.RBAC.ALLOW for entry in chain):
            assert admits(chain, "spiffe://elsewhere/x", address)
    unlocated = next(row for row in table.rows if row.identity == UNLOCATED)
    assert unlocated.verdict is Verdict.DENY or all(everybody)
