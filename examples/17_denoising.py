"""A random field learns to denoise pictures.

The grey pictures of scikit-image that show textures and things get Gaussian noise (standard deviation 25 of 255). Samuel &
Tappen (CVPR 2009) minimise ``1/2 |u - x|^2 + sum_k w_k sum_c log(1 + (f_k * u)_c^2)`` and learn the filters f_k, here 24
of 5 x 5 pixels, and their weights w_k by the squared error of the minimiser. They start from cosines and are learned by
L-BFGS from patches of the left halves of the pictures. The right halves are the test: their corners, for settings were
chosen by their middles. The baseline is total variation with the one weight that is best on the very test pictures
(Chambolle's method in scikit-image). As windows near the border are few, a margin is left out of every error. Fails if the
learned field is not 1 dB better than total variation, in the mean over pictures and seeds. How much of that remains on
pictures of which no part was seen is printed, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from figure import options, pyplot, require, save, table
from scipy.optimize import fmin_l_bfgs_b
from skimage import color, data
from skimage.restoration import denoise_tv_chambolle
from torch import Tensor, nn
from tqdm import tqdm

from ddn_cvx.nodes import FieldOfExperts

PICTURES, OTHERS = ("brick", "camera", "coins", "grass", "gravel"), ("astronaut", "chelsea", "coffee")
NOISE, CORNER, PATCH, MARGIN, TRIALS, SIZE, SCALE = 25 / 255, 86, 80, 5, 16, 5, 20.0


def picture(name: str) -> Tensor:
    """In grey, between 0 and 1, ``(h, w)``."""
    whole = getattr(data, name)() / 255.0
    return torch.from_numpy(color.rgb2gray(whole) if whole.ndim == 3 else whole)


def patch(whole: Tensor, generator: torch.Generator) -> Tensor:
    """A square anywhere in the picture."""
    i, j = (int(torch.randint(n - PATCH + 1, (), generator=generator)) for n in whole.shape)
    return whole[i : i + PATCH, j : j + PATCH]


def corners(whole: Tensor) -> Tensor:
    """The squares in the four corners of the picture, ``(4, CORNER, CORNER)``."""
    ends = slice(CORNER), slice(-CORNER, None)
    return torch.stack([whole[i, j] for i in ends for j in ends])


def inside(pictures: Tensor) -> Tensor:
    """Without the margin."""
    return pictures[:, MARGIN:-MARGIN, MARGIN:-MARGIN]


def with_noise(clean: Tensor, generator: torch.Generator) -> Tensor:
    return clean + NOISE * torch.randn(clean.shape, generator=generator, dtype=clean.dtype)


def quality(found: Tensor, clean: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in decibels, ``(B,)``."""
    return -10 * inside(found - clean).square().mean((1, 2)).log10()


def best_total_variation(noisy: Tensor, clean: Tensor) -> Tensor:
    """Denoised by total variation with the weight that is best for them."""
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


def learn(clean: Tensor, noisy: Tensor, trials: int, show: Callable[[], object]) -> FieldOfExperts:
    """A field that makes clean pictures of noisy ones; ``show`` is called at each trial."""
    node = FieldOfExperts(SIZE**2 - 1, SIZE, tolerance=1e-4).double()
    energy = node.energy
    count = len(energy.filters)
    best = math.inf, np.concatenate((cosines(SIZE).flatten().numpy(), np.full(count, math.log(NOISE**2 / count))))

    def put(vector: np.ndarray) -> None:
        values = torch.from_numpy(vector)
        energy.filters.data = SCALE * values[:-count].view_as(energy.filters)
        energy.log_weights.data = values[-count:]

    def error(vector: np.ndarray) -> tuple[float, np.ndarray]:
        nonlocal best
        put(vector)
        loss = 1000 * inside(node(noisy) - clean).square().mean()
        slopes = torch.autograd.grad(loss, (energy.filters, energy.log_weights))
        best = min(best, (loss.item(), vector.copy()), key=lambda tried: tried[0])
        show()
        return loss.item(), torch.cat((SCALE * slopes[0].flatten(), slopes[1])).numpy()

    fmin_l_bfgs_b(error, best[1], maxfun=trials, m=trials)
    put(best[1])
    return node


