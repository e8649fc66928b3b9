"""Draws the pictures of the front page and the README from runs of the package and from the saved benchmark results.

python docs/figures/front_page.py          (a minute)
"""

from __future__ import annotations

import sys

import cvxpy as cp
import matplotlib
import torch
from drawing import BACKWARD, FAINT, FORWARD, HERE, INK, MATHS, SANS, arrow, box, save, text
from torch.func import jvp

sys.path.insert(0, str(HERE.parents[1]))
matplotlib.use("svg")
from matplotlib import pyplot as plt  # after the choice of what draws

import ddn_cvx as ddn  # this and the next from this checkout
from benchmarks.report import load
from ddn_cvx.demo import Denoiser, best_constant, sample


def drawn(figure: plt.Figure, name: str) -> tuple[float, float, str]:
    """Width, height and content of a plot."""
    path = HERE / f"{name}.svg"
    matplotlib.rcParams["svg.hashsalt"] = name  # the same file every time, and no name twice on a page
    figure.savefig(path, metadata={"Date": None}, transparent=True)
    plt.close(figure)
    text = path.read_text(encoding="utf-8")
    body = text[text.index("<defs>") : text.rindex("</svg>")]
    width, height = (72 * side for side in figure.get_size_inches())
    return width, height, body.replace('<style type="text/css">*{', '<style type="text/css">.ddn path, .ddn use {')


def flow(tall: bool = False) -> str:
    """A node: what goes in and out, forward and backward; from left to right, or from top to bottom."""
    up = 'font-style="normal"'
    argmin = f'y* = <tspan {up}>argmin</tspan><tspan font-size="13" dy="5">u</tspan><tspan dy="-5"> f (u; θ)</tspan>'
    subject = f"<tspan {up}>subject to</tspan> h(u; θ) = <tspan {up}>0,</tspan> g(u; θ) ≤ <tspan {up}>0</tspan>"
    conditions = f"F(y*, θ) = <tspan {up}>0</tspan>"
    node = (
        box(0, 0, 316, 284, INK),
        box(12, 34, 292, 116, FORWARD, FORWARD),
        box(12, 160, 292, 112, BACKWARD, BACKWARD),
        text(158, 23, "declarative node", 16, INK, 'font-weight="600"'),
        text(158, 72, argmin, 21, INK, MATHS),
        text(158, 102, subject, 16.5, INK, MATHS),
        text(158, 134, "solved for the whole batch, and checked", 13),
        text(158, 198, conditions, 21, INK, MATHS),
        text(158, 227, "optimality conditions: one linear system", 14),
        text(158, 253, "the same derivative, whatever solver ran", 13),
    )
    labels = ("forward", FORWARD, ""), ("y*", FORWARD, MATHS), ("∂L/∂y*", BACKWARD, MATHS), ("∂L/∂θ", BACKWARD, MATHS)
    if tall:
        ends = ((12, "parameters  θ", "data or weights"), (472, "solution  y*(θ)", "to the next layer"))
        where, arrows = (12, 122), ((124, 68, 46, True), (124, 414, 46, True), (204, 466, -46, True), (204, 120, -46, True))
        places = ((86, 95), (100, 441), (242, 444), (238, 98))
        outside = [
            box(12, y - 6, 316, 58, INK) + text(170, y + 18, name, 16) + text(170, y + 40, remark, 13)
            for y, name, remark in ends
        ]
    else:
        ends = ((70, "parameters", "θ", "data or weights"), (690, "solution", "y*(θ)", "to the next layer"))
        where, arrows = (222, 8), ((142, 104, 72), (546, 104, 72), (614, 208, -72), (214, 208, -72))
        places = ((178, 92), (582, 92), (582, 232), (178, 232))
        outside = [
            box(x - 64, 76, 128, 148, INK) + text(x, 136, name, 16) + text(x, 170, symbol, 24, INK, MATHS)
            + text(x, 202, remark, 12.5)
            for x, name, symbol, remark in ends
        ]  # fmt: skip
    x, y = where
    return "\n".join((
        f"<g {SANS}>",
        *outside,
        f'<g transform="translate({x} {y})">', *node, "</g>",
        *(arrow(*at[:3], colour, *at[3:]) for at, (_, colour, _) in zip(arrows, labels, strict=True)),
        *(text(*at, label, 15, colour, rest) for at, (label, colour, rest) in zip(places, labels, strict=True)),
        "</g>",
    ))  # fmt: skip


