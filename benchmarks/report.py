"""From the results of a run to a Markdown page, a JSON file and a plot."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from benchmarks import curves, targets

Results = dict[str, Any]


def save(results: Results, path: Path) -> list[Path]:
    """Write ``path`` (JSON) and next to it the page (.md) and the plot (.png); returns the three paths."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table, figure = path.with_suffix(".md"), path.with_suffix(".png")
    path.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n")
    table.write_text(markdown(results, figure.name))
    (curves.plot if curves.of(results) else plot)(results, figure)
    return [path, table, figure]


def load(path: Path) -> Results:
    """Read what ``save`` wrote."""
    results: Results = json.loads(path.read_text())
    return results


def markdown(results: Results, figure: str | None = None) -> str:
    """What was measured where, the targets, and one line a problem and peer; with the plot, if its file is named.

    Times are medians over the rounds, with quartiles; the ratio is the peer's time over that of the first peer in the same
    round, median with least and largest; the processor's time is that of all threads; errors are those of the worst element
    of the batch.
    """
    machine = results["machine"]
    numbers = machine["versions"] | {peer["package"]: peer["version"] for peer in results["peers"].values()}
    versions = ", ".join(f"{name} {number}" for name, number in numbers.items() if number)
    load = "" if machine["load_average"] is None else f", load average {machine['load_average'][0]:.1f} at the end"
    where = machine["cpu"] + (f" and {machine['gpu']}" if machine.get("gpu") else "")
    base = next(iter(results["peers"]))
    lines = [
        f"# Benchmark: {results['suite']}",
        "",
        f"{machine['date']}; {where}, {machine['cores']} cores, {machine['torch_threads']} torch threads{load}; "
        f"Python {machine['python']}, {versions}; at most {results['rounds']} rounds.",
        "",
        *targets.markdown(results),
        *curves.markdown(results),
        *([f"![Times of all peers]({figure})", ""] if figure else []),
        "## All peers",
        "",
        f"| problem | peer | time, ms (quartiles) | forward | backward | time / {base} (range) "
        "| processor, ms | its ratio | error of x | of gradient |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in results["rows"]:
        for name, found in row["results"].items():
            if "skipped" not in found:
                who = f"{name}: {found['note']}" if "note" in found else name
                lines.append("| " + " | ".join([row["name"], who, *_cells(found)]) + " |")
    return "\n".join([*lines, "", *_settings(results)])


def _settings(results: Results) -> list[str]:
    """How each peer was called, and the rows that it is not for."""
    lines = ["## Settings", ""]
    for name, peer in results["peers"].items():
        reasons = {row["results"][name]["skipped"] for row in results["rows"] if "skipped" in row["results"][name]}
        without = f"; not in every row: {', '.join(sorted(reasons))}" if reasons else ""
        lines.append(f"- {name}: {peer['settings']}{without}")
    return [*lines, ""]


def _cells(found: dict[str, Any]) -> list[str]:
    if "error" in found:
        return ["failed: " + " ".join(found["error"].replace("|", "/").split())[:80], "", "", "", "", "", "", ""]
    time, ratio = found["seconds"], found.get("ratio")
    return [
        f"{_ms(time['median'])} ({_ms(time['q1'])} to {_ms(time['q3'])})",
        _ms(found["forward"]["median"]) if "forward" in found else "",
        _ms(found["backward"]["median"]) if "backward" in found else "",
        f"{ratio['median']:.2g} ({ratio['min']:.2g} to {ratio['max']:.2g})" if ratio else "",
        _ms(found["cpu_seconds"]["median"]) if "cpu_seconds" in found else "",
        f"{found['cpu_ratio']['median']:.2g}" if "cpu_ratio" in found else "",
        f"{found['solution_error']:.0e}" if "solution_error" in found else "",
        f"{found['gradient_error']:.0e}" if "gradient_error" in found else "",
    ]


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3g}"


def plot(results: Results, path: Path) -> None:
    """Median time of each peer, a panel a problem, shortest on top; logarithmic, with quartiles and ratios to ours."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch
    from matplotlib.ticker import NullFormatter

    rows = results["rows"]
    colours = {"ours": "tab:green", "cvxpylayers": "tab:blue", "other": "tab:orange"}
    family = {name: peer.get("family", "other") for name, peer in results["peers"].items()}
    columns = min(3 if len(rows) > 4 else 2, len(rows))
    lines = -(-len(rows) // columns)
    bars = max(sum("seconds" in found for found in row["results"].values()) for row in rows)
    figure = Figure(figsize=(4.8 * columns, (0.9 + 0.19 * bars) * lines + 0.4), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes in panels[len(rows) :]:
        axes.set_visible(False)
    for axes, row in zip(panels, rows, strict=False):
        found = {name: it for name, it in row["results"].items() if "seconds" in it}
        order = sorted(found, key=lambda name: -found[name]["seconds"]["median"])
        for place, name in enumerate(order):
            time = {key: 1e3 * value for key, value in found[name]["seconds"].items()}
            spread = [[time["median"] - time["q1"]], [time["q3"] - time["median"]]]
            axes.barh(place, time["median"], color=colours[family[name]], xerr=spread, error_kw={"linewidth": 0.8})
            ratio = found[name].get("ratio", {}).get("median")
            axes.text(time["q3"], place, "" if ratio is None else f"  {ratio:.3g}×", va="center", fontsize=6.5)
        axes.set_yticks(range(len(order)), order, fontsize=6.5)
        axes.set_xscale("log")
        if found:  # from the power of ten below the shortest bar, so that there is something to read off
            times = [1e3 * it["seconds"]["median"] for it in found.values()]
            axes.set_xlim(10.0 ** math.floor(math.log10(min(times)) - 0.1), 3 * max(times))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_title(row["name"], fontsize=9)
        axes.tick_params(axis="x", labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    present = [kind for kind in colours if kind in family.values()]
    handles = [Patch(color=colours[kind], label={"other": "others"}.get(kind, kind)) for kind in present]
    figure.supxlabel("forward + backward (or construction), ms; ratio to ours", fontsize=9)
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False, fontsize=9)
    figure.savefig(path, dpi=110)
