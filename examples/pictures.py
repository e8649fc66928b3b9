"""Pictures: handwritten digits, folders of pictures, corrupted pixels, and a small residual network."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.utils.data import Dataset
from training import FolderError, folders_of

ENDINGS = (".png", ".jpg", ".jpeg")


class Residual(nn.Module):
    """``x + f(x)``, with two convolutions."""

    def __init__(self, channels: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.body(x))


def trunk(channels: int, widths: tuple[int, ...]) -> nn.Sequential:
    """Pictures ``(B, channels, h, w)`` -> features ``(B, widths[-1], h', w')``, halved from each width to the next."""
    layers = [
        nn.Conv2d(channels, widths[0], 3, padding=1, bias=False),
        nn.BatchNorm2d(widths[0]),
        nn.ReLU(),
        Residual(widths[0]),
    ]
    for m, n in pairwise(widths):
        layers += [nn.Conv2d(m, n, 3, stride=2, padding=1), nn.BatchNorm2d(n), nn.ReLU(), Residual(n)]
    return nn.Sequential(*layers)


def digits() -> tuple[Tensor, Tensor]:
    """The pictures ``(1797, 1, 8, 8)`` of scikit-learn with values from 0 to 1, and their labels."""
    from sklearn.datasets import load_digits

    x, labels = load_digits(return_X_y=True)
    return torch.tensor(x, dtype=torch.float32).view(-1, 1, 8, 8) / 16, torch.tensor(labels)


def corrupted(x: Tensor, rate: float, generator: torch.Generator) -> Tensor:
    """``x (B, c, h, w)``, each pixel replaced with probability ``rate`` by uniform random values from 0 to 1."""
    out = torch.rand(len(x), 1, *x.shape[2:], generator=generator) < rate
    return torch.where(out.to(x.device), torch.rand(x.shape, generator=generator).to(x), x)


# ---------------------------------------------------------------- folders


class Pictures(Dataset[tuple[Tensor, int]]):
    """The pictures of one part of a folder: ``(3, size, size)`` with values from 0 to 1, and the number of the class.

    Pictures are read when they are asked for. The largest square in the middle is taken; with ``vary``, for training, any
    square of at least half that side, mirrored half of the time.
    """

    def __init__(self, files: list[tuple[Path, int]], size: int, vary: bool):
        self.files, self.size, self.vary = files, size, vary

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.files[index]
        try:
            with Image.open(path) as file:
                picture = file.convert("RGB")
        except OSError as error:
            raise FolderError(f"{path} is no picture that can be read: {error}.") from error
        across, down, share, mirror = torch.rand(4).tolist() if self.vary else (0.5, 0.5, 1.0, 1.0)
        side = (1 + share) / 2 * min(picture.size)
        left, top = across * (picture.width - side), down * (picture.height - side)
        picture = picture.resize((self.size, self.size), Image.Resampling.BILINEAR, (left, top, left + side, top + side))
        values = np.array(ImageOps.mirror(picture) if mirror < 0.5 else picture)
        return torch.from_numpy(values).permute(2, 0, 1).float() / 255, label


def picture_folder(root: Path, size: int) -> tuple[list[str], Pictures, Pictures]:
    """Classes, training and test pictures of a folder laid out like ImageNet: ``root/{train,val}/class/*.png`` or ``.jpg``.

    Raises
    ------
    FolderError
        The folder is laid out differently.
    """
    layout = f"{root} must be laid out like ImageNet, as train/CLASS/*.png and val/CLASS/*.png (or .jpg, .jpeg)"
    if not root.is_dir():
        raise FolderError(f"{layout}: there is no such folder.")
    classes = folders_of(root / "train", layout)

    def files(part: str) -> list[tuple[Path, int]]:
        found = []
        for k, name in enumerate(classes):
            folder = root / part / name
            here = sorted(path for path in folder.glob("*") if path.suffix.lower() in ENDINGS)
            if not here:
                raise FolderError(f"{layout}: there is no picture in {part}/{name}.")
            found += [(path, k) for path in here]
        return found

    return classes, Pictures(files("train"), size, vary=True), Pictures(files("val"), size, vary=False)
