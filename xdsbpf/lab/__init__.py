"""A cluster in network namespaces: nodes, pods, stand-in servers, and the mesh that runs on them.

`xdsbpf lab` is to xdsbpf what kind is to Kubernetes. The package is imported by the stand-in
processes of every pod, so this file imports nothing.
"""
