"""Frozen structs that are the schema of every accepted kind, and the names of the field. No I/O."""