def geometry() -> plt.Figure:
    """The nearest point of a polygon to a moving one, and its velocity."""
    corners = torch.tensor([[-1.2, -0.9], [0.9, -1.0], [1.35, 0.1], [0.5, 1.0], [-0.9, 0.8]], dtype=torch.float64)
    edges = corners.roll(-1, 0) - corners
    G = torch.stack([edges[:, 1], -edges[:, 0]], 1)
    u, theta = cp.Variable(2), cp.Parameter(2)
    inside = [G.numpy() @ u <= (G * corners).sum(1).numpy()]
    layer = ddn.DeclarativeLayer(cp.Problem(cp.Minimize(cp.sum_squares(u - theta)), inside), [theta], u)

    def path(t: torch.Tensor) -> torch.Tensor:
        return torch.stack([1.9 * torch.cos(t), 1.45 * torch.sin(t)], -1)

    time = torch.linspace(-0.75, 2.2, 400, dtype=torch.float64)
    now = torch.tensor([0.62], dtype=torch.float64)
    point, velocity = jvp(path, (now,), (torch.ones_like(now),))
    answer, moved = jvp(layer, (point,), (velocity,))
    figure, axes = plt.subplots(figsize=(4.5, 3.6), layout="constrained")
    axes.add_patch(plt.Polygon(corners, facecolor=FORWARD, alpha=0.12))
    axes.add_patch(plt.Polygon(corners, facecolor="none", edgecolor=INK, linewidth=1.2))
    distance = float((point - answer).norm())
    for share in (1 / 3, 2 / 3, 1):
        axes.add_patch(plt.Circle(point[0], share * distance, fill=False, color=INK, linewidth=0.7, alpha=0.5))
    axes.plot(*path(time).T, "--", color=INK, linewidth=1)
    axes.plot(*layer(path(time)).T, color=FORWARD, linewidth=3.5, solid_capstyle="round")
    for start, step, colour in ((point, velocity, INK), (answer, moved, BACKWARD)):
        head = (start + 0.35 * step)[0].tolist()
        arrow = {"arrowstyle": "-|>", "color": colour, "linewidth": 2, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 14}
        axes.annotate("", head, start[0].tolist(), arrowprops=arrow)
        axes.plot(*start[0].tolist(), "o", color=colour, markersize=6)
    labels = ((point, (8, -4), r"$\theta$", INK), (answer, (-50, -20), r"$y^\star(\theta)$", BACKWARD))
    for place, offset, label, colour in labels:
        axes.annotate(label, place[0].tolist(), offset, textcoords="offset points", fontsize=14, color=colour)
    axes.annotate(r"$\mathrm{D}y^\star\,\dot\theta$", (answer + 0.35 * moved)[0].tolist(), (-56, -6), fontsize=13,
                  textcoords="offset points", color=BACKWARD)  # fmt: skip
    axes.text(-0.75, -0.35, r"$g(u) \leq 0$", fontsize=13, color=INK)
    axes.set(aspect="equal", xlim=(-1.5, 2.2), ylim=(-1.15, 1.65))
    axes.axis("off")
    return figure


