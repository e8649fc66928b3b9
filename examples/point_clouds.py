"""Point clouds: six synthetic shapes, meshes in folders, outliers, and a small PointNet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm
from training import FolderError, folders_of

SHAPES = ("sphere", "cube", "cylinder", "cone", "torus", "helix")


class PointNet(nn.Module):
    """Clouds ``(B, N, 3)`` -> logits ``(B, classes)``: a network for each point, one pooling, a classifier.

    As in the paper the features are normalised, not rectified, before they are pooled: alpha is in units of their spread.
    """

    def __init__(self, pool: nn.Module, classes: int, each: Sequence[int] = (48, 48, 16), after: Sequence[int] = (48,)):
        super().__init__()
        layers: list[nn.Module] = []
        for m, n in pairwise((3, *each)):
            layers += [nn.Conv1d(m, n, 1), nn.BatchNorm1d(n), nn.ReLU()]
        self.each, self.pool = nn.Sequential(*layers[:-1]), pool
        layers = []
        for m, n in pairwise((each[-1], *after)):
            layers += [nn.Linear(m, n), nn.BatchNorm1d(n), nn.ReLU()]
        self.classify = nn.Sequential(nn.BatchNorm1d(each[-1]), *layers, nn.Linear(after[-1], classes))

    def forward(self, clouds: Tensor) -> Tensor:
        return self.classify(self.pool(self.each(clouds.transpose(-1, -2))))


def surface(shape: str, u: Tensor, v: Tensor) -> Tensor:
    """Points on a shape inside the unit box from two uniform numbers each, ``(..., 3)``."""
    turn = 2 * math.pi * u
    if shape == "sphere":
        z = 2 * v - 1
        r = (1 - z * z).sqrt()
        return 0.9 * torch.stack((r * turn.cos(), r * turn.sin(), z), -1)
    if shape == "cube":
        side = (6 * u).floor().clamp(max=5)
        a, b, c = 2 * (6 * u - side) - 1, 2 * v - 1, 2 * (side % 2) - 1
        faces = (torch.stack(p, -1) for p in ((a, b, c), (b, c, a), (c, a, b)))
        which = (side // 2).unsqueeze(-1)
        return 0.65 * sum((which == k) * face for k, face in enumerate(faces))
    if shape == "cylinder":
        return torch.stack((0.6 * turn.cos(), 0.6 * turn.sin(), 1.8 * v - 0.9), -1)
    if shape == "cone":
        r = v.sqrt()
        return torch.stack((0.8 * r * turn.cos(), 0.8 * r * turn.sin(), 0.9 - 1.8 * r), -1)
    if shape == "torus":
        tube = 2 * math.pi * v
        r = 0.65 + 0.25 * tube.cos()
        return torch.stack((r * turn.cos(), r * turn.sin(), 0.25 * tube.sin()), -1)
    return torch.stack((0.7 * (2 * turn).cos(), 0.7 * (2 * turn).sin(), 1.8 * u - 0.9 + 0.05 * v), -1)


def synthetic(count: int, points: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """``count`` noisy clouds ``(count, points, 3)`` turned about the vertical axis, in the unit ball, and their labels."""
    labels = torch.randint(len(SHAPES), (count,), generator=generator)
    u, v = torch.rand(2, count, points, generator=generator)
    x = torch.zeros(count, points, 3)
    for k, shape in enumerate(SHAPES):
        x[labels == k] = surface(shape, u[labels == k], v[labels == k])
    angle = 2 * math.pi * torch.rand(count, 1, generator=generator)
    turned = (angle.cos() * x[..., 0] - angle.sin() * x[..., 1], angle.sin() * x[..., 0] + angle.cos() * x[..., 1])
    x = torch.stack((*turned, x[..., 2]), -1)
    return normalised(x + 0.03 * torch.randn(x.shape, generator=generator)), labels


def normalised(clouds: Tensor) -> Tensor:
    """Mean zero, the furthest point at distance one."""
    centred = clouds - clouds.mean(-2, keepdim=True)
    return centred / centred.norm(dim=-1, keepdim=True).amax(-2, keepdim=True)


def with_outliers(clouds: Tensor, rate: float, generator: torch.Generator) -> Tensor:
    """A share of the points of each cloud replaced by points anywhere in the unit ball."""
    direction = torch.randn(clouds.shape, generator=generator)
    radius = torch.rand(*clouds.shape[:-1], 1, generator=generator) ** (1 / 3)
    dirt = radius * direction / direction.norm(dim=-1, keepdim=True)
    order = torch.rand(clouds.shape[:-1], generator=generator).argsort(-1).argsort(-1).unsqueeze(-1)
    return torch.where((order < round(rate * clouds.shape[-2])).to(clouds.device), dirt.to(clouds), clouds)


# ---------------------------------------------------------------- meshes in folders


def read_off(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Vertices ``(V, 3)`` and triangles ``(F, 3)`` of a mesh in the OFF format; polygons are cut into fans.

    Some files of ModelNet40 have their counts in the line of the keyword (``OFF490 518 0``).
    """
    lines = (line.split("#")[0] for line in path.read_text(encoding="ascii", errors="replace").splitlines())
    words = " ".join(lines).split()
    if not words or not words[0].startswith("OFF"):
        raise FolderError(f"{path} is no mesh in the OFF format: it must begin with OFF.")
    words = [word for word in (words[0][3:], *words[1:]) if word]
    try:
        count, sides = int(words[0]), int(words[1])
        vertices = np.array(words[3 : 3 + 3 * count], dtype=np.float64).reshape(count, 3)
        rest = words[3 + 3 * count :]
        triangles, at = [], 0
        for _ in range(sides):
            corners = [int(word) for word in rest[at + 1 : at + 1 + int(rest[at])]]
            triangles += [(corners[0], b, c) for b, c in pairwise(corners[1:])]
            at += 1 + int(rest[at])
        faces = np.array(triangles, dtype=np.int64).reshape(-1, 3)
    except (ValueError, IndexError) as error:
        raise FolderError(f"{path} is no complete OFF mesh (counts, vertices, faces): {error}.") from error
    if not len(faces) or not np.isfinite(vertices).all() or faces.min() < 0 or faces.max() >= count:
        raise FolderError(
            f"{path}: every face must name vertices of the file, and there must be one; vertices must be finite."
        )
    return vertices, faces


