"""Every ready-made node: a new one is a file beside this one, and a line here."""

from __future__ import annotations

from ddn_cvx.nodes import (
    contact,
    control,
    equilibrium,
    few_shot,
    hard_constraints,
    neural_ode,
    optnet,
    permutations,
    pose,
    projections,
    rank_pooling,
    robust_pooling,
    training,
)
from ddn_cvx.nodes.entry import Entry

ENTRIES: tuple[Entry, ...] = (
    *robust_pooling.ENTRIES,
    *projections.ENTRIES,
    *training.ENTRIES,
    *optnet.ENTRIES,
    *equilibrium.ENTRIES,
    *neural_ode.ENTRIES,
    *rank_pooling.ENTRIES,
    *permutations.ENTRIES,
    *few_shot.ENTRIES,
    *control.ENTRIES,
    *contact.ENTRIES,
    *hard_constraints.ENTRIES,
    *pose.ENTRIES,
)
CATALOGUE: dict[str, Entry] = {entry.name: entry for entry in ENTRIES}
"""By name, in the order of the gallery."""
