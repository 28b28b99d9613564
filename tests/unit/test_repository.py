"""Rules about the repository itself: sizes, purity of the privileged process, compose file, README."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HARD_LIMIT = 400


def own_modules() -> list[Path]:
    generated = {ROOT / "xdsbpf" / "datapath" / "abi.py"}
    python = [path for path in (ROOT / "xdsbpf").rglob("*.py") if "_pb" not in path.parts]
    c = [*(ROOT / "bpf").glob("*.c"), *(ROOT / "bpf" / "include").glob("*.h")]
    return [path for path in (*python, *c) if path not in generated]


def test_no_module_is_longer_than_the_hard_limit() -> None:
    lengths = {path.relative_to(ROOT): len(path.read_text().splitlines()) for path in own_modules()}
    assert len(lengths) > 50
    assert {path: lines for path, lines in lengths.items() if lines > HARD_LIMIT} == {}


def test_every_module_and_package_says_what_it_is_for() -> None:
    python = [path for path in own_modules() if path.suffix == ".py"]
    silent = [path for path in python if not path.read_text().lstrip().startswith('"""')]
    assert silent == []


def test_no_code_of_a_finding_has_two_names() -> None:
    defined = re.compile(r'^[A-Z_]+(?:: Final(?:\[str\])?)? = "(XB\d{4})"', re.MULTILINE)
    codes = Counter(code for path in (ROOT / "xdsbpf").rglob("*.py") for code in defined.findall(path.read_text()))
    assert len(codes) > 40
    assert [code for code, count in codes.items() if count > 1] == []


def test_the_agent_process_loads_no_yaml_parser_and_no_compiler() -> None:
    program = "import json, sys; import xdsbpf.node; print(json.dumps(sorted(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(json.loads(result.stdout))
    forbidden = {
        "yaml",
        "kubernetes",
        "xdsbpf.mesh",
        "xdsbpf.compile",
        "xdsbpf.sources",
        "xdsbpf.incremental",
    }
    assert "xdsbpf.agent" in loaded
    assert loaded & forbidden == set()


def test_the_compose_file_fits_the_compose_schema() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    good = subprocess.run([*command, str(ROOT / "docker-compose.yml")], capture_output=True, text=True)
    assert good.returncode == 0, good.stdout


def test_the_schema_check_refuses_a_broken_compose_file(tmp_path: Path) -> None:
    broken = tmp_path / "docker-compose.yml"
    broken.write_text((ROOT / "docker-compose.yml").read_text().replace("network_mode: host", "network_mode: [1]"))
    command = [
        sys.executable,
        "-m",
        "check_jsonschema",
        "--builtin-schema",
        "vendor.compose-spec",
        str(broken),
    ]
    assert subprocess.run(command, capture_output=True).returncode != 0


def readme_commands() -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


def test_the_readme_shows_the_demo_and_the_tests() -> None:
    assert {"./dev demo", "./dev test"} <= set(readme_commands())


OFFLINE = [line for line in readme_commands() if re.match(r"xdsbpf (translate|analyze|diff|bootstrap) ", line)]


@pytest.mark.parametrize("command", OFFLINE)
def test_an_offline_command_of_the_readme_works_as_shown(command: str, tmp_path: Path) -> None:
    (tmp_path / "deploy").symlink_to(ROOT / "deploy")
    shell = command.replace("xdsbpf ", f"{sys.executable} -m xdsbpf ", 1)
    result = subprocess.run(shell, shell=True, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode in ((0, 1) if " diff " in command else (0, 79)), result.stderr
    written = (path.read_text() for path in tmp_path.iterdir() if path.is_file())
    assert result.stdout or any(written)


def test_every_command_of_the_readme_exists() -> None:
    names = {match.group(1) for line in readme_commands() if (match := re.search(r"\bxdsbpf (?:lab )?(\w+)", line))}
    help_text = ""
    for arguments in (["--help"], ["lab", "--help"]):
        result = subprocess.run(
            [sys.executable, "-m", "xdsbpf", *arguments], capture_output=True, text=True, check=True
        )
        help_text += result.stdout
    assert {"serve", "agent", "translate", "analyze", "up", "down"} <= names
    assert {name for name in names if not re.search(rf"^\W+{name}\b", help_text, re.MULTILINE)} == set()