def training(steps: int = 300, seed: int = 0) -> plt.Figure:
    """The loss of the demo, which trains a network through the problem of total variation."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model, (clean, noisy) = Denoiser(32), sample(128, generator)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    errors = []
    for step in range(steps):
        if step % 5 == 0:
            with torch.no_grad():
                errors.append(float((model(noisy) - clean).square().mean()))
        target, given = sample(32, generator)
        loss = (model(given) - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    classical, _ = best_constant(clean, noisy)
    figure, axes = plt.subplots(figsize=(4.5, 3.6), layout="constrained")
    axes.axhline(0.3**2, color=INK, linewidth=1, linestyle=":")
    axes.axhline(classical, color=BACKWARD, linewidth=1.6, linestyle="--")
    axes.plot(range(0, steps, 5), errors, color=FORWARD, linewidth=2)
    axes.text(steps, 0.091, "noisy signal", ha="right", va="bottom", color=INK)
    axes.text(steps, classical + 0.001, "best single weight", ha="right", va="bottom", color=BACKWARD)
    axes.text(steps, errors[-1] - 0.004, "weights predicted by a network", ha="right", va="top", color=FORWARD)
    axes.set(xlabel="training step", ylabel="test error", ylim=(0, 0.1), xlim=(0, steps))
    return figure


def benchmark() -> plt.Figure:
    """Forward and backward passes of batches, ours and those of cvxpylayers with its defaults."""
    results = HERE.parents[1] / "benchmarks" / "results"
    names = {
        "simplex-100-batch-128": "simplex projection, n = 100",
        "qp-10-3-5-batch-128": "QP, 10 variables",
        "qp-50-10-50-batch-64": "QP, 50 variables, 64 at once",
        "qp-128-0-128-batch-16": "QP, 128 variables, 16 at once",
        "socp-20-40-batch-128": "second-order cones, n = 20",
        "sdp-8-4-batch-128": "semidefinite, 8 × 8",
        "logistic-10-30-batch-128": "logistic regression",
        "softmax-10-batch-128": "softmax by entropy",
    }
    rows = {row["name"]: row["results"] for suite in ("qp", "cones") for row in load(results / f"{suite}.json")["rows"]}
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for place, name in enumerate(reversed(names)):
        ours, theirs = (1e3 * rows[name][peer]["seconds"]["median"] for peer in ("ddn_cvx", "cvxpylayers (default)"))
        axes.plot((ours, theirs), (place, place), color=FAINT, linewidth=3, zorder=1)
        axes.plot(ours, place, "o", color=FORWARD, markersize=10)
        axes.plot(theirs, place, "o", color=BACKWARD, markersize=10)
        for value, side, colour in ((ours, -1, FORWARD), (theirs, 1, BACKWARD)):
            label = f"{value:.2g} ms" if value < 100 else f"{value:.0f} ms"
            near = {"textcoords": "offset points", "ha": "right" if side < 0 else "left", "va": "center"}
            axes.annotate(label, (value, place), (9 * side, 0), color=colour, **near)
        middle = (ours * theirs) ** 0.5
        axes.text(middle, place + 0.12, f"{theirs / ours:.0f}×", ha="center", va="bottom", color=INK, fontsize=9)
    axes.set_yticks(range(len(names)), list(reversed(names.values())))
    axes.set(xscale="log", xlim=(0.16, 8000), ylim=(-0.6, len(names) - 0.2))
    axes.set_xlabel("forward and backward pass of a batch, ms")
    axes.plot([], [], "o", color=FORWARD, label="ddn_cvx")
    axes.plot([], [], "o", color=BACKWARD, label="cvxpylayers")
    figure.legend(loc="outside upper right", ncols=2, frameon=False, labelcolor=INK)
    axes.tick_params(axis="y", length=0)
    return figure


def main() -> None:
    matplotlib.rcParams |= {
        **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
        **dict.fromkeys(("axes.spines.top", "axes.spines.right"), False),
        "font.size": 11,
    }
    node = flow()
    title = "Parameters go into a problem, its solution comes out; gradients go back through its conditions"
    save("node", title, 760, 300, node)
    save("node_tall", title, 340, 534, flow(tall=True))
    title = "As a point moves, the nearest point of a polygon slides along its boundary"
    save("geometry", title, *drawn(geometry(), "geometry"))
    width, height, loss = drawn(training(), "training")
    save("training", "The test error falls below that of the best single weight", width, height, loss)
    save("benchmark", "Times of ddn_cvx and cvxpylayers for eight batches", *drawn(benchmark(), "benchmark"))
    scale = 300 / height
    side = f'<g transform="translate(790 0) scale({scale:.4f})">{loss}</g>'
    both = "A declarative node, and the test error of a network that is trained through one"
    save("overview", both, 790 + scale * width, 300, node + "\n" + side)


if __name__ == "__main__":
    main()
