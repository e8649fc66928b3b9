"""The tutorials of the DDN reference implementation, with nodes that are declared and not derived by hand.

Eigenvectors (tutorial 13), total variation (14), tridiagonal systems (15), the analytic centre (16) and attention (17):
every node against a closed form or another program, and against what the tutorial does, on problems like the tutorial's.

* eigenvectors: derivatives against those of ``torch.linalg.eigh``;
* total variation: the tutorial takes the identity for the derivative; both are held against finite differences, on signals
  that denoising makes piecewise constant. Then a signal is sought that denoises to a target, with three derivatives: the
  exact one, which cannot see that a piece may split, that of the smoothed problem, which can, and the identity;
* tridiagonal: off-diagonals are learnt so that the solution is one everywhere; derivatives against a dense solve;
* analytic centre: inequalities are moved until their centre is at (1, -1); against the closed form of the derivative;
* attention: sums of the balanced weights, which the tutorial gets from 50 sweeps of Sinkhorn's iteration.

Fails if a derivative differs from its closed form by more than 1e-6, if a problem is not solved to a loss of 1e-3 (total
variation: with the smoothed derivative), or if one of the two errors is more than a tenth of the tutorial's.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from figure import options, over_seeds, pyplot, require, save, table
from torch import Tensor

from ddn_cvx import Smoothed
from ddn_cvx.nodes import AnalyticCentre, Attention, Eigenvectors, Entmax, TotalVariation, Tridiagonal

STEPS, LENGTH = 120, 60
Curves = dict[str, list[float]]


def draw(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def jacobian(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return torch.autograd.functional.jacobian(function, x)


def descend(loss: Callable[[], Tensor], weights: list[Tensor], steps: int, rate: float) -> list[float]:
    """Losses of Adam's steps."""
    optimiser = torch.optim.Adam(weights, lr=rate)
    losses = []
    for _ in range(steps):
        value = loss()
        losses.append(value.item())
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
    return [*losses, loss().item()]


def eigenvectors(generator: torch.Generator) -> dict[str, float]:
    X, v = draw(generator, 5, 8, 8), draw(generator, 5, 8, 3)
    X = (X + X.mT).requires_grad_()
    _, U = Eigenvectors(8, top=3)(X)
    _, right = torch.linalg.eigh(X)
    right = right.flip(-1)[..., :3]
    right = right * (right * U.detach()).sum(-2, keepdim=True).sign()
    ours, other = (torch.autograd.grad((of * v).sum(), X)[0] for of in (U, right))
    return {"eigenvectors: derivative, from eigh's": float((ours - 0.5 * (other + other.mT)).abs().max())}


def total_variation(generator: torch.Generator, steps: int, curves: Curves) -> dict[str, float]:
    node, smoothed = TotalVariation(LENGTH), TotalVariation(LENGTH)
    smoothed.adjoint = Smoothed(0.1)
    target = torch.remainder(torch.floor(torch.linspace(0, 6, LENGTH, dtype=torch.float64)), 3.0)
    weights = torch.ones(LENGTH - 1, dtype=torch.float64)
    signal = target + 0.3 * draw(generator, LENGTH)
    J = jacobian(lambda x: node(x, weights), signal)
    h = 1e-5 * torch.eye(LENGTH, dtype=torch.float64)
    differences = ((node(signal + h, weights) - node(signal - h, weights)) / 2e-5).mT
    eye = torch.eye(LENGTH, dtype=torch.float64)

    def exact(x: Tensor) -> Tensor:
        return node(x, weights)

    def soft(x: Tensor) -> Tensor:
        return smoothed(x, weights)

    def through(x: Tensor) -> Tensor:
        return x + (node(x, weights) - x).detach()

    start = draw(generator, LENGTH)
    for name, denoise in (("exact", exact), ("smoothed", soft), ("tutorial", through)):
        x = start.clone().requires_grad_()

        def loss(denoise: Callable[[Tensor], Tensor] = denoise, x: Tensor = x) -> Tensor:
            return (denoise(x) - target).square().mean()

        curves[f"total variation: {name}"] = descend(loss, [x], steps, 0.1)
    return {
        "total variation: derivative, from differences": float((J - differences).abs().max()),
        "total variation: the same, tutorial": float((eye - differences).abs().max()),
        "total variation: loss, exact derivative": curves["total variation: exact"][-1],
        "total variation: loss, smoothed derivative": curves["total variation: smoothed"][-1],
        "total variation: loss, tutorial": curves["total variation: tutorial"][-1],
    }


