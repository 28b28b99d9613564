"""Pure queries over the manifests: services, endpoints, rules, routes, identities, policies, traffic mode."""
