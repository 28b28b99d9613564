"""Broken servers: for a rule, the smallest change of the product that breaks it, and the test that must see it.

One module for each module of tests. To add one: see `mutation.Mutant`.
"""

from __future__ import annotations

from tests.xds.mutants import delta, flow, ordering, sotw, streams
from tests.xds.mutation import Mutant

MUTANTS: tuple[Mutant, ...] = (
    *streams.MUTANTS,
    *sotw.MUTANTS,
    *delta.MUTANTS,
    *ordering.MUTANTS,
    *flow.MUTANTS,
)
