"""Queries that compile the mesh for programs that speak xDS themselves: proxyless gRPC clients and servers."""
