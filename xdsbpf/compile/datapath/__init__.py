"""Queries that turn the mesh into the kernel's resources (protos/xdsbpf/datapath/v1)."""
