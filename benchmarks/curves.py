"""How the time grows with the batch, the variables and the constraints, beside the limit that linear algebra sets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

COLOURS = ("tab:green", "tab:blue", "tab:orange", "tab:red", "tab:purple", "tab:brown", "tab:pink", "tab:cyan")
MARKERS = "osD^vP*X"


def of(results: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The rows of each curve, by its name."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in results["rows"]:
        if row.get("curve"):
            found.setdefault(row["curve"]["name"], []).append(row)
    return found


def markdown(results: dict[str, Any]) -> list[str]:
    """For each curve a table: milliseconds of the limit and of each peer, and how many times the limit ours takes."""
    peers, lines = list(results["peers"]), []
    for name, rows in of(results).items():
        axis = rows[0]["curve"]["axis"]
        lines += [f"## {name}", ""]
        lines += [f"| {axis} | limit, ms | {' | '.join(f'{peer}, ms' for peer in peers)} | {peers[0]} / limit |"]
        lines += ["|---:|---:|" + "---:|" * (len(peers) + 1)]
        for row in rows:
            limit, times = row["limit"]["seconds"], [row["results"][peer] for peer in peers]
            cells = [_time(found) for found in times]
            share = f"{times[0]['seconds']['median'] / limit:.2g}" if "seconds" in times[0] else ""
            lines.append(f"| {row['curve']['value']} | {1e3 * limit:.3g} | {' | '.join(cells)} | {share} |")
        lines.append("")
    if lines:
        lines += [
            "The limit is that of an interior-point method with dense factors: the operations of its factorisations at the",
            "rates measured beside each point (`benchmarks/limit.py`). A cross marks where a peer stopped.",
            "",
        ]
    return lines


def _time(found: dict[str, Any]) -> str:
    if "seconds" in found:
        return f"{1e3 * found['seconds']['median']:.3g}"
    return "stopped" if found.get("skipped", "").startswith("stopped") else "failed" if "error" in found else ""


def plot(results: dict[str, Any], path: Path) -> None:
    """A panel a curve, both axes logarithmic; bands are quartiles, a cross is where a peer stopped, the dashed line the
    limit."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    curves, peers = of(results), list(results["peers"])
    columns = 2 if len(curves) > 1 else 1
    figure = Figure(figsize=(5.2 * columns, 3.9 * -(-len(curves) // columns) + 0.4), layout="constrained")
    panels = figure.subplots(-(-len(curves) // columns), columns, squeeze=False).ravel()
    for axes in panels[len(curves) :]:
        axes.set_visible(False)
    for axes, (name, rows) in zip(panels, curves.items(), strict=False):
        for k, peer in enumerate(peers):
            points = [
                (row["curve"]["value"], row["results"][peer]["seconds"]) for row in rows if "seconds" in row["results"][peer]
            ]
            if not points:
                continue
            style = {"color": COLOURS[k % len(COLOURS)]}
            places, middle, low, high = zip(
                *((value, 1e3 * time["median"], 1e3 * time["q1"], 1e3 * time["q3"]) for value, time in points), strict=True
            )
            axes.plot(places, middle, marker=MARKERS[k % len(MARKERS)], markersize=4, linewidth=1.4, label=peer, **style)
            axes.fill_between(places, low, high, alpha=0.2, linewidth=0, **style)
            if len(points) < len(rows):
                axes.plot(places[-1], middle[-1], "x", markersize=10, markeredgewidth=1.8, **style)
        values = [row["curve"]["value"] for row in rows]
        axes.plot(values, [1e3 * row["limit"]["seconds"] for row in rows], "k--", linewidth=1.2, label="limit")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xticks(values, [str(value) for value in values])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.grid(alpha=0.3, linewidth=0.6)
        axes.set_title(name, fontsize=10)
        axes.set_xlabel(rows[0]["curve"]["axis"])
        axes.set_ylabel("forward + backward, ms")
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = max((axes.get_legend_handles_labels() for axes in panels), key=lambda found: len(found[1]))
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 5), frameon=False, fontsize=9)
    figure.savefig(path, dpi=120)
