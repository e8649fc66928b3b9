"""Total-variation denoising, learned end to end.

Noisy piecewise-constant signals x are denoised by ``y = argmin 1/2 |u - x|^2 + sum_i w_i |u_{i+1} - u_i|``. The classical
method (Rudin, Osher & Fatemi, 1992) has one weight for all places: here it gets the one that is best on the very test
signals. Section 4.2 of Amos & Kolter (ICML 2017) learns the program from examples: a network of three convolutions looks
at the signal and says what a jump costs where, and is trained by the error of the denoised signal alone, through the
program. Beside it the same network answers without a program. Fails if learning does not lower the mean squared error
of the classical method by 20 %, in the mean over seeds.
"""

from __future__ import annotations

from pathlib import Path

import torch
from figure import options, pyplot, require, save, table
from torch import Tensor, nn
from tqdm import tqdm

from ddn_cvx.nodes import TotalVariation

LENGTH, NOISE, STEPS, BATCH, TEST = 32, 0.3, 400, 32, 400
METHODS = ("noisy", "best single weight", "network alone", "learned weights")


class Convolutions(nn.Sequential):
    """Signals (B, LENGTH) -> one number for every place or every gap, (B, LENGTH) or (B, LENGTH - 1)."""

    def __init__(self, width: int) -> None:
        super().__init__(
            nn.Unflatten(1, (1, LENGTH)), nn.Conv1d(1, 32, width, padding=2), nn.ReLU(),
            nn.Conv1d(32, 32, 5, padding=2), nn.ReLU(), nn.Conv1d(32, 1, 1), nn.Flatten(),
        )  # fmt: skip


class LearnedWeights(nn.Module):
    """Noisy signals (B, LENGTH) -> denoised ones, through the program."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = Convolutions(6)  # an even width, for the gaps
        self.denoise = TotalVariation(LENGTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.denoise(x, nn.functional.softplus(self.weights(x) - 1))


class NetworkAlone(nn.Module):
    """Noisy signals (B, LENGTH) -> denoised ones: the network predicts the noise."""

    def __init__(self) -> None:
        super().__init__()
        self.noise = Convolutions(5)

    def forward(self, x: Tensor) -> Tensor:
        return x - self.noise(x)


def signals(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Piecewise-constant signals, a jump at every tenth place, and their noisy versions, ``(count, LENGTH)`` each."""
    jump = torch.rand(count, LENGTH, generator=generator) < 0.1
    level = 3.0 * torch.randn(count, LENGTH, generator=generator) * jump
    clean = level.cumsum(1) + torch.randn(count, 1, generator=generator)
    return clean, clean + NOISE * torch.randn(count, LENGTH, generator=generator)


def best_single_weight(clean: Tensor, noisy: Tensor) -> Tensor:
    """The denoised signals for the one weight with the smallest error on them."""
    layer = TotalVariation(LENGTH)
    with torch.no_grad():
        tried = [layer(noisy, torch.full((LENGTH - 1,), 0.05 * k)) for k in range(1, 31)]
    return min(tried, key=lambda y: nn.functional.mse_loss(y, clean).item())


def train(model: nn.Module, steps: int, generator: torch.Generator) -> nn.Module:
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        clean, noisy = signals(BATCH, generator)
        loss = nn.functional.mse_loss(model(noisy), clean)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return model


def main() -> None:
    arguments = options(__doc__, "optnet_denoising")
    steps = 20 if arguments.quick else STEPS
    errors: dict[str, list[float]] = {name: [] for name in METHODS}
    for seed in tqdm(range(arguments.seeds), desc="seeds"):
        clean, noisy = signals(TEST, torch.Generator().manual_seed(1000 + seed))
        denoised = {"noisy": noisy, "best single weight": best_single_weight(clean, noisy)}
        for name, build in (("network alone", NetworkAlone), ("learned weights", LearnedWeights)):
            torch.manual_seed(seed)
            model = train(build(), steps, torch.Generator().manual_seed(seed))
            with torch.no_grad():
                denoised[name] = model(noisy)
        for name in METHODS:
            errors[name].append(nn.functional.mse_loss(denoised[name], clean).item())
        if seed == 0:
            shown = (clean, noisy, denoised)
    print(f"mean squared error on {TEST} unseen signals")
    table(errors)
    gain = [100 * (1 - a / b) for a, b in zip(errors["learned weights"], errors["best single weight"], strict=True)]
    table({"error lowered by, %": gain})
    plot(errors, *shown, arguments.plot)
    mean = sum(gain) / len(gain)
    claim = f"learned weights lower the error of the best single weight by 20 % ({mean:.0f})"
    require(claim, mean >= 20, arguments.quick)


def plot(errors: dict[str, list[float]], clean: Tensor, noisy: Tensor, denoised: dict[str, Tensor], path: Path) -> None:
    plt = pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained", width_ratios=(1, 1.5))
    colours = dict(zip(METHODS[1:], ("tab:orange", "tab:green", "tab:blue"), strict=True))
    for row, (name, colour) in enumerate(colours.items()):
        values = errors[name]
        left.bar(row, sum(values) / len(values), color=colour)
        left.plot([row] * len(values), values, ".", color="black")
    left.set_xticks(range(3), ["best single\nweight", "network\nalone", "learned\nweights"])
    left.set(ylabel="mean squared error (dots: seeds)", title=f"unseen signals (as they come: {NOISE**2:.2f})")
    chosen = ((clean.diff(dim=1).abs() > 0.5).sum(1) == 4).byte().argmax()  # the first signal with four jumps to see
    places = range(LENGTH)
    right.plot(noisy[chosen], ".", color="0.6", label="noisy")
    right.step(places, clean[chosen], where="mid", color="black", label="clean")
    for name in ("best single weight", "learned weights"):
        right.step(places, denoised[name][chosen], where="mid", color=colours[name], label=name)
    right.set(xlabel="place", ylabel="value", title="an unseen signal")
    right.legend()
    save(figure, path)


if __name__ == "__main__":
    main()
