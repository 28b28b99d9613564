"""`./dev demo`: the main job, shown on this machine with real requests.

Brings a two-node lab up with the Bookinfo of deploy/examples, sends requests from its pods and
prints one line per promise: what was expected, what was measured, and whether it held. Takes the
lab down again, whatever happens. Exit code 0 only if every line held.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xdsbpf.errors import XdsbpfError
from xdsbpf.lab.bringup import down, up
from xdsbpf.lab.lab import Lab
from xdsbpf.lab.measure import (
    balanced_over,
    envoy_connections,
    planes,
    policy_rows,
    share_of_version,
    wait_until,
)
from xdsbpf.lab.plan import LabOptions

EXAMPLES = Path(__file__).resolve().parents[2] / "deploy" / "examples" / "bookinfo"
NAME = "xbdemo"
REQUESTS = 2_400
REQUESTS_50_50 = 6_000  # four standard deviations inside the tolerance, as 2,400 are at 90/10
TOLERANCE_POINTS = 2.5
PROBES = 200
REVIEWS = "http://reviews:9080/reviews/0"
DETAILS = "http://details:9080/details/0"
PRODUCTPAGE = "http://productpage:9080/productpage"


@dataclass(frozen=True)
class Line:
    """One promise: `measured` is a sentence with numbers, `held` the verdict."""

    promise: str
    measured: str
    held: bool


def say(text: str) -> None:
    """Progress, on standard error; the table alone goes to standard output."""
    sys.stderr.write(text + "\n")


def reviews_split(lab: Lab) -> Line:
    """90/10 through the node's Envoy."""
    answer = lab.client("client-allowed", "get", REVIEWS, "-n", str(REQUESTS), "-c", "8", timeout=120)
    share = share_of_version(answer, "v1")
    held = abs(share - 90) <= TOLERANCE_POINTS and not answer["errors"]
    return Line("reviews split 90/10 by Envoy", f"{share:.1f} % v1 of {REQUESTS} requests", held)


def header_route(lab: Lab) -> Line:
    """A request with `end-user: jason` goes elsewhere; one without is the control."""
    jason = lab.client("client-allowed", "get", REVIEWS, "-n", "100", "-c", "50", "-H", "end-user: jason")
    control = lab.client("client-allowed", "get", REVIEWS, "-n", "100")
    versions = {entry["version"] for entry in jason["by"]}
    control_v3 = share_of_version(control, "v3")
    held = versions == {"v3"} and control_v3 == 0
    return Line(
        "end-user: jason is routed to v3",
        f"{share_of_version(jason, 'v3'):.0f} % v3 of 100; {control_v3:.0f} % without the header",
        held,
    )


def delay(lab: Lab) -> Line:
    """The delay of ratings, seen end to end in productpage."""
    jason = lab.client("client-allowed", "get", PRODUCTPAGE, "-n", "5", "-H", "end-user: jason", timeout=60)
    control = lab.client("client-allowed", "get", PRODUCTPAGE, "-n", "5")
    slow, fast = jason["latency_ms"]["p50"], control["latency_ms"]["p50"]
    held = slow >= 2_000 and fast < 1_000 and not jason["errors"] and not control["errors"]
    return Line("2 s delay of ratings in productpage", f"{slow:.0f} ms with the header, {fast:.0f} ms without", held)


def kernel_service(lab: Lab) -> Line:
    """details: balanced by the kernel; Envoy's counters stay, while a control moves them."""
    count = 400
    before = envoy_connections(lab)
    answer = lab.client("client-allowed", "get", DETAILS, "-n", str(count), "--close")
    after = envoy_connections(lab)
    lab.client("client-allowed", "get", REVIEWS, "-n", "20", "--close")
    control = envoy_connections(lab)
    pods = balanced_over(answer)
    held = len(pods) == 2 and min(pods.values()) > count * 0.35 and after == before and control >= after + 20
    shares = " / ".join(str(number) for number in sorted(pods.values()))
    return Line(
        "details by the kernel alone, two pods",
        f"{shares} of {count}; Envoy saw {after - before} connections (control through Envoy: {control - after})",
        held and not answer["errors"],
    )


