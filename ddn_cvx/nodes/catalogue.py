"""Every ready-made node: a new one is a file beside this one, and a line here."""

from __future__ import annotations

from ddn_cvx.nodes import (
    attention,
    consensus,
    contact,
    control,
    equilibrium,
    few_shot,
    hard_constraints,
    large,
    linear,
    markov_fields,
    mixtures,
    neural_ode,
    optnet,
    permutations,
    pose,
    projections,
    rank_pooling,
    robust_pooling,
    satnet,
    spectral,
    structured,
    submodular,
    summaries,
    training,
    transport,
)
from ddn_cvx.nodes.entry import Entry

ENTRIES: tuple[Entry, ...] = (
    *robust_pooling.ENTRIES,
    *projections.ENTRIES,
    *training.ENTRIES,
    *optnet.ENTRIES,
    *large.ENTRIES,
    *submodular.ENTRIES,
    *summaries.ENTRIES,
    *satnet.ENTRIES,
    *equilibrium.ENTRIES,
    *neural_ode.ENTRIES,
    *rank_pooling.ENTRIES,
    *permutations.ENTRIES,
    *few_shot.ENTRIES,
    *control.ENTRIES,
    *contact.ENTRIES,
    *hard_constraints.ENTRIES,
    *markov_fields.ENTRIES,
    *pose.ENTRIES,
    *consensus.ENTRIES,
    *transport.ENTRIES,
    *mixtures.ENTRIES,
    *structured.ENTRIES,
    *spectral.ENTRIES,
    *linear.ENTRIES,
    *attention.ENTRIES,
)
CATALOGUE: dict[str, Entry] = {entry.name: entry for entry in ENTRIES}
"""By name, in the order of the gallery."""
