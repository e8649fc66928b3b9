"""Imitation through a controller: the physics of a pendulum and of a cart-pole from an expert's actions alone.

The expert is a model-predictive controller that knows masses and lengths. Seen are the states that it was in, and the
first actions that it took (to 0.1 per cent of their limit). A learner with the same cost, but masses and lengths off by up
to half, fits them through the differentiable controller, as in Amos et al. (NeurIPS 2018); actions at their limits tell
nothing, and have no gradient. Baseline: a network that maps states to actions, from the same examples. Fails if a parameter
is off by more than 1 per cent, for any seed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from figure import options, pyplot, require, save, table
from torch import Tensor, nn
from tqdm import tqdm

from ddn_cvx.nodes import NonlinearMPC
from ddn_cvx.nodes.control import Model, cart_pole, pendulum, upright

EXAMPLES, UNSEEN, STEPS, NOISE = 160, 200, 20, 1e-3


@dataclass(frozen=True)
class System:
    """What is controlled: the spread of its initial states, its parameters and their names."""

    model: Model
    spread: tuple[float, ...]
    truth: tuple[float, ...]
    names: tuple[str, ...]
    limit: float
    horizon: int

    def controller(self) -> NonlinearMPC:
        cost = partial(upright, price=0.05 if self.model is pendulum else 0.005)
        return NonlinearMPC(self.model, cost, len(self.spread), 1, self.horizon, len(self.truth), self.limit)


SYSTEMS = {
    "pendulum": System(pendulum, (0.5, 1.0), (1.0, 0.6), ("mass", "length"), 4.0, 12),
    "cart-pole": System(
        cart_pole, (0.5, 0.5, 0.4, 1.0), (1.0, 0.3, 0.5), ("mass of the cart", "mass of the pole", "length"), 20.0, 12
    ),
}


def imitate(system: System, seed: int, steps: int) -> tuple[list[Tensor], float, float]:
    """The parameters relative to the truth after each step, and the errors on unseen states: controller, network."""
    generator = torch.Generator().manual_seed(seed)
    truth, controller = torch.tensor(system.truth), system.controller()
    states = torch.randn(EXAMPLES + UNSEEN, len(system.spread), generator=generator) * torch.tensor(system.spread)
    with torch.no_grad():
        actions = controller(states, truth)[0][:, 0] / system.limit
    seen, unseen = states[:EXAMPLES], states[EXAMPLES:]
    wanted = actions[:EXAMPLES] + NOISE * torch.randn(EXAMPLES, 1, generator=generator)
    guess = truth.log() + (torch.rand(len(truth), generator=generator) - 0.5) * 2 * torch.tensor(1.5).log()
    path, ridge = [guess.exp() / truth], 1e-3

    def residual(logs: Tensor) -> tuple[Tensor, Tensor]:
        """``(N,)`` and its Jacobian ``(N, k)``: one backward pass, for every example has its own copy of the parameters."""
        own = logs.expand(EXAMPLES, -1).clone().requires_grad_()
        found = controller(seen, own.exp())[0][:, 0, 0] / system.limit - wanted[:, 0]
        return found.detach(), torch.autograd.grad(found.sum(), own)[0]

    r, J = residual(guess)
    for _ in range(steps):  # Levenberg and Marquardt's method
        normal = J.mT @ J
        step = -torch.cholesky_solve(
            (J.mT @ r).unsqueeze(-1), torch.linalg.cholesky(normal + ridge * normal.diagonal().diag())
        )
        there = guess + step.squeeze(-1).clamp(-0.3, 0.3)
        new_r, new_J = residual(there)
        if new_r.square().sum() < r.square().sum():
            guess, r, J, ridge = there, new_r, new_J, ridge / 5
        else:
            ridge *= 5
        path.append(guess.exp() / truth)
    with torch.no_grad():
        ours = (controller(unseen, guess.exp())[0][:, 0] / system.limit - actions[EXAMPLES:]).square().mean().sqrt()
    return path, ours.item(), network(system, seen, wanted, unseen, actions[EXAMPLES:], seed, 60 * steps)


def network(system: System, x: Tensor, y: Tensor, unseen: Tensor, right: Tensor, seed: int, steps: int) -> float:
    """Root mean squared error on unseen states of a network that was shown the same actions."""
    torch.manual_seed(seed)
    scale = torch.tensor(system.spread)
    model = nn.Sequential(
        nn.Linear(len(scale), 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1), nn.Hardtanh()
    )
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3, weight_decay=1e-4)
    for _ in range(steps):
        loss = (model(x / scale) - y).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        return (model(unseen / scale) - right).square().mean().sqrt().item()


def main() -> None:
    arguments = options(__doc__, "model_predictive_control")
    torch.set_default_dtype(torch.float64)
    steps = 2 if arguments.quick else STEPS
    paths: dict[str, list[Tensor]] = {name: [] for name in SYSTEMS}
    figures: dict[str, list[float]] = {}
    for name, seed in tqdm([(n, s) for s in range(arguments.seeds) for n in SYSTEMS], desc="imitating"):
        path, ours, theirs = imitate(SYSTEMS[name], seed, steps)
        paths[name].append(torch.stack(path))
        for k, parameter in enumerate(SYSTEMS[name].names):
            figures.setdefault(f"{name}: {parameter}, error before, per cent", []).append(100 * abs(path[0][k].item() - 1))
            figures.setdefault(f"{name}: {parameter}, error after, per cent", []).append(100 * abs(path[-1][k].item() - 1))
        figures.setdefault(f"{name}: error of unseen actions, learnt controller", []).append(ours)
        figures.setdefault(f"{name}: error of unseen actions, network", []).append(theirs)
    print(f"from {EXAMPLES} actions; errors of actions are root mean squares in units of their limit")
    table(figures)
    plot(paths, figures, arguments.plot)
    worst = max(max(values) for name, values in figures.items() if "error after" in name)
    require(f"all parameters to 1 per cent (the worst of all seeds: {worst:.2f})", worst <= 1, arguments.quick)


def plot(paths: dict[str, list[Tensor]], figures: dict[str, list[float]], path: Path) -> None:
    plt = pyplot()
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.6), layout="constrained")
    for axis, (name, system) in zip(axes, SYSTEMS.items(), strict=False):
        for k, parameter in enumerate(system.names):
            for seed, one in enumerate(paths[name]):
                axis.plot(one[:, k], color=f"C{k}", label=parameter if seed == 0 else None)
        axis.axhspan(0.99, 1.01, color="0.85")
        axis.set(title=name, xlabel="step of Levenberg-Marquardt", ylabel="parameter / truth")
        axis.legend(loc="lower right")
    for row, who in enumerate(("learnt controller", "network")):
        for at, name in enumerate(SYSTEMS):
            values = figures[f"{name}: error of unseen actions, {who}"]
            axes[2].plot(
                [at + 0.1 * (2 * row - 1)] * len(values), values, "os"[row], color=f"C{row}", label=None if at else who
            )
    axes[2].set(yscale="log", title="unseen actions", ylabel="error / limit", xlim=(-0.5, 1.5))
    axes[2].set_xticks(range(len(SYSTEMS)), SYSTEMS)
    axes[2].legend()
    save(figure, path)


if __name__ == "__main__":
    main()
