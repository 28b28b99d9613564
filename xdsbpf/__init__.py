"""xdsbpf: a control plane for a hybrid service mesh (Envoy xDS and eBPF from one set of manifests)."""

__version__ = "0.1.0"
