"""From the results of a run to a Markdown page, a JSON file and a plot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks import curves, targets

Results = dict[str, Any]


def save(results: Results, path: Path) -> list[Path]:
    """Write ``path`` (JSON) and next to it the page (.md) and the plot (.png); returns the three paths."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table, figure = path.with_suffix(".md"), path.with_suffix(".png")
    path.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n")
    table.write_text(markdown(results))
    (curves.plot if curves.of(results) else plot)(results, figure)
    return [path, table, figure]


def load(path: Path) -> Results:
    """Read what ``save`` wrote."""
    results: Results = json.loads(path.read_text())
    return results


def markdown(results: Results) -> str:
    """What was measured where, the targets, and one line a problem and peer.

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
        "## All peers",
        "",
        f"| problem | peer | time, ms (quartiles) | forward | backward | time / {base} (range) "
        "| processor, ms | its ratio | error of x | of gradient |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in results["rows"]:
        for name, found in row["results"].items():
            if "skipped" not in found:
                lines.append("| " + " | ".join([row["name"], name, *_cells(found)]) + " |")
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
    """Median time of each peer, a panel a problem, shortest first; logarithmic, with quartiles and ratios to ours."""
    from matplotlib.figure import Figure

    rows, colours = results["rows"], {"ours": "tab:green", "cvxpylayers": "tab:blue", "other": "tab:orange"}
    names = list(results["peers"])
    columns = min(4, len(rows))
    lines = -(-len(rows) // columns)
    height = 0.7 + 0.19 * max(len([f for f in row["results"].values() if "seconds" in f]) for row in rows)
    figure = Figure(figsize=(4.2 * columns, height * lines), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes in panels[len(rows) :]:
        axes.set_visible(False)
    for axes, row in zip(panels, rows, strict=False):
        found = {name: row["results"][name] for name in names if "seconds" in row["results"][name]}
        order = sorted(found, key=lambda name: -found[name]["seconds"]["median"])
        for place, name in enumerate(order):
            time = {key: 1e3 * value for key, value in found[name]["seconds"].items()}
            family = results["peers"][name].get("family", "other")
            spread = [[time["median"] - time["q1"]], [time["q3"] - time["median"]]]
            axes.barh(place, time["median"], color=colours[family], xerr=spread, error_kw={"linewidth": 0.8})
            ratio = found[name].get("ratio", {}).get("median")
            axes.text(time["q3"], place, "" if ratio is None else f"  {ratio:.3g}x", va="center", fontsize=6)
        axes.set_yticks(range(len(order)), order, fontsize=6.5)
        axes.set_xscale("log")
        axes.margins(x=0.25)
        axes.set_title(row["name"], fontsize=9)
        axes.tick_params(axis="x", labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("forward + backward (or construction), ms", fontsize=9)
    figure.savefig(path, dpi=120)
