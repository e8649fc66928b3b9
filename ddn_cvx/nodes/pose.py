"""Pose: rotations and cameras that fit points best, differentiable in the points and in their weights.

Rotations are unit quaternions ``(w, x, y, z)``, from which ``rotation`` makes matrices that are orthogonal to rounding, so
nothing has to be projected afterwards.

* Absolute orientation, ``min sum w_i |R x_i + t - y_i|^2``: the translation is eliminated, and what remains is
  ``min -q'K q`` over unit quaternions (Horn, JOSA A 1987; Davenport's matrix K). One equality, four variables.
* Perspective-n-point, ``min sum w_i |pi(R x_i + t) - z_i|^2``, pi the pinhole projection: least squares.
* Bundle adjustment: the same over several cameras and their points, by the Schur complement of the cameras.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ddn_cvx import BundleAdjustment, DeclarationError, DeclarativeLayer, TorchProblem
from ddn_cvx.nodes.checks import check_shapes, check_values
from ddn_cvx.nodes.entry import Entry, Inputs

_TINY = 1e-20
"""Added to weights, of whose root there would be no derivative at zero."""


def rotation(q: Tensor) -> Tensor:
    """``q (..., 4)``, of any length above zero -> the rotation matrix ``(..., 3, 3)``, orthogonal to rounding."""
    w, x, y, z = (q / q.norm(dim=-1, keepdim=True)).unbind(-1)
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def project(camera: Tensor, points: Tensor) -> Tensor:
    """The pinhole camera: ``camera (..., 7)``, quaternion and translation, ``points (..., 3)`` -> ``(..., 2)``."""
    seen = (rotation(camera[..., :4]) @ points.unsqueeze(-1)).squeeze(-1) + camera[..., 4:]
    return seen[..., :2] / seen[..., 2:]


class WeightedProcrustes(nn.Module):
    """``(x (*batch, N, 3), y (*batch, N, 3), weights (*batch, N))`` -> R ``(*batch, 3, 3)`` and t ``(*batch, 3)`` of
    ``argmin sum w_i |R x_i + t - y_i|^2``, R a rotation; any N.

    Weights must not be negative; only their ratios matter. Where several rotations are best (points on a line) one of them
    is returned, with the derivative that the package documents for solutions that are not unique.

    Raises
    ------
    InputError
        Inputs of other shapes, or a negative weight.
    SolverError
        An element without weight, or with numbers that are not finite.

    Examples
    --------
    >>> x = torch.eye(3)
    >>> R, t = WeightedProcrustes()(x, x.roll(1, 1) + 1, torch.ones(3))
    >>> t.round(decimals=4)
    tensor([1., 1., 1.])
    """

    def __init__(self) -> None:
        super().__init__()
        self.layer = DeclarativeLayer(
            TorchProblem(
                (4,),
                objective=lambda q, K: -0.5 * q @ K @ q,
                equality=lambda q, K: 0.5 * (q @ q - 1),
                solve=lambda K: torch.linalg.eigh(K.nan_to_num())[1][..., -1],
                parameters=[(4, 4)],
            )
        )

    def forward(self, x: Tensor, y: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """The rotation and the translation, in the dtype of x."""
        check_shapes(x=(x, ("N", 3)), y=(y, ("N", 3)), weights=(weights, ("N",)))
        weights = check_values(weights, ~(weights < 0), "weights must not be negative.")
        w = (weights / weights.sum(-1, keepdim=True)).unsqueeze(-1)
        middle_x, middle_y = (w * x).sum(-2), (w * y).sum(-2)
        S = (x - middle_x.unsqueeze(-2)).mT @ (w * (y - middle_y.unsqueeze(-2)))
        R = rotation(self.layer(_davenport(S)))
        return R, middle_y - (R @ middle_x.unsqueeze(-1)).squeeze(-1)


def _davenport(S: Tensor) -> Tensor:
    """``S = sum w x y'`` -> the symmetric K with ``q'K q = sum w y'R(q) x``; scaled to order one."""
    size = S.detach().abs().amax((-1, -2), keepdim=True)
    S = S / torch.where(size == 0, 1.0, size)
    trace = S.diagonal(dim1=-2, dim2=-1).sum(-1, keepdim=True).unsqueeze(-1)
    skew = S - S.mT
    axis = torch.stack((skew[..., 1, 2], skew[..., 2, 0], skew[..., 0, 1]), -1).unsqueeze(-1)
    body = S + S.mT - trace * torch.eye(3, dtype=S.dtype, device=S.device)
    return torch.cat((torch.cat((trace, axis.mT), -1), torch.cat((axis, body), -1)), -2)