def tridiagonal(generator: torch.Generator, steps: int, curves: Curves) -> dict[str, float]:
    n = 8
    node = Tridiagonal(n)
    diagonal, right = 2 + 0.5 * draw(generator, n).abs(), 0.5 * draw(generator, n).abs()
    lower, upper = ((-draw(generator, n - 1).abs().clamp(max=0.9)).requires_grad_() for _ in range(2))
    A = torch.diag(diagonal) + torch.diag(lower, -1) + torch.diag(upper, 1)
    L = torch.linalg.cholesky(A @ A.mT)
    dense = A.mT @ torch.cholesky_solve(right.unsqueeze(-1), L)
    v = draw(generator, n)
    wrong = [
        (one - other).abs().max()
        for one, other in zip(
            torch.autograd.grad(node(diagonal, lower, upper, right) @ v, (lower, upper)),
            torch.autograd.grad(dense.squeeze(-1) @ v, (lower, upper)),
            strict=True,
        )
    ]

    def loss() -> Tensor:
        return (node(diagonal, lower, upper, right) - 1).square().mean()

    curves["tridiagonal"] = descend(loss, [lower, upper], steps, 0.1)
    return {
        "tridiagonal: derivative, from a dense solve": float(max(wrong)),
        "tridiagonal: loss": curves["tridiagonal"][-1],
    }


def analytic_centre(generator: torch.Generator, steps: int, curves: Curves) -> dict[str, float]:
    m = 8
    node = AnalyticCentre(m, 2)
    turn = 2 * torch.pi * (torch.arange(m) + torch.rand(m, generator=generator)).double() / m
    A0, b0 = torch.stack((turn.cos(), turn.sin()), -1), 2 + torch.rand(m, generator=generator, dtype=torch.float64)
    y = node(A0, b0)
    d = 1 / (b0 - A0 @ y)
    H = A0.mT @ (d.square().unsqueeze(-1) * A0)
    closed = torch.cholesky_solve(A0.mT * d.square(), torch.linalg.cholesky(H))  # dy / db
    wrong = float((jacobian(lambda b: node(A0, b), b0) - closed).abs().max())
    target = torch.tensor([1.0, -1.0], dtype=torch.float64)
    for name, both in (("A and b", True), ("b", False)):
        A, b = A0.clone().requires_grad_(both), b0.clone().requires_grad_()

        def loss(A: Tensor = A, b: Tensor = b) -> Tensor:
            return (node(A, b) - target).square().mean()

        curves[f"centre: {name}"] = descend(loss, [A, b] if both else [b], steps, 0.05)
    return {
        "analytic centre: derivative, from the closed form": wrong,
        "analytic centre: loss, moving A and b": curves["centre: A and b"][-1],
        "analytic centre: loss, moving b": curves["centre: b"][-1],
    }


def attention(generator: torch.Generator) -> dict[str, float]:
    queries, keys = draw(generator, 1, 6, 8), draw(generator, 1, 6, 8)
    ours = Attention(1.0, temperature=0.05, balanced=(6, 6)).weights(queries, keys)
    X = queries @ keys.mT / 8**0.5 / 0.05
    for _ in range(50):
        X = X - X.logsumexp(-1, keepdim=True)
        X = X - X.logsumexp(-2, keepdim=True)
    scores = draw(generator, 4, 10).requires_grad_()
    v = draw(generator, 4, 10)
    softmax, entmax = (torch.autograd.grad((of * v).sum(), scores)[0] for of in (Entmax(1.0)(scores), Entmax(1.5)(scores)))
    known = torch.autograd.grad((scores.softmax(-1) * v).sum(), scores)[0]
    root = Entmax(1.5)(scores).detach().sqrt()  # p^(2 - alpha)
    closed = root * v - root * (root * v).sum(-1, keepdim=True) / root.sum(-1, keepdim=True)
    return {
        "attention: derivative, from softmax's": float((softmax - known).abs().max()),
        "attention: derivative, from entmax's closed form": float((entmax - closed).abs().max()),
        "attention, balanced: error of the sums": max(float((ours.sum(k) - 1).abs().max()) for k in (-1, -2)),
        "attention, balanced: the same, tutorial": max(float((X.exp().sum(k) - 1).abs().max()) for k in (-1, -2)),
    }


