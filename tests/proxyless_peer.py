"""A process that dials or serves gRPC over xDS; the bootstrap must be in its environment before gRPC is imported.

client TARGET        reads lines {"count": N, "metadata": [[key, value]], "target": other, "timeout": s}, of which
                     only "count" is needed, answers each with {"answers": {text: N}, "errors": [text]}
server ADDRESS TEXT  answers TEXT to every call, over a listener that comes by xDS; prints "serving"
"""

from __future__ import annotations

import functools
import json
import sys
from collections import Counter
from concurrent import futures

import grpc

METHOD = "/test.Service/Who"


def client(target: str) -> None:
    calls = functools.cache(lambda name: grpc.insecure_channel(f"xds:///{name}").unary_unary(METHOD))
    for line in sys.stdin:
        wanted = json.loads(line)
        call = calls(wanted.get("target", target))
        metadata = tuple((key, value) for key, value in wanted.get("metadata", ()))
        answers: Counter[str] = Counter()
        errors: list[str] = []
        for _ in range(wanted["count"]):
            try:
                answers[call(b"", timeout=wanted.get("timeout", 20), metadata=metadata).decode()] += 1
            except grpc.RpcError as error:
                errors.append(f"{error.code().name}: {error.details()}")
        print(json.dumps({"answers": answers, "errors": errors}), flush=True)


def server(address: str, text: str) -> None:
    serving = grpc.server(futures.ThreadPoolExecutor(4), xds=True)
    who = grpc.unary_unary_rpc_method_handler(lambda request, context: text.encode())
    serving.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Service", {"Who": who}),))
    plain = grpc.xds_server_credentials(grpc.insecure_server_credentials())
    serving.add_secure_port(address, plain)
    serving.start()
    print("serving", flush=True)
    serving.wait_for_termination()


if __name__ == "__main__":
    {"client": client, "server": server}[sys.argv[1]](*sys.argv[2:])