def change_under_load(lab: Lab, manifests: Path) -> Line:
    """Edit the VirtualService while traffic runs."""
    stop = manifests.parent / "stop"
    load = lab.start_client("client-allowed", "load", REVIEWS, "-c", "4", "--seconds", "60", "--stop-file", str(stop))
    time.sleep(0.5)
    target = manifests / "reviews.yaml"
    replacement = manifests.parent / "reviews-50-50.yaml"
    shutil.copyfile(EXAMPLES.parent / "changes" / "reviews-50-50.yaml", replacement)
    os.replace(replacement, target)

    def half() -> bool:
        answer = lab.client("client-allowed", "get", REVIEWS, "-n", "400", "-c", "4")
        return abs(share_of_version(answer, "v1") - 50) <= 10

    wait_until(half, 20, "the new split")
    stop.touch()
    total = load.communicate(timeout=30)[0]
    import json

    result: dict[str, Any] = json.loads(total)
    answer = lab.client("client-allowed", "get", REVIEWS, "-n", str(REQUESTS_50_50), "-c", "8", timeout=120)
    share = share_of_version(answer, "v1")
    failed = sum(result["errors"].values()) + sum(e["count"] for e in result["by"] if e["status"] != 200)
    held = failed == 0 and result["requests"] > 500 and abs(share - 50) <= TOLERANCE_POINTS
    return Line(
        "VirtualService changed under load: 50/50",
        f"{failed} of {result['requests']} requests failed during the change; {share:.1f} % v1 after",
        held,
    )


def policy(lab: Lab, manifests: Path) -> Iterator[Line]:
    """The denied pod is refused at once; without the policy it connects, so the policy does it."""
    allowed = lab.client("client-allowed", "probe", "details:9080", "-n", str(PROBES))
    denied = lab.client("client-denied", "probe", "details:9080", "-n", str(PROBES))
    ok = allowed["outcomes"].get("connected", 0)
    refused = denied["outcomes"].get("EPERM", 0)
    slowest = denied["latency_ms"]["max"]
    yield Line(
        "AuthorizationPolicy in the kernel",
        f"allowed pod: {ok} of {PROBES} connected; other: {refused} of {PROBES} refused (EPERM, ≤ {slowest:.1f} ms)",
        ok == PROBES and refused == PROBES,
    )
    rows = policy_rows(lab)
    entry = next((row for row in rows if row["verdict"] == "ALLOW" and row["manifest"]), None)
    yield Line(
        "the entry names its manifest line",
        f"{entry['source']} port {entry['port']}: {entry['manifest']}" if entry else "no entry with a manifest line",
        entry is not None,
    )
    (manifests / "details-policy.yaml").unlink()

    def opened() -> bool:
        answer = lab.client("client-denied", "probe", "details:9080", "-n", "20")
        return bool(answer["outcomes"].get("connected", 0) == 20)

    held = wait_until(opened, 15, "the policy's removal", fail=False)
    yield Line("without the policy the same pod connects", "20 of 20" if held else "still refused", held)


@contextmanager
def demo_lab() -> Iterator[tuple[Lab, Path]]:
    """A lab over an editable copy of the examples; removed at the end."""
    with tempfile.TemporaryDirectory(prefix="xdsbpf-demo-") as directory:
        manifests = Path(directory) / "manifests"
        manifests.mkdir()
        for file in EXAMPLES.glob("*.yaml"):
            shutil.copy(file, manifests)
        down(NAME)
        options = LabOptions(name=NAME, paths=(manifests,), nodes=2, replicas=(("details", 2),))
        try:
            yield up(options, progress=say), manifests
        finally:
            down(NAME)


def run_lines(lab: Lab, manifests: Path) -> Iterator[Line]:
    """All promises in order; each is printed as soon as it is known."""
    checks: tuple[Callable[[Lab], Line], ...] = (reviews_split, header_route, delay, kernel_service)
    for check in checks:
        yield check(lab)
    yield change_under_load(lab, manifests)
    yield from policy(lab, manifests)


def main() -> int:
    """Run the demo; 0 if every promise held, 1 if not."""
    started = time.monotonic()
    if os.geteuid() != 0:
        say("xdsbpf: error: the demo needs root: it makes network namespaces and loads BPF programs")
        return 77
    say("demo: two nodes, an agent and a real Envoy each, Bookinfo; this takes about a minute")
    try:
        with demo_lab() as (lab, manifests):
            say(f"demo: lab is up after {time.monotonic() - started:.1f} s; sending requests")
            sys.stdout.write("\nWHICH PLANE CARRIES WHAT\n" + planes(lab) + "\n\nPROMISES\n")
            all_held = True
            for line in run_lines(lab, manifests):
                all_held &= line.held
                sys.stdout.write(f"{'ok  ' if line.held else 'FAIL'}  {line.promise:<42}  {line.measured}\n")
                sys.stdout.flush()
    except XdsbpfError as error:
        say(f"xdsbpf: error: {error}")
        if error.hint:
            say(f"  hint: {error.hint}")
        return 1
    sys.stdout.write(f"\n{'all promises held' if all_held else 'NOT all promises held'}; nothing is left behind\n")
    return 0 if all_held else 1


if __name__ == "__main__":
    sys.exit(main())