def main() -> None:
    arguments = options(__doc__, "denoising")
    trials = 2 if arguments.quick else TRIALS
    halves = [picture(name).chunk(2, 1) for name in PICTURES]
    clean = torch.cat([corners(right) for _, right in halves])
    other = torch.cat([corners(picture(name)) for name in OTHERS])
    figures: dict[str, list[float]] = {}
    gains: dict[str, list[float]] = {}
    bar = tqdm(total=arguments.seeds * trials, desc="trials", disable=None)
    for seed in range(arguments.seeds):
        generator = torch.Generator().manual_seed(seed)
        patches = torch.stack([patch(left, generator) for left, _ in halves])
        node = learn(patches, with_noise(patches, generator), trials, bar.update)
        for names, right in ((PICTURES, clean), (OTHERS, other)):
            noisy = with_noise(right, generator)
            with torch.no_grad():
                found = {
                    "noisy": noisy,
                    "best total variation": best_total_variation(noisy, right),
                    "learned field": node(noisy),
                }
            quality_of = {name: quality(denoised, right) for name, denoised in found.items()}
            gain = quality_of["learned field"] - quality_of["best total variation"]
            for name, value in zip(names, gain.view(-1, 4).mean(1).tolist(), strict=True):
                gains.setdefault(name, []).append(value)
            if names is PICTURES:
                shown = {"clean": clean, **found}
                for name, values in quality_of.items():
                    figures.setdefault(name, []).append(float(values.mean()))
            else:
                figures.setdefault("gain on pictures never seen", []).append(float(gain.mean()))
    bar.close()
    print(f"peak signal-to-noise ratio, dB, mean of the corners of {len(PICTURES)} unseen halves")
    unseen = figures.pop("gain on pictures never seen")
    table(figures)
    print("gain over total variation, dB, by picture, and on average over those never seen")
    table({**gains, "never seen": unseen})
    plot(shown, node, arguments.plot)
    mean = sum(sum(gains[name]) for name in PICTURES) / (len(PICTURES) * arguments.seeds)
    require(f"the learned field is 1 dB better than total variation ({mean:.2f} dB)", mean >= 1, arguments.quick)


def plot(shown: dict[str, Tensor], node: FieldOfExperts, path: Path) -> None:
    plt = pyplot()
    figure, axes = plt.subplots(3, 4, figsize=(11, 9), layout="constrained")
    for row, k in zip(axes, (4, 0), strict=False):
        for place, (name, pictures) in zip(row, shown.items(), strict=True):
            value = quality(pictures[k : k + 1], shown["clean"][k : k + 1])
            place.imshow(inside(pictures)[k].clamp(0, 1), cmap="gray", vmin=0, vmax=1)
            place.set_title(name if name == "clean" else f"{name}, {float(value):.2f} dB")
            place.axis("off")
    for place in axes[2]:
        place.remove()
    below = figure.add_subplot(axes[2, 0].get_gridspec()[2, :])
    filters = node.energy.filters.detach()
    filters = filters - filters.mean((1, 2), keepdim=True)
    importance = node.energy.log_weights.detach().exp() * filters.square().sum((1, 2))
    tiles = [
        nn.functional.pad(f / f.abs().max(), (1, 1, 1, 1), value=math.nan)
        for f in filters[importance.argsort(descending=True)]
    ]
    rows = [torch.cat(tiles[k : k + 12], 1) for k in (0, 12)]
    below.imshow(torch.cat(rows), cmap="coolwarm", vmin=-1, vmax=1)
    below.set_title("learned filters, those that matter most first")
    below.axis("off")
    save(figure, path, dpi=90)


if __name__ == "__main__":
    main()
