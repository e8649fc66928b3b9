"""What discs weigh, how they rub and how they bounce, from films of their motion.

Three discs in a box fall, spin, and hit the floor, the walls and each other. From noisy positions in 12 films of 0.8 s, with
known starts, two masses (in units of the first), the friction and the restitution are inferred through the simulator, whose
every step solves for the contact forces, as by de Avila Belbute-Peres et al. (NeurIPS 2018): by Gauss and Newton's method,
on the first half of the films and then on all of them, with the derivative of all positions in one pass in forward mode.
Baseline: the simplex search of Nelder and Mead, without derivatives, with about as many simulations, of which a derivative
counts as one for each parameter. Fails if a parameter is off by more than 5 per cent for any seed.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.autograd.forward_ad as forward
from figure import options, pyplot, require, save, table
from scipy.optimize import minimize
from torch import Tensor
from tqdm import tqdm

from ddn_cvx.nodes import Discs

FILMS, FRAMES, STEPS, NOISE = 12, 40, 16, 0.002
TRUTH = {"mass of the second": 2.0, "mass of the third": 0.6, "friction": 0.25, "restitution": 0.7}
WORLD = {"discs": 3, "radius": 0.2, "width": 2.0, "step": 0.02}


def film(world: Discs, start: tuple[Tensor, Tensor], parameters: Tensor, frames: int = FRAMES) -> Tensor:
    """Positions ``(frames, *batch, FILMS, 3, 2)`` of the discs for ``parameters (*batch, 4)`` in the order of TRUTH."""
    batch = parameters.shape[:-1]
    at, v = (t.expand(*batch, *t.shape) for t in start)
    mass = torch.cat((torch.ones_like(parameters[..., :1]), parameters[..., :2]), -1).unsqueeze(-2)
    shown = []
    for _ in range(frames):
        at, v = world(at, v, mass, parameters[..., 2:3], parameters[..., 3:4])
        shown.append(at)
    return torch.stack(shown)


def scene(seed: int) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Positions and velocities at the start, and the first guess of the parameters, off by up to a half."""
    generator = torch.Generator().manual_seed(seed)
    middle = torch.tensor([[0.5, 0.6], [1.0, 1.1], [1.5, 0.6]])
    at = middle + 0.1 * (2 * torch.rand(FILMS, 3, 2, generator=generator) - 1)
    towards = torch.tensor([[1.5, -1.0, 0.0], [0.0, -2.0, 0.0], [-1.5, -1.0, 0.0]])
    v = towards + torch.randn(FILMS, 3, 3, generator=generator) * torch.tensor([1.0, 1.0, 8.0])
    guess = truth() * torch.exp((2 * torch.rand(4, generator=generator) - 1) * 0.4)
    return (at, v), guess


def truth() -> Tensor:
    return torch.tensor(list(TRUTH.values()))


