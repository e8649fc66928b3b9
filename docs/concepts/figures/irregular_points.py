"""Draws irregular_points.svg: solutions and derivatives at a kink, at a vertex and in a valley."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import torch
from torch.func import jacrev, vmap

import ddn_cvx as ddn

matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "ddn_cvx"  # the same file every time
from matplotlib import pyplot as plt  # noqa: E402  # after the choice of what draws

f64 = torch.float64
x = torch.linspace(-1, 1, 201, dtype=f64)
figure, (kink, vertex, valley) = plt.subplots(1, 3, figsize=(10, 3), layout="constrained")

relu = ddn.TorchProblem((), lambda y, x: (y - x) ** 2, lower=0.0, parameters=[()])
kink.plot(x, ddn.DeclarativeLayer(relu)(x), "k", label="solution")
kink.plot(x, vmap(jacrev(ddn.DeclarativeLayer(relu)))(x), "C0", label="derivative")
for width, style in ((0.01, "C1--"), (0.1, "C1:")):
    smooth = ddn.DeclarativeLayer(relu, adjoint=ddn.Smoothed(width))
    kink.plot(x, vmap(jacrev(smooth))(x), style, label=f"Smoothed({width})")
kink.set_title("kink: min (y - x)², y ≥ 0")

lp = ddn.TorchProblem((), lambda y, x: x * y, lower=-1.0, upper=1.0, parameters=[()])
vertex.plot(x, ddn.DeclarativeLayer(lp)(x), "k", label="solution")
vertex.plot(x, vmap(jacrev(ddn.DeclarativeLayer(lp)))(x), "C0", label="derivative")
smooth = ddn.DeclarativeLayer(lp, adjoint=ddn.Smoothed(0.1))
vertex.plot(x, vmap(jacrev(smooth))(x), "C1--", label="Smoothed(0.1)")
vertex.set_title("vertex: min x y, −1 ≤ y ≤ 1")

wide = ddn.TorchProblem(2, lambda y, x: (y.sum() - x) ** 2, parameters=[()])
line = torch.linspace(-0.5, 1.5, 2, dtype=f64)
for level in (0.5, 1.0):
    valley.plot(line, level - line, "k", lw=1)
point = ddn.DeclarativeLayer(wide)(torch.tensor(0.5, dtype=f64))
step = 0.5 * jacrev(ddn.DeclarativeLayer(wide))(torch.tensor(0.5, dtype=f64))
valley.annotate("", (point + step).tolist(), point.tolist(), arrowprops={"arrowstyle": "->", "color": "C0"})
valley.plot(*point.tolist(), "ko")
valley.set(aspect="equal", title="valley: min (y₁ + y₂ − x)²", xlabel="y₁", ylabel="y₂")

for axes in (kink, vertex):
    axes.set_xlabel("x")
    axes.legend(fontsize="small")
figure.savefig(Path(__file__).with_suffix(".svg"), metadata={"Date": None})
