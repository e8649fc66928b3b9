"""From the results of a run to a Markdown table, a JSON file and a bar plot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Results = dict[str, Any]


def save(results: Results, path: Path) -> list[Path]:
    """Write ``path`` (JSON) and next to it the table (.md) and the plot (.png); returns the three paths."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table, figure = path.with_suffix(".md"), path.with_suffix(".png")
    path.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n")
    table.write_text(markdown(results))
    plot(results, figure)
    return [path, table, figure]


def load(path: Path) -> Results:
    """Read what ``save`` wrote."""
    results: Results = json.loads(path.read_text())
    return results


def markdown(results: Results) -> str:
    """One line a problem and peer.

    Times are medians over the rounds, with quartiles; the ratio is the peer's time over that of the first peer in the same
    round, median with least and largest; the processor's time is that of all threads; errors are those of the worst element
    of the batch.
    """
    machine = results["machine"]
    numbers = machine["versions"] | {peer["package"]: peer["version"] for peer in results["peers"].values()}
    versions = ", ".join(f"{name} {number}" for name, number in numbers.items() if number)
    load = "" if machine["load_average"] is None else f", load average {machine['load_average'][0]:.1f} at the end"
    base = next(iter(results["peers"]))
    lines = [
        f"# Benchmark: {results['suite']}",
        "",
        f"{machine['date']}; {machine['cpu']}, {machine['cores']} cores, {machine['torch_threads']} torch threads{load}; "
        f"Python {machine['python']}, {versions}; {results['rounds']} rounds.",
        "",
        f"| problem | peer | time, ms (quartiles) | forward | backward | time / {base} (range) "
        "| processor, ms | its ratio | error of x | of gradient |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in results["rows"]:
        for name, found in row["results"].items():
            lines.append("| " + " | ".join([row["name"], name, *_cells(found)]) + " |")
    return "\n".join(lines) + "\n"


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
    """Median time of each peer, grouped by problem, with quartiles; logarithmic."""
    from matplotlib.figure import Figure

    rows, peers = results["rows"], list(results["peers"])
    figure = Figure(figsize=(2 + 1.1 * len(rows), 5), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(peers)
    for k, peer in enumerate(peers):
        found = [(i, row["results"][peer]["seconds"]) for i, row in enumerate(rows) if "seconds" in row["results"][peer]]
        places = [i + (k - (len(peers) - 1) / 2) * width for i, _ in found]
        heights = [1e3 * time["median"] for _, time in found]
        below = [1e3 * (time["median"] - time["q1"]) for _, time in found]
        above = [1e3 * (time["q3"] - time["median"]) for _, time in found]
        axes.bar(places, heights, width, yerr=[below, above], label=peer, error_kw={"linewidth": 0.8})
    axes.set_yscale("log")
    axes.set_ylabel("forward + backward (or construction), ms")
    axes.set_xticks(range(len(rows)), [row["name"] for row in rows], rotation=30, ha="right")
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)
