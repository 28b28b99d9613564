"""A lab with the Bookinfo of the examples, and what tests of both planes ask of it.

In: names of example files and a route for reviews. Out: a running lab, manifests written for the time of one test,
and attempts made from a pod. Used by the tests of this directory only.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from xdsbpf.lab.bringup import down, up
from xdsbpf.lab.lab import Lab
from xdsbpf.lab.measure import wait_until, xdsbpf_json
from xdsbpf.lab.plan import LabOptions
from xdsbpf.lab.processes import environment

EXAMPLES = Path(__file__).resolve().parents[2] / "deploy" / "examples" / "bookinfo"
ATTEMPTS = (sys.executable, str(Path(__file__).with_name("escape_attempts.py")))
"""A command that tries the tricks on its standard input."""

HALF_V2 = """
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews}
spec:
  hosts: [reviews]
  http:
    - route:
        - {destination: {host: reviews, subset: v1}, weight: 50}
        - {destination: {host: reviews, subset: v2}, weight: 50}
"""

Apply = Callable[[str, str], None]
"""(file name, text) -> written among the manifests until the test ends."""


def bookinfo(directory: Path, *more: str) -> Path:
    """Copy Bookinfo, its subsets, the two clients and `more` example files; reviews is split in halves."""
    for name in ("bookinfo", "destination-rules", "clients", *more):
        shutil.copy(EXAMPLES / f"{name}.yaml", directory)
    (directory / "reviews.yaml").write_text(HALF_V2)
    return directory


@contextmanager
def running(name: str, manifests: Path, replicas: tuple[tuple[str, int], ...] = ()) -> Iterator[Lab]:
    """A lab of two nodes over a directory of manifests; nothing of it is left behind."""
    down(name)
    try:
        yield up(LabOptions(name=name, paths=(manifests,), nodes=2, replicas=replicas), progress=None)
    finally:
        down(name)


@contextmanager
def applying(lab: Lab, manifests: Path) -> Iterator[Apply]:
    """Manifests for the time of one test: on exit they are removed, and the control plane knows."""
    written: list[Path] = []

    def write(name: str, text: str) -> None:
        written.append(manifests / name)
        written[-1].write_text(text)

    yield write
    for path in written:
        path.unlink(missing_ok=True)
    names = {path.stem for path in written}
    wait_until(lambda: not names & {row["name"] for row in objects(lab)}, 20, "the test's manifests to be gone")


def objects(lab: Lab) -> list[dict[str, Any]]:
    """The rows of `xdsbpf objects`, each with the object's name."""
    return [{**row, "name": row["object"].rpartition("/")[2]} for row in xdsbpf_json(lab, "objects")["items"]]


def virtual_address(lab: Lab, service: str) -> str:
    """The service's address, as the pods' hosts files have it."""
    lab.refresh_hosts()
    lines = lab.layout.pod_file(lab.pod("client-denied"), "hosts").read_text().splitlines()
    return next(line.split()[0] for line in lines if line.split()[-1] == service)


def run_attempts(argv: list[str], places: dict[str, str], plan: dict[str, Any]) -> dict[str, str]:
    """Outcome by name of what `escape_attempts.py` tries; `places` are its environment (its docstring names them)."""
    text = json.dumps({"env": places, **plan})
    result = subprocess.run(argv, input=text, capture_output=True, text=True, timeout=30, env=environment())
    assert not result.returncode, result.stderr
    found: dict[str, str] = json.loads(result.stdout)
    return found
