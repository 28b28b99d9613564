"""The map from kinds to tables, buckets of hosts, and the table of codes."""

from __future__ import annotations

import re
from pathlib import Path

from tests.builders import Mesh, meta, service, virtual_service
from xdsbpf.diagnostics import ObjectId
from xdsbpf.incremental import Database
from xdsbpf.mesh.codes import CODES, did_you_mean
from xdsbpf.mesh.inputs import (
    VIRTUAL_SERVICES_BY_HOST,
    MeshSettings,
    exact_key,
    host_key,
    parent_suffix,
    put_object,
    remove_object,
    settings,
    suffix_keys,
)
from xdsbpf.model.kube import ServiceAccount
from xdsbpf.model.registry import KINDS

SOURCES = Path(__file__).resolve().parents[3] / "xdsbpf" / "mesh"


def test_kinds_without_a_table_are_ignored() -> None:
    account = ServiceAccount(metadata=meta("a"))
    with Database().change() as change:
        assert put_object(change, account.id, account) is False
        assert remove_object(change, account.id) is False
        assert put_object(change, service("a").id, service("a")) is True


def test_every_supported_kind_has_a_table_or_is_not_read_by_the_mesh() -> None:
    unread = {"ServiceAccount", "Deployment"}
    with Database().change() as change:
        for group, kind in KINDS:
            assert remove_object(change, ObjectId(kind, "n", "x", group)) is (kind not in unread)


def test_settings_have_defaults() -> None:
    assert settings(Mesh().db) == MeshSettings()
    assert settings(Mesh(settings=MeshSettings(domain="x.y")).db).domain == "x.y"


def test_a_host_is_looked_up_under_every_form_it_may_be_written_in() -> None:
    host = "reviews.default.svc.cluster.local"
    keys = (exact_key(host), *suffix_keys(parent_suffix(host)))
    assert keys == (
        ("host", "reviews.default"),
        ("suffix", ".default.svc.cluster.local"),
        ("suffix", ".svc.cluster.local"),
        ("suffix", ".cluster.local"),
        ("suffix", ".local"),
        ("suffix", ""),
    )
    for written in ("reviews", "reviews.default.svc.cluster.local", "*.svc.cluster.local", "*", "*.local"):
        assert host_key(written, "default") in keys
    for written in ("ratings", "*.example.com", "*ews.default.svc.cluster.local"):
        assert host_key(written, "default") not in keys


def test_a_virtual_service_is_in_the_buckets_of_its_hosts() -> None:
    mesh = Mesh(virtual_service("v", ("Reviews", "*.Example.com")))
    assert mesh.db.bucket_keys(VIRTUAL_SERVICES_BY_HOST) == (("host", "reviews.default"), ("suffix", ".example.com"))


def test_every_code_is_used_and_every_used_code_is_in_the_table() -> None:
    used = {
        code
        for path in SOURCES.glob("*.py")
        if path.name != "codes.py"
        for code in re.findall(r'"(XB\d{4})"', path.read_text())
    }
    assert used == set(CODES)


def test_a_near_name_is_suggested_and_a_far_one_is_not() -> None:
    assert did_you_mean("v22", ("v1", "v2")) == 'did you mean "v2"?'
    assert did_you_mean("zebra", ("v1", "v2")) == ""
