"""Queries that compile the mesh to Envoy resources for the Envoy that all workloads of a node share."""