def sample_surface(vertices: np.ndarray, faces: np.ndarray, count: int, generator: torch.Generator) -> Tensor:
    """``count`` points, uniform on the surface, ``(count, 3)`` in the unit ball."""
    a, b, c = torch.from_numpy(vertices[faces]).unbind(1)
    area = torch.linalg.cross(b - a, c - a).norm(dim=-1)
    if not area.sum() > 0:
        raise FolderError("a mesh must have a surface, this one has area zero")
    chosen = torch.multinomial(area, count, replacement=True, generator=generator)
    u, v = torch.rand(2, count, 1, generator=generator, dtype=area.dtype)
    root = u.sqrt()
    points = (1 - root) * a[chosen] + root * (1 - v) * b[chosen] + root * v * c[chosen]
    return normalised(points).float()


def cloud_folder(root: Path, points: int) -> tuple[list[str], tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Classes, training and test clouds of a folder laid out like ModelNet40: ``root/class/{train,test}/*.off``.

    Raises
    ------
    FolderError
        The folder is laid out differently, or a file is no mesh.
    """
    layout = f"{root} must be laid out like ModelNet40, as CLASS/train/*.off and CLASS/test/*.off"
    classes = folders_of(root, layout)
    generator = torch.Generator().manual_seed(0)

    def read(part: str) -> tuple[Tensor, Tensor]:
        files = [(path, k) for k, name in enumerate(classes) for path in sorted((root / name / part).glob("*.off"))]
        missing = set(range(len(classes))) - {k for _, k in files}
        if missing:
            raise FolderError(f"{layout}: there is no file {classes[min(missing)]}/{part}/*.off.")
        clouds = []
        for path, _ in tqdm(files, desc=f"reading {part}"):
            try:
                clouds.append(sample_surface(*read_off(path), points, generator))
            except FolderError as error:
                raise FolderError(f"{path}: {error}") from error
        return torch.stack(clouds), torch.tensor([k for _, k in files])

    return classes, read("train"), read("test")
