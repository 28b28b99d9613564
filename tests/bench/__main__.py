"""`./dev bench [NAME…]`: runs bench_NAME.py (all without a name), one JSON document on standard output."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

HERE = Path(__file__).parent
NAMES = sorted(path.stem.removeprefix("bench_") for path in HERE.glob("bench_*.py"))


def main() -> int:
    chosen = sys.argv[1:] or NAMES
    unknown = sorted(set(chosen) - set(NAMES))
    if unknown:
        sys.stderr.write(f"bench: no benchmark {', '.join(unknown)}; there are {', '.join(NAMES)}\n")
        return 64
    results = {}
    for name in chosen:
        sys.stderr.write(f"bench: {name}\n")
        results[name] = importlib.import_module(f"tests.bench.bench_{name}").run()
    sys.stdout.write(json.dumps(results, indent=2) + "\n")
    return 0


sys.exit(main())
