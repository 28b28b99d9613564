"""`xdsbpf check`, help and completion, and the tables that every command prints."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from xdsbpf.cli import check
from xdsbpf.cli.tables import format_table
from xdsbpf.datapath import features
from xdsbpf.datapath.features import Feature

ROOT = Path(__file__).resolve().parents[3]
GOOD = (Feature("tcx hook", "6.6", True),)
MOUNTS = "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\nbpf /sys/fs/bpf bpf rw 0 0\n"


def xdsbpf(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "xdsbpf", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


def envoy_that_says(directory: Path, text: str) -> Path:
    binary = directory / "envoy"
    binary.write_text(f"#!/bin/sh\necho '{text}'\n")
    binary.chmod(0o755)
    return binary


@pytest.fixture
def good_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Root, every feature, both mounts; the returned Envoy is new enough."""
    (tmp_path / "mounts").write_text(MOUNTS)
    (tmp_path / "btf").touch()
    monkeypatch.setattr(check, "MOUNTS", tmp_path / "mounts")
    monkeypatch.setattr(check, "BTF", tmp_path / "btf")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(features, "probe_features", lambda: GOOD)
    return envoy_that_says(tmp_path, "envoy version: abc/1.36.2/Clean/RELEASE")


def failing(envoy: Path) -> dict[str, str]:
    """Name -> state of what fails."""
    return {entry.name: entry.state for entry in check.all_checks(envoy) if entry.fails}


def test_a_good_machine_passes(good_machine: Path) -> None:
    assert failing(good_machine) == {}


def test_each_missing_part_fails_with_a_hint(
    good_machine: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(features, "probe_features", lambda: (Feature("tcx hook", "6.6", False, "needs kernel 6.6"),))
    (tmp_path / "mounts").write_text("proc /proc proc rw 0 0\n")
    (tmp_path / "btf").unlink()
    old = envoy_that_says(tmp_path, "envoy version: abc/1.35.9/Clean/RELEASE")
    found = [entry for entry in check.all_checks(old) if entry.fails]
    assert {entry.name for entry in found} == {
        "tcx hook",
        "cgroup v2",
        "BPF file system",
        "type information (BTF)",
        "Envoy",
    }
    assert all(entry.hint for entry in found)


def test_without_root_the_kernel_is_unknown_and_never_too_old(
    good_machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(features, "probe_features", lambda: (Feature("tcx hook", "6.6", False, "needs kernel 6.6"),))
    assert failing(good_machine) == {"root": "missing", "tcx hook": "unknown"}


@pytest.mark.parametrize("text", ["", "no version here"])
def test_an_envoy_that_says_no_version_is_unknown(good_machine: Path, tmp_path: Path, text: str) -> None:
    assert failing(envoy_that_says(tmp_path, text)) == {"Envoy": "unknown"}


def test_an_envoy_that_does_not_exist_is_missing(good_machine: Path, tmp_path: Path) -> None:
    assert failing(tmp_path / "nowhere") == {"Envoy": "missing"}


def test_the_command_exits_1_and_prints_the_documented_json(tmp_path: Path) -> None:
    result = xdsbpf("check", "-o", "json", "--envoy-binary", str(tmp_path / "nowhere"))
    assert result.returncode == 1
    assert "checks failed" in result.stderr
    document = json.loads(result.stdout)
    assert (document["apiVersion"], document["kind"], document["ok"]) == ("xdsbpf.io/v1", "Check", False)
    envoy = next(item for item in document["items"] if item["name"] == "Envoy")
    assert (envoy["group"], envoy["state"]) == ("proxy", "missing")
    assert envoy["hint"]


def test_the_table_is_grouped(tmp_path: Path) -> None:
    lines = xdsbpf("check", "--envoy-binary", str(tmp_path / "nowhere")).stdout.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == ["privileges", "kernel", "mounts", "proxy"]
    assert any(line.startswith("  missing   Envoy") for line in lines)
    assert lines[-1].strip().startswith("hint:")


def test_columns_are_aligned_and_lines_have_no_trailing_blanks() -> None:
    text = format_table(("NAME", "N"), [("a", 1), ("longer", 22), ("b", "")])
    assert text.splitlines() == ["NAME     N", "a        1", "longer   22", "b"]


def test_help_imports_neither_grpc_nor_yaml_nor_protobuf() -> None:
    """What keeps `--help` and completion below 0.3 s."""
    program = (
        "import sys\n"
        "sys.argv = ['xdsbpf', '--help']\n"
        "from xdsbpf.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'grpc', 'yaml', 'google.protobuf', 'starlette', 'uvicorn', 'structlog', 'msgspec', 'rich'}\n"
        "sys.stderr.write(' '.join(sorted(heavy & set(sys.modules))))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert "Commands:" in done.stdout
    assert done.stderr == ""


def test_completion_is_available() -> None:
    assert "--install-completion" in xdsbpf("--help").stdout
    words = xdsbpf(_XDSBPF_COMPLETE="complete_bash", COMP_WORDS="xdsbpf trans", COMP_CWORD="1")
    assert "translate" in words.stdout


@pytest.mark.parametrize("colour", [{"NO_COLOR": "1"}, {"FORCE_COLOR": "1"}])
def test_output_has_no_colour_codes(colour: dict[str, str]) -> None:
    for arguments in (["--help"], ["analyze", "-f", "no/such/file"], ["version"]):
        done = xdsbpf(*arguments, **colour)
        assert "\x1b" not in done.stdout + done.stderr
