"""Raw Envoy resources and what a proxy that is not of the mesh sees of it."""
