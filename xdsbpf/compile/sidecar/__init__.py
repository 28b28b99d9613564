"""Queries that compile the mesh for an Envoy beside one workload, by the names and rules of Istio's sidecars."""