def infer(seed: int, steps: int) -> tuple[list[Tensor], Tensor, tuple[Tensor, Tensor, Tensor]]:
    """The parameters relative to the truth after each step, those of the baseline, and one film: right, before, after."""
    world, (start, guess) = Discs(**WORLD), scene(seed)
    with torch.no_grad():
        right = film(world, start, truth())
        seen = right + NOISE * torch.randn(right.shape, generator=torch.Generator().manual_seed(100 + seed))
        before = film(world, start, guess)

    def misfit(shown: Tensor) -> Tensor:
        """``(frames, FILMS, 3)``; distances, not their squares: two films that part shall not outweigh the rest."""
        return (shown - seen[: len(shown)]).square().sum(-1).add(NOISE**2).sqrt()

    def linearised(logs: Tensor, frames: int) -> tuple[Tensor, Tensor, Tensor]:
        """Misfit, its gradient ``(4,)`` and the matrix ``(4, 4)`` of reweighted least squares; one copy for each tangent."""
        with torch.no_grad(), forward.dual_level():
            copies = forward.make_dual(logs.expand(4, 4).clone(), torch.eye(4))
            shown, J = forward.unpack_dual(film(world, start, copies.exp(), frames))
        r, J = shown[:, 0] - seen[:frames], J.movedim(1, 0)
        distance = misfit(shown[:, 0])
        weighted = (J / distance.unsqueeze(-1)).flatten(1)
        return distance.mean(), weighted @ r.flatten(), weighted @ J.flatten(1).mT

    logs, path, ridge = guess.log(), [guess / truth()], 1e-2
    for step in range(steps):
        frames = FRAMES // 2 if step < steps // 2 else FRAMES
        if step in (0, steps // 2):
            value, slope, H = linearised(logs, frames)
        damped = torch.linalg.cholesky(H + ridge * H.diagonal().diag())
        there = logs - torch.cholesky_solve(slope.unsqueeze(-1), damped).squeeze(-1).clamp(-0.3, 0.3)
        found = linearised(there, frames)
        if found[0] < value:
            logs, (value, slope, H), ridge = there, found, ridge / 5
        else:
            ridge *= 10
        path.append(logs.exp() / truth())

    def search(logs: np.ndarray) -> float:
        with torch.no_grad():
            return misfit(film(world, start, torch.from_numpy(logs).exp())).mean().item()

    simplex = minimize(search, guess.log().numpy(), method="Nelder-Mead", options={"maxfev": 4 * (steps + 2)})
    with torch.no_grad():
        after = film(world, start, logs.exp())
    return path, torch.from_numpy(np.exp(simplex.x)) / truth(), (right[:, 0], before[:, 0], after[:, 0])


def main() -> None:
    arguments = options(__doc__, "bouncing_discs")
    torch.set_default_dtype(torch.float64)
    steps = 2 if arguments.quick else STEPS
    paths, figures, shown = [], {}, None
    for seed in tqdm(range(arguments.seeds), desc="inferring"):
        path, searched, films = infer(seed, steps)
        paths.append(torch.stack(path))
        shown = shown or films
        for k, name in enumerate(TRUTH):
            for when, value in (("before", path[0]), ("after", path[-1]), ("by search", searched)):
                figures.setdefault(f"{name}, error {when}, per cent", []).append(100 * abs(value[k].item() - 1))
    print(f"from {FILMS} films of {FRAMES} frames")
    table(figures)
    assert shown is not None
    plot(paths, shown, arguments.plot)
    worst = max(max(values) for name, values in figures.items() if "after" in name)
    searched = max(max(values) for name, values in figures.items() if "search" in name)
    claim = f"all parameters to 5 per cent (the worst of all seeds: {worst:.2f}, by search {searched:.2f})"
    require(claim, worst <= 5, arguments.quick)


def plot(paths: list[Tensor], films: tuple[Tensor, Tensor, Tensor], path: Path) -> None:
    plt = pyplot()
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.8), width_ratios=(1, 1, 1.3), layout="constrained")
    for axis, guess, title in zip(axes, films[1:], ("before", "after"), strict=False):
        for disc in range(3):
            axis.plot(*films[0][:, disc].T, color="0.8", linewidth=5)
            axis.plot(*guess[:, disc].T, color=f"C{disc}")
            axis.add_patch(plt.Circle(films[0][0, disc], WORLD["radius"], color=f"C{disc}", alpha=0.3))
        axis.set(title=f"a film (grey) and the simulation {title}", aspect="equal", xlim=(0, 2), ylim=(0, 1.6))
        axis.set(xlabel="across, m", ylabel="up, m", xticks=(0, 0.5, 1, 1.5, 2))
    for k, name in enumerate(TRUTH):
        for seed, one in enumerate(paths):
            axes[2].plot(one[:, k], color=f"C{k}", label=name if seed == 0 else None)
    axes[2].axhspan(0.95, 1.05, color="0.85")
    axes[2].set(title="three seeds", xlabel="step of Gauss and Newton", ylabel="parameter / truth")
    axes[2].legend(fontsize=8)
    save(figure, path)


if __name__ == "__main__":
    main()
