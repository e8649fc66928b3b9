"""How many times faster than the best of the others, and whether that is what we mean to reach.

The best of a family of peers is the fastest among those that answer well enough: a peer whose gradient error is above
``ACCURATE`` and above ours is passed over, unless nobody else is there. The fastest of any accuracy is named beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

ACCURATE = 1e-6
"""Gradient error, of the worst element, up to which a peer counts."""
FAMILIES = {"cvxpylayers": "cvxpylayers", "others": "other"}
"""Key of the target, and the family of the peers that it is about."""
_OF_A_PEER = ["against", "ms", "gradient error"]
COLUMNS = [
    "problem",
    "ours, ms",
    "gradient error",
    "against",
    "ms",
    "gradient error",
    "ratio",
    "target",
    "met",
    "less accurate",
]
HEADER = [f"| {' | '.join(COLUMNS)} |", "|---|---:|---:|---|---:|---:|---:|---:|---|---|"]


@dataclass(frozen=True)
class Verdict:
    """One row against one family."""

    row: str
    family: str
    target: float
    ours: dict[str, Any]
    best: str | None
    """The fastest peer that is accurate enough, or the fastest if none is; None if nobody of the family solves the row."""
    accurate: bool
    fastest: str | None
    """The fastest peer of all."""
    peers: dict[str, dict[str, Any]]

    @property
    def ratio(self) -> float | None:
        """The time of the best peer over ours."""
        return None if self.best is None else self.peers[self.best]["ratio"]["median"]

    @property
    def met(self) -> bool:
        """Whether the ratio reaches the target with a gradient that is accurate, or better than the peer's."""
        if self.best is None or self.ratio is None:
            return True
        error = self.ours["gradient_error"]
        right = error <= ACCURATE or error < self.peers[self.best]["gradient_error"]
        return right and self.ratio >= self.target


def verdicts(results: dict[str, Any]) -> list[Verdict]:
    """One for each row with targets and each of ``FAMILIES`` that somebody of took part."""
    base = next(iter(results["peers"]))
    found = []
    for row in results["rows"]:
        ours = row["results"][base]
        if not row.get("target") or "seconds" not in ours:
            continue
        for key, family in FAMILIES.items():
            members = [name for name, peer in results["peers"].items() if peer["family"] == family]
            peers = {name: row["results"][name] for name in members if "seconds" in row["results"][name]}
            if members and row["target"][key]:
                found.append(_verdict(row["name"], key, row["target"][key], ours, peers))
    return found


def _verdict(row: str, family: str, target: float, ours: dict[str, Any], peers: dict[str, dict[str, Any]]) -> Verdict:
    by_time = sorted(peers, key=lambda name: peers[name]["seconds"]["median"])
    enough = max(ACCURATE, ours["gradient_error"])
    accurate = [name for name in by_time if peers[name]["gradient_error"] <= enough]
    fastest = by_time[0] if by_time else None
    return Verdict(row, family, target, ours, accurate[0] if accurate else fastest, bool(accurate), fastest, peers)


def markdown(results: dict[str, Any]) -> list[str]:
    """A table of all verdicts; no lines if there are none."""
    found = verdicts(results)
    if not found:
        return []
    lines = ["## Targets", "", *HEADER]
    for verdict in found:
        lines.append("| " + " | ".join(_cells(verdict)) + " |")
    met = sum(verdict.met for verdict in found)
    rule = (
        f"{met} of {len(found)} met. Of each family counts the fastest peer whose gradient error is at most {ACCURATE:.0e} "
        "or at most ours; * marks that there is none, so that the fastest counts. The last column names a faster one that "
        "does not count."
    )
    return [*lines, "", rule, ""]


def _cells(verdict: Verdict) -> list[str]:
    ours = [f"{1e3 * verdict.ours['seconds']['median']:.3g}", f"{verdict.ours['gradient_error']:.0e}"]
    target = f"{verdict.target:g}"
    if verdict.best is None or verdict.ratio is None:
        return [verdict.row, *ours, f"{verdict.family}: none solves it", "", "", "", target, "yes", ""]
    best = verdict.peers[verdict.best]
    other = ""
    if verdict.fastest is not None and verdict.fastest != verdict.best:
        found = verdict.peers[verdict.fastest]
        other = f"{verdict.fastest}: ratio {found['ratio']['median']:.3g}, gradient error {found['gradient_error']:.0e}"
    return [
        verdict.row,
        *ours,
        verdict.best + ("" if verdict.accurate else " *"),
        f"{1e3 * best['seconds']['median']:.3g}",
        f"{best['gradient_error']:.0e}",
        f"{verdict.ratio:.3g}",
        target,
        "yes" if verdict.met else "**no**",
        other,
    ]
