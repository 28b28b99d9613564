"""Queries that turn the mesh into resources of both planes: `envoy` and `datapath`."""
