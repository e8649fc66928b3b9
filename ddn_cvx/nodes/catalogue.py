"""Every ready-made node: a new one is a file beside this one, and a line here."""

from __future__ import annotations

from ddn_cvx.nodes import control, hard_constraints, pose, projections, robust_pooling
from ddn_cvx.nodes.entry import Entry

ENTRIES: tuple[Entry, ...] = (
    *robust_pooling.ENTRIES,
    *projections.ENTRIES,
    *control.ENTRIES,
    *hard_constraints.ENTRIES,
    *pose.ENTRIES,
)
CATALOGUE: dict[str, Entry] = {entry.name: entry for entry in ENTRIES}
"""By name, in the order of the gallery."""
