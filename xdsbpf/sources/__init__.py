"""Adapters that read manifests and yield objects; the only place where YAML is read."""
