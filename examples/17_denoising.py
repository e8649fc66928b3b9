"""A random field learns to denoise pictures.

Pictures of scikit-image, at half size and in grey, get Gaussian noise (standard deviation 25 of 255). The baseline is total
variation with the one weight that is best on the very test pictures (Chambolle's method in scikit-image). Samuel &
Tappen (CVPR 2009) minimise ``1/2 |u - x|^2 + sum_k w_k sum_c log(1 + (f_k * u)_c^2)`` and learn the filters f_k of 3 x 3
pixels and the weights w_k from other pictures, by the squared error of the minimiser alone. Fails if the learned field
is not 1 dB better than total variation, in the mean over test pictures and seeds.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from figure import options, require, table
from skimage import color, data
from skimage.restoration import denoise_tv_chambolle
from torch import Tensor
from tqdm import tqdm

from ddn_cvx.nodes import FieldOfExperts

TRAIN = ("coffee", "chelsea", "rocket", "brick", "gravel", "moon")
TEST = ("camera", "coins", "astronaut", "grass")
NOISE, SIDE, PATCH, BATCH, STEPS, EVERY = 25 / 255, 96, 36, 4, 110, 22


def picture(name: str) -> Tensor:
    """In grey and at half size, between 0 and 1, ``(h, w)``."""
    whole = getattr(data, name)() / 255.0
    grey = color.rgb2gray(whole[..., :3]) if whole.ndim == 3 else whole
    h, w = (side // 2 for side in grey.shape)
    return torch.from_numpy(grey[: 2 * h, : 2 * w].reshape(h, 2, w, 2).mean((1, 3)))


def cut(whole: Tensor, side: int, generator: torch.Generator | None = None) -> Tensor:
    """A square of the picture: in the middle, or anywhere if there is a generator."""
    rooms = [n - side for n in whole.shape]
    i, j = (r // 2 if generator is None else int(torch.randint(r + 1, (), generator=generator)) for r in rooms)
    return whole[i : i + side, j : j + side]


def quality(found: Tensor, clean: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in decibels, ``(B,)``."""
    return -10 * (found - clean).square().mean((1, 2)).log10()


def best_total_variation(noisy: Tensor, clean: Tensor) -> Tensor:
    """Denoised by total variation with the best of many weights."""
    tried = [
        torch.stack([torch.from_numpy(denoise_tv_chambolle(x, weight=w, eps=1e-5, max_num_iter=500)) for x in noisy.numpy()])
        for w in np.linspace(0.04, 0.16, 13)
    ]
    return max(tried, key=lambda found: float(quality(found, clean).mean()))


def cosines(size: int) -> Tensor:
    """Two-dimensional cosines but for the constant, ``(size^2 - 1, size, size)``, of length one."""
    at = torch.arange(size) + 0.5
    waves = torch.stack([torch.cos(math.pi * at * k / size) for k in range(size)])
    waves = waves / waves.norm(dim=1, keepdim=True)
    return torch.einsum("ai,bj->abij", waves, waves).flatten(0, 1)[1:]


def train(node: FieldOfExperts, steps: int, test: tuple[Tensor, Tensor], generator: torch.Generator) -> list[float]:
    """The quality on the test pictures during the training."""
    pictures = [picture(name) for name in TRAIN]
    energy = node.energy
    energy.filters.data = 20.0 * cosines(3)
    energy.log_weights.data.fill_(math.log(2 * NOISE**2 / len(energy.log_weights)))
    groups = [{"params": [energy.filters], "lr": 0.5}, {"params": [energy.log_weights], "lr": 0.1}]
    optimiser = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    clean, noisy = test
    shown = []
    for step in range(steps):
        if step % EVERY == 0:
            with torch.no_grad():
                shown.append(float(quality(node(noisy), clean).mean()))
        which = torch.randint(len(pictures), (BATCH,), generator=generator).tolist()
        right = torch.stack([cut(pictures[k], PATCH, generator) for k in which])
        given = right + NOISE * torch.randn(right.shape, generator=generator, dtype=right.dtype)
        loss = 100 * (node(given) - right).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return shown


def main() -> None:
    arguments = options(__doc__, "denoising")
    steps = 5 if arguments.quick else STEPS
    clean = torch.stack([cut(picture(name), SIDE) for name in TEST])
    figures: dict[str, list[float]] = {"noisy": [], "best total variation": [], "learned field": []}
    gains: dict[str, list[float]] = {name: [] for name in TEST}
    curves = []
    for seed in tqdm(range(arguments.seeds), desc="seeds"):
        generator = torch.Generator().manual_seed(seed)
        noisy = clean + NOISE * torch.randn(clean.shape, generator=generator, dtype=clean.dtype)
        node = FieldOfExperts(8, 3, tolerance=1e-5)
        shown = train(node, steps, (clean, noisy), generator)
        with torch.no_grad():
            found = {
                "noisy": noisy,
                "best total variation": best_total_variation(noisy, clean),
                "learned field": node(noisy),
            }
        for name, denoised in found.items():
            figures[name].append(float(quality(denoised, clean).mean()))
        gain = quality(found["learned field"], clean) - quality(found["best total variation"], clean)
        for name, value in zip(TEST, gain.tolist(), strict=True):
            gains[name].append(value)
        curves.append([*shown, figures["learned field"][-1]])
    print(f"peak signal-to-noise ratio, dB, mean of {len(TEST)} unseen pictures")
    table(figures)
    print("gain over total variation by picture, dB")
    table(gains)
    plot(curves, figures["best total variation"], {"clean": clean, **found}, arguments.plot)
    mean = sum(map(sum, gains.values())) / (len(TEST) * arguments.seeds)
    require(f"the learned field is 1 dB better than total variation ({mean:.2f} dB)", mean >= 1, arguments.quick)


def plot(curves: list[list[float]], baseline: list[float], shown: dict[str, Tensor], path: object) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 3, figsize=(11, 7), layout="constrained")
    axes[0, 2].axhline(sum(baseline) / len(baseline), color="tab:orange", label="best total variation")
    for k, curve in enumerate(curves):
        done = torch.linspace(0, 100, len(curve)).tolist()
        axes[0, 2].plot(done, curve, color="tab:blue", label="learned field (lines: seeds)" if k == 0 else None)
    axes[0, 2].set(xlabel="training done, per cent", ylabel="PSNR on unseen pictures, dB")
    axes[0, 2].legend()
    places = (axes[0, 0], axes[0, 1], axes[1, 0], axes[1, 1])
    for place, (name, pictures) in zip(places, shown.items(), strict=True):
        value = quality(pictures[:1], shown["clean"][:1])
        place.imshow(pictures[0].clamp(0, 1), cmap="gray", vmin=0, vmax=1)
        place.set_title(name if name == "clean" else f"{name}, {float(value):.2f} dB")
        place.axis("off")
    error = shown["learned field"][0] - shown["clean"][0]
    axes[1, 2].imshow(error, cmap="coolwarm", vmin=-0.3, vmax=0.3)
    axes[1, 2].set_title("error of the learned field")
    axes[1, 2].axis("off")
    figure.savefig(path, dpi=90)
    plt.close(figure)


if __name__ == "__main__":
    main()
