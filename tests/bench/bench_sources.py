"""Cost of reading manifests: 10,000 Services with an EndpointSlice each, in one file and again after an edit.

Prints one JSON object: CPU seconds and objects per second for the first read, for a re-read after one
changed object, and for one position; bytes kept per object.
"""

from __future__ import annotations

import gc
import json
import sys
import time
import tracemalloc

from xdsbpf.diagnostics import ObjectId
from xdsbpf.sources.catalog import Catalog
from xdsbpf.sources.yaml_reader import parse_file


def manifests(count: int) -> str:
    """`count` Services, each with an EndpointSlice of ten addresses."""
    texts = []
    for number in range(count):
        addresses = "".join(
            f"- addresses: [10.{number // 250 % 250}.{number % 250}.{last}]\n  conditions: {{ready: true}}\n"
            for last in range(1, 11)
        )
        texts.append(
            f"apiVersion: v1\nkind: Service\nmetadata:\n  name: s{number}\nspec:\n  selector:\n    app: s{number}\n"
            f"  ports:\n  - name: http\n    port: 9080\n"
        )
        texts.append(
            f"apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: s{number}-1\n  labels:\n"
            f"    kubernetes.io/service-name: s{number}\nports:\n- name: http\n  port: 9080\nendpoints:\n{addresses}"
        )
    return "---\n".join(texts)


def run(count: int = 10_000) -> dict[str, float]:
    """The figures for `count` Services and as many EndpointSlices."""
    text = manifests(count)
    data = text.encode()
    edited = text.replace("port: 9080", "port: 9081", 1).encode()
    tracemalloc.start()
    catalog = Catalog()
    catalog.put_file(parse_file("a.yaml", data), (0, "a.yaml"), 0.0)
    gc.collect()
    kept = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()

    catalog = Catalog()
    began = time.process_time()
    catalog.put_file(parse_file("a.yaml", data), (0, "a.yaml"), 0.0)
    first = time.process_time() - began
    began = time.process_time()
    delta = catalog.put_file(parse_file("a.yaml", edited, catalog.previous("a.yaml")), (0, "a.yaml"), 1.0)
    again = time.process_time() - began
    began = time.process_time()
    catalog.locate(ObjectId("Service", "default", f"s{count // 2}"), "spec.ports[0].port")
    position = time.process_time() - began
    return {
        "objects": 2 * count,
        "megabytes": round(len(data) / 1e6, 1),
        "read_cpu_s": round(first, 2),
        "objects_per_cpu_s": round(2 * count / first),
        "reread_after_one_edit_ms": round(again * 1e3, 1),
        "puts_after_one_edit": len(delta.puts),
        "locate_us": round(position * 1e6),
        "bytes_kept_per_object": round(kept / (2 * count)),
    }


if __name__ == "__main__":
    json.dump(run(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000), sys.stdout, indent=2)
    sys.stdout.write("\n")
