"""The xDS server: resource store, per-stream state machines, gate between planes, gRPC shell, status.

`store`, `subscription`, `session`, `gate`, `publisher` and `status` are pure; `server` is the only module
that does I/O; `protocol` is shared with the agent's client.
"""
