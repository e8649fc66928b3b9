"""Nodes inside the objectives of nodes: answers and derivatives of compositions, and a game learnt from its moves.

Part one composes nodes, convex and not, declared in cvxpy and in torch, with ordinary functions in between:

    y(a) = argmin_u 1/2 |u - a|^2 + 1/2 |W(u) - t|^2,        W(u) = argmin_w ... (a node of its own)

and holds first and second derivatives of y against finite differences of the same problem solved without the package:
Newton's method on the objective with the inner answer in closed form (or iterated). gradcheck and gradgradcheck run as well.

Part two is a game. A seller names prices u of three goods, and a crowd of buyers answers with the shares w in which it buys
them or nothing (the last share),

    w(u; c) = argmin (c + u)'w + t sum_i w_i log w_i   subject to   sum(w) = 1     (c and u are 0 for nothing)

and the seller, who knows that, maximises u'w(u; c) - |u|^2 / 4. What the buyers dislike, c = B x + c0, depends on the day x.
From the prices of 24 days alone B, c0 and t are learnt by gradients through the seller's problem, which contain second
derivatives of the buyers'. Baseline: least squares from x to the prices.

Fails if a derivative is off by more than 1e-5, if prices of new days are off by more than a tenth of the baseline's error,
or if B and t are off by more than 2 per cent.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cvxpy as cp
import torch
from figure import options, over_seeds, pyplot, require, save, table
from torch import Tensor, nn
from tqdm import tqdm

import ddn_cvx as ddn

Map = Callable[[Tensor], Tensor]
GOAL = torch.tensor([0.9, -0.2], dtype=torch.float64)
POINT = torch.tensor([[0.8, 0.5]], dtype=torch.float64)

# Part one: what goes inside. Each comes with the same map without the package.


def halfplane() -> ddn.DeclarativeLayer:
    """A convex quadratic program: the nearest point with sum(w) <= 1."""
    w, u = cp.Variable(2), cp.Parameter(2)
    return ddn.DeclarativeLayer(cp.Problem(cp.Minimize(cp.sum_squares(w - u)), [cp.sum(w) <= 1]), [u], w)


def ball() -> ddn.DeclarativeLayer:
    """A convex program with a curved cone: the nearest point with |w| <= 1/2."""
    w, u = cp.Variable(2), cp.Parameter(2)
    return ddn.DeclarativeLayer(cp.Problem(cp.Minimize(cp.sum_squares(w - u)), [cp.norm(w) <= 0.5]), [u], w)


def circle() -> ddn.DeclarativeLayer:
    """A program that is not convex: the nearest point with |w| = 1/2."""
    return ddn.DeclarativeLayer(
        ddn.TorchProblem(
            (2,),
            lambda w, u: (w - u).square().sum(),
            equality=lambda w, u: w.square().sum() - 0.25,
            initial=lambda u: u,
            parameters=[(2,)],
        )
    )


def equilibrium() -> ddn.DeclarativeLayer:
    """A fixed point: w = tanh(w / 2 + u)."""
    return ddn.DeclarativeLayer(ddn.FixedPoint((2,), lambda w, u: torch.tanh(0.5 * w + u), parameters=[(2,)]))


def onto_halfplane(u: Tensor) -> Tensor:
    return u - (u.sum(-1, keepdim=True) - 1).clamp_min(0) / 2


def onto_circle(u: Tensor) -> Tensor:
    return 0.5 * u / u.norm(dim=-1, keepdim=True)


def iterated(u: Tensor) -> Tensor:
    w = torch.zeros_like(u)
    for _ in range(60):
        w = torch.tanh(0.5 * w + u)
    return w


def bent(u: Tensor) -> Tensor:
    """An ordinary function: a layer of a network."""
    return 0.4 * torch.tanh(u @ torch.tensor([[1.0, 0.4], [-0.3, 1.2]], dtype=u.dtype)) + 0.6 * u


@dataclass(frozen=True)
class Composition:
    """``layer(a (1, 2)) -> (1, 2)``, and the same ``alone(a, near)``, without the package: the minimum that is near."""

    layer: Map
    alone: Callable[[Tensor, Tensor], Tensor]


def objective(inner: Map) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda u, a: ((u - a).square().sum() + (inner(u) - GOAL).square().sum()) / 2


def free(inner: Map, alone: Map) -> Composition:
    """The outer node is not constrained."""
    node = ddn.TorchProblem((2,), objective(inner), initial=lambda a: a, parameters=[(2,)])
    layer = ddn.DeclarativeLayer(node)
    return Composition(layer, lambda a, near: newton(lambda u: objective(alone)(u, a[0]), near[0]).unsqueeze(0))


def on_circle(inner: Map, alone: Map) -> Composition:
    """The outer node seeks on the unit circle: it is not convex either. Alone, it seeks the angle."""
    node = ddn.TorchProblem(
        (2,),
        objective(inner),
        equality=lambda u, a: u.square().sum() - 1,
        initial=lambda a: a / a.norm(),
        parameters=[(2,)],
    )

    def point(angle: Tensor) -> Tensor:
        return torch.cat((angle.cos(), angle.sin()))

    def by_angle(a: Tensor, near: Tensor) -> Tensor:
        angle = newton(lambda t: objective(alone)(point(t), a[0]), torch.atan2(near[0, 1], near[0, 0]).reshape(1))
        return point(angle).unsqueeze(0)

    return Composition(ddn.DeclarativeLayer(node), by_angle)


def newton(function: Map, start: Tensor) -> Tensor:
    """A minimum near the start, to rounding."""
    u = start.detach().clone()
    for _ in range(12):
        slope, curvature = torch.func.grad(function)(u), torch.func.hessian(function)(u)
        eigenvalues, vectors = torch.linalg.eigh(curvature)
        step = vectors @ ((vectors.T @ slope) / eigenvalues.abs().clamp_min(1e-3))
        u = u - step * (0.5 / step.norm()).clamp_max(1)
    return u


def chain() -> Composition:
    """Not inside but after each other: a network, a node that is not convex, and one that is."""
    first, second = circle(), halfplane()
    return Composition(lambda a: second(2 * first(bent(a))), lambda a, _: onto_halfplane(2 * onto_circle(bent(a))))


def compositions() -> dict[str, Callable[[], Composition]]:
    """By name; those that are not convex are called circles."""
    return {
        "quadratic program in a free node": lambda: free(halfplane(), onto_halfplane),
        "ball (second-order cone) in a free node": lambda: free(ball(), onto_circle),
        "circle in a free node": lambda: free(circle(), onto_circle),
        "ball in a circle": lambda: on_circle(ball(), onto_circle),
        "fixed point in a circle": lambda: on_circle(equilibrium(), iterated),
        "network, quadratic program in a free node": lambda: free(
            _after(halfplane(), bent), lambda u: onto_halfplane(bent(u))
        ),
        "network, circle, quadratic program in a row": chain,
    }


def _after(outer: Map, inner: Map) -> Map:
    return lambda u: outer(inner(u))


def errors(composition: Composition, a: Tensor) -> tuple[float, float, float]:
    """Of the answer, of the first derivative and of the second, against finite differences of the problem solved alone."""
    layer, alone = composition.layer, composition.alone
    found = layer(a).detach()
    near = (found * 20).round() / 20  # a start that is not the answer
    jacobian = torch.func.jacrev(layer)(a)[0, :, 0]
    second = torch.func.jacfwd(torch.func.jacrev(layer))(a)[0, :, 0, :, 0]
    step, size = 1e-3, a.numel()
    shifts = step * torch.eye(size, dtype=a.dtype).reshape(size, *a.shape)

    def at(shift: Tensor) -> Tensor:
        return alone(a + shift, near).squeeze(0)

    # Fourth order: errors of step^4, and of rounding over step and over its square.
    first = torch.stack([(8 * (at(e) - at(-e)) - at(2 * e) + at(-2 * e)) / (12 * step) for e in shifts], -1)

    def mixed(e: Tensor, f: Tensor) -> Tensor:
        coarse, fine = (
            (at(k * (e + f)) - at(k * (e - f)) - at(k * (f - e)) + at(-k * (e + f))) / (2 * k * step) ** 2 for k in (2, 1)
        )
        return (4 * fine - coarse) / 3

    other = torch.stack([torch.stack([mixed(e, f) for f in shifts], -1) for e in shifts], -1)
    pairs = ((found, alone(a, near)), (jacobian, first), (second, other))
    return tuple((x - y).abs().max().item() for x, y in pairs)  # type: ignore[return-value]  # three of them


def check_compositions(quick: bool) -> None:
    worst = 0.0
    print(f"{'':44}answer  first derivative  second")
    for name, make in tqdm(list(compositions().items())[: 2 if quick else None], desc="compositions"):
        composition = make()
        figures = errors(composition, POINT)
        worst = max(worst, *figures)
        print(f"{name:44}{figures[0]:.0e}   {figures[1]:.0e}             {figures[2]:.0e}")
        a = POINT.clone().requires_grad_()
        torch.autograd.gradcheck(composition.layer, (a,))
        if not quick:
            torch.autograd.gradgradcheck(composition.layer, (a,), atol=1e-4, rtol=1e-3)
    claim = f"answers and derivatives are those of the problems solved alone to 1e-5 (largest error {worst:.0e})"
    require(claim, worst <= 1e-5, quick)


# Part two: the game.

GOODS, FEATURES, DAYS, NEW = 3, 2, 24, 100


class Seller(nn.Module):
    """``x (N, FEATURES) -> prices (N, GOODS)``: the buyers' problem, an exponential cone program, inside the seller's."""

    def __init__(self, B: Tensor, c0: Tensor, t: float):
        super().__init__()
        w, c = cp.Variable(GOODS + 1), cp.Parameter(GOODS)
        buying = cp.Problem(cp.Minimize(c @ w[:GOODS] - cp.sum(cp.entr(w))), [cp.sum(w) == 1])
        buyers = ddn.DeclarativeLayer(buying, [c], w)
        self.B, self.c0 = nn.Parameter(B.clone()), nn.Parameter(c0.clone())
        self.log_t = nn.Parameter(torch.tensor(math.log(t), dtype=torch.float64))
        self.sell = ddn.DeclarativeLayer(
            ddn.TorchProblem(
                (GOODS,),
                lambda u, c, t: -(u * buyers((c + u) / t)[..., :GOODS]).sum() + 0.25 * u.square().sum(),
                initial=lambda c, t: (2 * t).expand(GOODS),
                parameters=[(GOODS,), ()],
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        prices: Tensor = self.sell(x @ self.B.T + self.c0, self.log_t.exp())
        return prices


def game(seed: int, quick: bool) -> tuple[dict[str, float], list[float], Tensor, Tensor, Tensor]:
    """Figures, the losses, and for new days the prices, ours and the baseline's."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    truth = Seller(0.6 * normal(GOODS, FEATURES), 0.3 * normal(GOODS) - 1, 0.5)
    x, new = normal(DAYS, FEATURES), normal(NEW, FEATURES)
    with torch.no_grad():
        seen, unseen = truth(x), truth(new)
    model = Seller(torch.zeros(GOODS, FEATURES, dtype=torch.float64), -torch.ones(GOODS, dtype=torch.float64), 1.0)
    steps = {"max_iter": 3 if quick else 50, "tolerance_grad": 1e-12, "tolerance_change": 1e-16}
    optimiser = torch.optim.LBFGS(model.parameters(), line_search_fn="strong_wolfe", **steps)
    losses: list[float] = []
    with tqdm(desc=f"seed {seed}, evaluations") as progress:

        def evaluate() -> Tensor:
            optimiser.zero_grad()
            loss = (model(x) - seen).square().mean()
            loss.backward()
            losses.append(loss.item())
            progress.update()
            return loss

        optimiser.step(evaluate)
    ones = torch.ones(DAYS, 1, dtype=torch.float64)
    weights = torch.linalg.lstsq(torch.cat((x, ones), 1), seen).solution
    regressed = torch.cat((new, torch.ones(NEW, 1, dtype=torch.float64)), 1) @ weights
    with torch.no_grad():
        ours = model(new)
        figures = {
            "prices of new days, learnt game (rms)": (ours - unseen).square().mean().sqrt().item(),
            "prices of new days, least squares (rms)": (regressed - unseen).square().mean().sqrt().item(),
            "error of B, per cent": 100 * ((model.B - truth.B).norm() / truth.B.norm()).item(),
            "error of t, per cent": 100 * abs(math.expm1(model.log_t.item() - truth.log_t.item())),
        }
    return figures, losses, unseen, ours, regressed


