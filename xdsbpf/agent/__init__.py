"""The node agent: delta client, desired state, pure plan, reconcile, enrolment, Envoy supervisor.

Datapath resources come in over xDS, map writes go out through `xdsbpf.datapath`. The composition
root is `xdsbpf.node`. Nothing here reads manifests or compiles.
"""
