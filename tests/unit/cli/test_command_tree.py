"""The tree of commands as a whole: help, version, completion, formats."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from xdsbpf.cli.main import _add_commands, app

ROOT = Path(__file__).resolve().parents[3]


def xdsbpf(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "xdsbpf", *arguments], cwd=ROOT, capture_output=True, text=True)


def test_no_line_of_the_list_of_commands_is_cut_off() -> None:
    for tree in ((), ("bpf",), ("lab",), ("pc",)):
        assert "..." not in xdsbpf(*tree, "--help").stdout.split("Commands:")[1], tree


@pytest.mark.parametrize("arguments", [("version",), ("--version",)])
def test_the_version_is_asked_for_in_either_way(arguments: tuple[str, ...]) -> None:
    done = xdsbpf(*arguments)
    assert re.fullmatch(r"xdsbpf \d+\.\d+\.\d+\n", done.stdout)
    assert done.returncode == 0


@pytest.mark.parametrize("words", ["bogus", "ps --bogus", "version -o bogus", "completion csh", "wait --for never"])
def test_wrong_usage_exits_64_and_prints_nothing_on_standard_output(words: str) -> None:
    done = xdsbpf(*words.split())
    assert (done.returncode, done.stdout) == (64, "")
    assert "Traceback" not in done.stderr


def test_bash_completes_commands_and_options_with_the_printed_script(tmp_path: Path) -> None:
    command = tmp_path / "xdsbpf"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m xdsbpf "$@"\n')
    command.chmod(0o755)
    (tmp_path / "script").write_text(xdsbpf("completion", "bash").stdout)
    complete = """
source "$1/script"
COMP_WORDS=(xdsbpf "${@:2}"); COMP_CWORD=$(($# - 1))
_xdsbpf_completion "$1/xdsbpf"
printf '%s\\n' "${COMPREPLY[@]}"
"""

    def candidates(*words: str) -> list[str]:
        done = subprocess.run(
            ["bash", "-c", complete, "bash", str(tmp_path), *words],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.split()

    assert candidates("se") == ["serve", "services"]
    assert candidates("ps", "--verb") == ["--verbose"]
    assert candidates("diff", "--against-") == ["--against-envoy-resources"]
    assert candidates("wait", "--for", "d") == ["delete"]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_have_a_script_that_names_the_command(shell: str) -> None:
    assert "_XDSBPF_COMPLETE" in xdsbpf("completion", shell).stdout


def test_a_reader_that_has_seen_enough_is_no_failure() -> None:
    """The output is larger than a pipe holds."""
    command = f"set -o pipefail; {sys.executable} -m xdsbpf translate -f deploy --proxy any -o json | head -1"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "{\n")
    assert "Traceback" not in done.stderr


def test_a_table_without_its_header_is_the_same_rows() -> None:
    command = ("translate", "-f", "deploy/examples/bookinfo", "--proxy", "node~10.0.0.1~node1~cluster.local")
    _, *rows = xdsbpf(*command).stdout.splitlines()
    assert len(rows) > 3
    assert xdsbpf(*command, "--no-headers").stdout.splitlines() == rows
    assert xdsbpf(*command[:-1], "agent~x", "--type", "cds", "--no-headers").stdout == ""


def test_whatever_prints_a_table_can_leave_the_header_out() -> None:
    _add_commands()
    tree = typer.main.get_command(app)
    assert isinstance(tree, typer.core.TyperGroup)
    groups = [("", tree), *((name, found) for name, found in tree.commands.items() if hasattr(found, "commands"))]
    offering = {
        f"{group} {name}".strip()
        for group, found in groups
        for name, command in found.commands.items()
        if any(parameter.name == "no_headers" for parameter in command.params)
    }
    assert {"ps", "services", "objects", "wait", "diff", "translate", "plugins", "lab status"} <= offering
    for group in ("bpf", "pc"):
        assert {f"{group} {name}" for name in tree.commands[group].commands} <= offering
