"""The demo: total-variation denoising whose weights are predicted by a small network, trained through the optimisation
problem.

A noisy piecewise-constant signal x goes in; ``y = argmin 1/2 |y - x|^2 + sum_i w_i |y_{i+1} - y_i|`` comes out. One
weight for all positions is the classical method (Rudin, Osher & Fatemi, 1992); here a network looks at the signal and
says where jumps are likely, and learns to from the error of the denoised signal alone, whose gradient flows through the
layer.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import cast

import cvxpy as cp
import torch
from torch import Tensor, nn
from tqdm import trange

from ddn_cvx.layer import DeclarativeLayer

LENGTH, NOISE = 32, 0.3


def denoising_layer(length: int) -> DeclarativeLayer:
    """``(signal (*batch, length), weights (*batch, length - 1)) -> denoised (*batch, length)``."""
    y = cp.Variable(length)
    signal, weights = cp.Parameter(length, name="signal"), cp.Parameter(length - 1, nonneg=True, name="weights")
    objective = 0.5 * cp.sum_squares(y - signal) + weights @ cp.abs(cp.diff(y))
    return DeclarativeLayer(cp.Problem(cp.Minimize(objective)), [signal, weights], y)


class Denoiser(nn.Module):
    """A network that predicts the weights, followed by the denoising problem."""

    def __init__(self, length: int):
        super().__init__()
        last = nn.Conv1d(32, 1, 1)
        nn.init.constant_(cast(Tensor, last.bias), -1.0)  # start with too little smoothing
        self.weights = nn.Sequential(
            nn.Conv1d(1, 32, 6, padding=2), nn.ReLU(), nn.Conv1d(32, 32, 5, padding=2), nn.ReLU(), last
        )
        self.denoise = denoising_layer(length)

    def forward(self, signal: Tensor) -> Tensor:
        """``(batch, length) -> (batch, length)``."""
        weights = nn.functional.softplus(self.weights(signal.unsqueeze(1)).squeeze(1))
        out: Tensor = self.denoise(signal, weights)
        return out


def sample(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """``count`` piecewise-constant signals and their noisy versions, ``(count, LENGTH)`` each."""
    jump = torch.rand(count, LENGTH, generator=generator) < 0.1
    level = 3.0 * torch.randn(count, LENGTH, generator=generator) * jump
    clean = level.cumsum(1) + torch.randn(count, 1, generator=generator)
    return clean, clean + NOISE * torch.randn(count, LENGTH, generator=generator)


def best_constant(clean: Tensor, noisy: Tensor) -> tuple[float, Tensor]:
    """The classical method at its best: the one weight with the smallest error on these very signals."""
    layer = denoising_layer(LENGTH)
    errors = []
    for weight in torch.linspace(0.05, 1.5, 30):
        with torch.no_grad():
            denoised = layer(noisy, torch.full((LENGTH - 1,), float(weight)))
        errors.append((float(nn.functional.mse_loss(denoised, clean)), denoised))
    return min(errors, key=lambda pair: pair[0])


def run(steps: int, seed: int, plot: Path) -> None:
    """Train, print the loss before and after beside the classical method's, and save a plot."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = Denoiser(LENGTH)
    clean_test, noisy_test = sample(128, generator)

    def test_loss() -> float:
        with torch.no_grad():
            return float(nn.functional.mse_loss(model(noisy_test), clean_test))

    start, before = time.perf_counter(), test_loss()
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses: list[float] = []
    with trange(steps, desc="training", unit="step") as progress:
        for _ in progress:
            clean, noisy = sample(32, generator)
            loss = nn.functional.mse_loss(model(noisy), clean)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
            progress.set_postfix(loss=f"{losses[-1]:.4f}")
    after = test_loss()
    constant, denoised = best_constant(clean_test, noisy_test)
    print(f"test error of the noisy signals      {NOISE**2:.4f}")
    print(f"test error before training           {before:.4f}")
    print(f"test error after training            {after:.4f}")
    print(f"best single weight (no learning)     {constant:.4f}")
    print(f"{steps} training steps in {time.perf_counter() - start:.1f} s")
    with torch.no_grad():
        learned = model(noisy_test[:1])[0]
    _plot(plot, losses, constant, clean_test[0], noisy_test[0], denoised[0], learned)
    print(f"plot saved to {plot}")
    if steps >= 100 and not after < before:
        raise SystemExit("the loss did not fall: something is wrong with this installation")


def _plot(
    path: Path, losses: list[float], constant: float, clean: Tensor, noisy: Tensor, classical: Tensor, learned: Tensor
) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    left.plot(losses, color="tab:blue", label="learned weights (training batches)")
    left.axhline(constant, color="tab:orange", linestyle="--", label="best single weight (test)")
    left.set(xlabel="step", ylabel="mean squared error", title="training through the optimisation problem", ylim=(0, None))
    left.legend()
    right.plot(noisy, ".", color="0.6", label="noisy")
    right.step(range(len(clean)), clean, where="mid", color="black", label="clean")
    right.step(range(len(clean)), classical, where="mid", color="tab:orange", label="single weight")
    right.step(range(len(clean)), learned, where="mid", color="tab:blue", label="learned weights")
    right.set(xlabel="position", title="one test signal")
    right.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)