def main() -> None:
    arguments = options(__doc__, "tutorials")
    steps = 3 if arguments.quick else STEPS
    curves: Curves = {}

    def run(seed: int) -> dict[str, float]:
        generator = torch.Generator().manual_seed(seed)
        return {
            **eigenvectors(generator),
            **total_variation(generator, steps, curves),
            **tridiagonal(generator, steps, curves),
            **analytic_centre(generator, steps, curves),
            **attention(generator),
        }

    figures = over_seeds(run, arguments.seeds)
    print(f"largest differences, and losses after {steps} steps")
    table(figures)
    plot(curves, arguments.plot)
    worst = {name: max(values) for name, values in figures.items() if "tutorial" not in name}
    derivatives = max(value for name, value in worst.items() if "derivative, from" in name)
    losses = max(value for name, value in worst.items() if "loss" in name and "exact" not in name)
    require(f"derivatives agree with their closed forms to 1e-6 ({derivatives:.1e})", derivatives <= 1e-6, arguments.quick)
    require(f"every problem is solved to a loss of 1e-3 ({losses:.1e})", losses <= 1e-3, arguments.quick)
    for ours, other in (
        ("total variation: derivative, from differences", "total variation: the same, tutorial"),
        ("attention, balanced: error of the sums", "attention, balanced: the same, tutorial"),
    ):
        a, b = (sum(figures[name]) / arguments.seeds for name in (ours, other))
        require(f"{ours}: {a:.1e}, a tenth of the tutorial's ({b:.1e}) or less", 10 * a <= b, arguments.quick)


def plot(curves: Curves, path: Path) -> None:
    """Of the last seed: the tutorials' figures."""
    plt = pyplot()
    generator = torch.Generator().manual_seed(0)
    figure, panels = plt.subplots(2, 3, figsize=(12, 6.4), layout="constrained")
    node, weights = TotalVariation(LENGTH), torch.ones(LENGTH - 1, dtype=torch.float64)
    clean = torch.remainder(torch.floor(torch.linspace(0, 6, LENGTH, dtype=torch.float64)), 3.0)
    noisy = clean + 0.3 * draw(generator, LENGTH)
    axes = panels[0, 0]
    axes.plot(noisy, "0.7", label="noisy")
    axes.plot(clean, ":", color="tab:green", label="clean")
    axes.plot(node(noisy, weights), color="tab:blue", label="denoised")
    axes.set(title="total variation (tutorial 14)", xlabel="place", ylabel="value")
    axes.legend(fontsize=8)
    panels[0, 1].imshow(jacobian(lambda x: node(x, weights), noisy), cmap="Blues")
    panels[0, 1].set(title="its derivative: means over pieces", xlabel="noisy value", ylabel="denoised value")
    axes = panels[0, 2]
    for name, style in (("exact", "-"), ("smoothed", "-"), ("tutorial", "--")):
        axes.semilogy(curves[f"total variation: {name}"], style, label=f"derivative: {name}")
    axes.set(title="a signal that denoises to a target", xlabel="step", ylabel="loss")
    axes.legend(fontsize=8)
    axes = panels[1, 0]
    axes.semilogy(curves["tridiagonal"], color="tab:purple", label="tridiagonal (15)")
    axes.semilogy(curves["centre: A and b"], color="tab:red", label="analytic centre (16), A and b")
    axes.semilogy(curves["centre: b"], color="tab:green", label="analytic centre (16), b")
    axes.set(title="learnt systems", xlabel="step", ylabel="loss")
    axes.legend(fontsize=8)
    scores = draw(generator, 10).sort(descending=True).values
    axes = panels[1, 1]
    for k, (name, alpha) in enumerate((("softmax", 1.0), ("entmax 1.5", 1.5), ("sparsemax", 2.0))):
        axes.bar(torch.arange(10) + 0.27 * (k - 1), Entmax(alpha)(scores), 0.25, label=name)
    axes.set(title="attention weights (17)", xlabel="key, by score", ylabel="weight")
    axes.legend(fontsize=8)
    queries, keys = draw(generator, 6, 8), draw(generator, 6, 8)
    axes = panels[1, 2]
    balanced = Attention(1.0, temperature=0.2, balanced=(6, 6)).weights(queries, keys)
    both = torch.cat((Attention(1.0, temperature=0.2).weights(queries, keys), torch.full((6, 1), torch.nan), balanced), -1)
    axes.imshow(both, cmap="Blues", vmin=0, vmax=1)
    axes.set(title="attention (17)", xlabel="key", ylabel="query", yticks=[])
    axes.set_xticks((2.5, 9.5), ("softmax", "balanced"))
    save(figure, path, dpi=105)


if __name__ == "__main__":
    main()