def main() -> None:
    arguments = options(__doc__, "bilevel_composition")
    check_compositions(arguments.quick)
    curves: list[list[float]] = []
    prices: list[tuple[Tensor, Tensor, Tensor]] = []

    def run(seed: int) -> dict[str, float]:
        figures, losses, *rest = game(seed, arguments.quick)
        curves.append(losses)
        prices.append((rest[0], rest[1], rest[2]))
        return figures

    found = over_seeds(run, arguments.seeds)
    table(found)
    plot(curves, prices[0], arguments.plot)
    ours, baseline, B, t = (sum(values) / len(values) for values in found.values())
    claim = f"prices of new days: error {ours:.1e}, at most a tenth of that of least squares ({baseline:.1e})"
    require(claim, ours <= 0.1 * baseline, arguments.quick)
    require(f"B is found to {B:.2g} per cent and t to {t:.2g}, at most 2", max(B, t) <= 2, arguments.quick)


def plot(curves: list[list[float]], prices: tuple[Tensor, Tensor, Tensor], path: Path) -> None:
    plt = pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for seed, losses in enumerate(curves):
        left.semilogy(losses, label=f"seed {seed}")
    left.set(xlabel="evaluation", ylabel="mean squared error of prices", title="learning the game from 24 days")
    left.legend()
    left.grid(alpha=0.3)
    unseen, ours, regressed = (p.flatten() for p in prices)
    right.plot(unseen, regressed, ".", color="tab:orange", label="least squares")
    right.plot(unseen, ours, ".", color="tab:blue", label="learnt game")
    ends = [unseen.min(), unseen.max()]
    right.plot(ends, ends, color="0.5", lw=0.8)
    right.set(xlabel="price", ylabel="predicted price", title="new days (seed 0)")
    right.legend()
    right.grid(alpha=0.3)
    save(figure, path)


if __name__ == "__main__":
    main()