class PnP(nn.Module):
    """``(points (*batch, N, 3), pixels (*batch, N, 2), weights (*batch, N), start (*batch, 7))`` -> R ``(*batch, 3, 3)`` and
    t ``(*batch, 3)``: the camera in which the points are seen nearest to the pixels.

    Pixels are in units of the focal length, from the principal point. Levenberg and Marquardt's method goes from ``start``,
    quaternion and translation, to the nearest minimum; the answer does not depend on it otherwise.

    Parameters
    ----------
    points : int
        N, at least 3.

    Raises
    ------
    DeclarationError
        Fewer than three points.
    InputError
        Inputs of other shapes.
    SolverError
        No minimum was found.

    Examples
    --------
    >>> corners = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    >>> pixels = corners[:, :2] / (5 + corners[:, 2:])
    >>> R, t = PnP(4)(corners, pixels, torch.ones(4), torch.tensor([1.0, 0.1, 0, 0, 0, 0, 4]))
    >>> t[2].round(decimals=3)
    tensor(5.)
    """

    def __init__(self, points: int):
        super().__init__()
        if points < 3:
            raise DeclarationError(f"points must be at least 3, got {points!r}.")
        self.points = points

        def residual(camera: Tensor, world: Tensor, pixels: Tensor, roots: Tensor, start: Tensor) -> list[Tensor]:
            error = roots.unsqueeze(-1) * (project(camera, world) - pixels)
            return [error, camera[:4].square().sum() - 1]  # the length of the quaternion is free, and held at one

        self.layer = DeclarativeLayer(
            TorchProblem(
                (7,),
                residual=residual,
                initial=lambda world, pixels, roots, start: start,
                parameters=[(points, 3), (points, 2), (points,), (7,)],
            )
        )

    def forward(self, points: Tensor, pixels: Tensor, weights: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        """The rotation and the translation, in the dtype of points."""
        N = self.points
        check_shapes(points=(points, (N, 3)), pixels=(pixels, (N, 2)), weights=(weights, (N,)), start=(start, (7,)))
        weights = check_values(weights, ~(weights < 0), "weights must not be negative.")
        roots = (weights.double() + _TINY).sqrt()
        camera = self.layer(points, pixels, roots.to(points.dtype), start.detach())
        return rotation(camera[..., :4]), camera[..., 4:]


class Bundle(nn.Module):
    """``(pixels (*batch, C, N, 2), priors (*batch, C, 7), points (*batch, N, 3))`` -> rotations ``(*batch, C, 3, 3)``,
    translations ``(*batch, C, 3)`` and points ``(*batch, N, 3)``.

    Every camera sees every point. The cameras' poses (quaternion and translation) are known roughly: they are where the
    search begins, and a residual of ``trust`` times the distance from them holds the frame of the world, which pixels alone
    leave free. ``points`` are where the search for the points begins, and do not matter otherwise.

    Parameters
    ----------
    cameras, points : int
        C and N.
    trust : float
        Accuracy of the pixels over that of the priors.

    Raises
    ------
    DeclarationError
        A size below one, or a trust that is not above zero.
    InputError
        Inputs of other shapes.
    SolverError
        No minimum was found.

    Examples
    --------
    >>> corners = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    >>> cameras = torch.tensor([[1.0, 0, 0, 0, 0, 0, 5], [1, 0, 0, 0, -1, 0, 5]])
    >>> R, t, points = Bundle(2, 4)(project(cameras.unsqueeze(1), corners), cameras, torch.zeros(4, 3))
    >>> (points - corners).abs().max() < 1e-4
    tensor(True)
    """

    def __init__(self, cameras: int, points: int, trust: float = 0.1):
        super().__init__()
        if cameras < 1 or points < 1:
            raise DeclarationError(f"cameras and points must be at least 1, got {cameras!r} and {points!r}.")
        self.cameras, self.points = cameras, points
        if not trust > 0:
            raise DeclarationError(f"trust must be above 0, got {trust!r}.")
        share = trust / points**0.5  # each of a camera's observations repeats its prior

        def one(camera: Tensor, point: Tensor, seen: Tensor) -> Tensor:
            return torch.cat((project(camera, point) - seen[..., :2], share * (camera - seen[..., 2:])), -1)

        def observations(pixels: Tensor, priors: Tensor) -> Tensor:
            return torch.cat((pixels, priors.unsqueeze(-2).expand(*pixels.shape[:-1], 7)), -1).flatten(-3, -2)

        def residual(found: dict[str, Tensor], pixels: Tensor, priors: Tensor, start: Tensor) -> Tensor:
            camera = found["cameras"].repeat_interleave(points, 0)
            return one(camera, found["points"].repeat(cameras, 1), observations(pixels, priors))

        self.layer = DeclarativeLayer(
            TorchProblem(
                {"cameras": (cameras, 7), "points": (points, 3)},
                residual=residual,
                initial=lambda pixels, priors, start: {"cameras": priors, "points": start},
                parameters=[(cameras, points, 2), (cameras, 7), (points, 3)],
            ),
            solver=BundleAdjustment(
                one,
                lambda theta: observations(theta.tensors[0], theta.tensors[1]),
                torch.arange(cameras).repeat_interleave(points),
                torch.arange(points).repeat(cameras),
                cameras,
                points,
                tolerance=1e-11,
                camera_size=7,
            ),
        )

    def forward(self, pixels: Tensor, priors: Tensor, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rotations, translations and points, in the dtype of the pixels."""
        C, N = self.cameras, self.points
        check_shapes(pixels=(pixels, (C, N, 2)), priors=(priors, (C, 7)), points=(points, (N, 3)))
        found = self.layer(pixels, priors, points.detach())
        return rotation(found["cameras"][..., :4]), found["cameras"][..., 4:], found["points"]


# ---------------------------------------------------------------- the catalogue's entries


def _normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def _sample_points(batch: int, generator: torch.Generator) -> Inputs:
    x, R = _normal(generator, batch, 6, 3), rotation(_normal(generator, batch, 4))
    y = x @ R.mT + _normal(generator, batch, 1, 3) + 0.2 * _normal(generator, batch, 6, 3)
    return x, y, 0.5 + torch.rand(batch, 6, generator=generator, dtype=x.dtype)


def kabsch(x: Tensor, y: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Absolute orientation by the singular value decomposition (Kabsch 1976, Umeyama 1991)."""
    w = (weights / weights.sum(-1, keepdim=True)).unsqueeze(-1)
    mx, my = (w * x).sum(-2, keepdim=True), (w * y).sum(-2, keepdim=True)
    U, _, Vh = torch.linalg.svd((w * (y - my)).mT @ (x - mx))
    a, b, c = (U @ Vh).unbind(-1)
    sign = (torch.linalg.cross(a, b) * c).sum(-1).sign()
    R = torch.cat((U[..., :2], U[..., 2:] * sign[..., None, None]), -1) @ Vh
    return R, (my - mx @ R.mT).squeeze(-2)


def _sample_camera(batch: int, generator: torch.Generator, count: int = 6) -> Inputs:
    points = _normal(generator, batch, count, 3)
    start = _normal(generator, batch, 7) * torch.tensor([0.2] * 7, dtype=points.dtype)
    start = start + torch.tensor([1.0, 0, 0, 0, 0, 0, 6.0], dtype=points.dtype)
    near = start + 0.05 * _normal(generator, batch, 7)
    pixels = project(near.unsqueeze(-2), points) + 0.01 * _normal(generator, batch, count, 2)
    return points, pixels, 0.5 + torch.rand(batch, count, generator=generator, dtype=points.dtype), start


def _fit_camera(points: Tensor, pixels: Tensor, weights: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """scipy's least squares over rotation vectors."""
    from scipy.optimize import least_squares
    from scipy.spatial.transform import Rotation

    R, t = [], []
    for p, z, w, s in zip(*(a.numpy() for a in (points, pixels, weights, start)), strict=True):
        first = Rotation.from_quat(s[[1, 2, 3, 0]])

        def error(v: Any, p: Any = p, z: Any = z, w: Any = w, first: Any = first) -> Any:
            seen = (Rotation.from_rotvec(v[:3]) * first).apply(p) + v[3:]
            return (w[:, None] ** 0.5 * (seen[:, :2] / seen[:, 2:] - z)).ravel()

        v = least_squares(error, [0.0, 0.0, 0.0, *s[4:]], xtol=1e-15, ftol=1e-15, gtol=1e-15, jac="3-point").x
        R.append(torch.from_numpy((Rotation.from_rotvec(v[:3]) * first).as_matrix()))
        t.append(torch.from_numpy(v[3:]))
    return torch.stack(R), torch.stack(t)


_TRUST = 1.0


def _sample_bundle(batch: int, generator: torch.Generator) -> Inputs:
    """Two cameras on two sides of the points."""
    points = 0.7 * _normal(generator, batch, 5, 3)
    usual = torch.tensor([[1.0, 0, 0, 0, 0, 0, 4.0], [0.8, 0, 0.6, 0, 0, 0.2, 4.0]], dtype=points.dtype)
    priors = usual + 0.05 * _normal(generator, batch, 2, 7)
    pixels = project((priors + 0.02 * _normal(generator, batch, 2, 7)).unsqueeze(-2), points.unsqueeze(-3))
    return pixels + 0.005 * _normal(generator, batch, 2, 5, 2), priors, points + 0.1 * _normal(generator, batch, 5, 3)


def _fit_bundle(pixels: Tensor, priors: Tensor, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """scipy's dense least squares."""
    from scipy.optimize import least_squares

    count, number = priors.shape[1], points.shape[1]
    cameras, places = [], []
    for z, prior, start in zip(pixels, priors, points, strict=True):

        def error(v: Any, z: Tensor = z, prior: Tensor = prior) -> Any:
            found = torch.from_numpy(v)
            camera, place = found[: 7 * count].view(count, 7), found[7 * count :].view(number, 3)
            return torch.cat(
                ((project(camera.unsqueeze(1), place) - z).flatten(), _TRUST * (camera - prior).flatten())
            ).numpy()

        first = torch.cat((prior.flatten(), start.flatten())).numpy()
        found = torch.from_numpy(least_squares(error, first, xtol=1e-15, ftol=1e-15, gtol=1e-15, jac="3-point").x)
        cameras.append(found[: 7 * count].view(count, 7))
        places.append(found[7 * count :].view(number, 3))
    camera = torch.stack(cameras)
    return rotation(camera[..., :4]), camera[..., 4:], torch.stack(places)


def _entry(name: str, title: str, source: str, **parts: Any) -> Entry:
    example, tags = "18_pose", parts.pop("tags", frozenset()) | {"pose"}
    return Entry(name=name, title=title, kind="nonlinear", source=source, example=example, tags=tags, **parts)


ENTRIES = (
    _entry(
        "weighted-procrustes",
        "the rotation and translation between weighted points",
        "Horn, JOSA A 1987; Gould, Hartley & Campbell, TPAMI 2022",
        build=WeightedProcrustes,
        sample=_sample_points,
        reference=kabsch,
    ),
    _entry(
        "pnp",
        "the pose of a camera from points and their pixels",
        "Campbell, Liu & Gould, ECCV 2020",
        build=partial(PnP, 6),
        sample=_sample_camera,
        reference=_fit_camera,
        tolerance=1e-6,
    ),
    _entry(
        "bundle-adjustment",
        "several cameras and the points that they see",
        "Triggs, McLauchlan, Hartley & Fitzgibbon 2000",
        build=partial(Bundle, 2, 5, trust=_TRUST),
        sample=_sample_bundle,
        reference=_fit_bundle,
        tolerance=1e-5,
        second_order=False,  # they exist and are right; the check takes two minutes
    ),
)
