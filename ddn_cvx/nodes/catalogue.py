"""Every ready-made node: a new one is a file beside this one, and a line here."""

from __future__ import annotations

from ddn_cvx.nodes import (
    control,
    equilibrium,
    few_shot,
    hard_constraints,
    markov_fields,
    optnet,
    permutations,
    pose,
    projections,
    robust_pooling,
    satnet,
    training,
)
from ddn_cvx.nodes.entry import Entry

ENTRIES: tuple[Entry, ...] = (
    *robust_pooling.ENTRIES,
    *projections.ENTRIES,
    *training.ENTRIES,
    *optnet.ENTRIES,
    *satnet.ENTRIES,
    *equilibrium.ENTRIES,
    *permutations.ENTRIES,
    *few_shot.ENTRIES,
    *control.ENTRIES,
    *hard_constraints.ENTRIES,
    *markov_fields.ENTRIES,
    *pose.ENTRIES,
)
CATALOGUE: dict[str, Entry] = {entry.name: entry for entry in ENTRIES}
"""By name, in the order of the gallery."""
