"""gRPC server reflection, so that grpcurl and its like can list and call our services.

In: the names of the services. Out: handlers for both published versions of the protocol, whose messages are the same
on the wire. The answers are grpcio-reflection's, out of the generated descriptors; nothing of the mesh is in them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

# Imported for their descriptors, which reflection hands out.
from envoy.service.cluster.v3 import cds_pb2 as _cds
from envoy.service.discovery.v3 import ads_pb2 as _ads
from envoy.service.endpoint.v3 import eds_pb2 as _eds
from envoy.service.endpoint.v3 import leds_pb2 as _leds
from envoy.service.extension.v3 import config_discovery_pb2 as _ecds
from envoy.service.listener.v3 import lds_pb2 as _lds
from envoy.service.load_stats.v3 import lrs_pb2 as _lrs
from envoy.service.route.v3 import rds_pb2 as _rds
from envoy.service.route.v3 import srds_pb2 as _srds
from envoy.service.runtime.v3 import rtds_pb2 as _rtds
from envoy.service.secret.v3 import sds_pb2 as _sds
from envoy.service.status.v3 import csds_pb2 as _csds
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2 as _health
from grpc_reflection.v1alpha.reflection import ReflectionServicer
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest

from xdsbpf.errors import ProtocolError
from xdsbpf.xds.transport import Call, Handler

SERVICES: Final = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")

_DESCRIBED: Final = (_ads, _lds, _rds, _srds, _cds, _eds, _leds, _sds, _rtds, _ecds, _csds, _lrs, _health)


def reflection_handlers(services: Iterable[str]) -> Mapping[str, Handler]:
    """Method path -> handler, for a server with these services (full names)."""
    # grpc-stubs has no type for the answers, and the servicer has no use for its context.
    answers: Any = ReflectionServicer((*services, *SERVICES)).ServerReflectionInfo

    async def info(call: Call) -> None:
        while (data := await call.read()) is not None:
            try:
                request = ServerReflectionRequest.FromString(data)
            except DecodeError as error:
                raise ProtocolError("INVALID_ARGUMENT", f"not a ServerReflectionRequest: {error}") from error
            for response in answers(iter((request,)), None):
                await call.write(response.SerializeToString())

    return {f"/{service}/ServerReflectionInfo": info for service in SERVICES}
