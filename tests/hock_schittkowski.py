"""Problems of Hock & Schittkowski (Test Examples for Nonlinear Programming Codes, 1981), made parametric.

Each function takes the components of y and of the parameters t, and returns the objective, the equalities ``h = 0`` and
the inequalities as published, ``c >= 0``.  ``nominal`` are the constants of the published problem; with them ``optimum`` is
the published value, which a local solver is to reach from the published start.  Only arithmetic on components is used, so
the functions serve one instance and a batch alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import log, pi, sqrt

import torch
from torch import Tensor

from ddn_cvx.program.nonlinear import NonlinearProgram, Theta

INF = float("inf")
Rows = Sequence[Tensor]
Function = Callable[[Rows, Rows], tuple[Tensor, Rows, Rows]]


@dataclass(frozen=True)
class Problem:
    """One problem: sizes, published start and optimum, and the functions."""

    number: int
    start: tuple[float, ...]
    optimum: float
    nominal: tuple[float, ...]
    lower: tuple[float, ...] | None
    upper: tuple[float, ...] | None
    function: Function
    spread: float
    """Relative perturbation of the parameters that leaves the problem feasible."""

    @property
    def n(self) -> int:
        return len(self.start)

    def evaluate(self, y: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``f (...), h (..., p), g (..., m)`` with ``g <= 0``, for y (..., n) and t (..., k)."""
        f, h, c = self.function(y.unbind(-1), t.unbind(-1))
        none = y[..., :0]
        stacked = torch.stack(tuple(h), -1) if h else none
        return f, stacked, -torch.stack(tuple(c), -1) if c else none

    def bounds(self) -> tuple[Tensor, Tensor]:
        """``lower, upper``, (n,) float64."""
        lower = (-INF,) * self.n if self.lower is None else self.lower
        upper = (INF,) * self.n if self.upper is None else self.upper
        return torch.tensor(lower, dtype=torch.float64), torch.tensor(upper, dtype=torch.float64)

    def program(self) -> NonlinearProgram:
        """The nonlinear program with parameter t as the only tensor of its theta."""
        y, t = torch.tensor(self.start, dtype=torch.float64), torch.tensor(self.nominal, dtype=torch.float64)
        _, h, g = self.evaluate(y, t)
        lower, upper = self.bounds()
        bounded = self.lower is not None or self.upper is not None
        return NonlinearProgram(
            self.n,
            len(h),
            len(g),
            lambda y, theta: self.evaluate(y, theta.tensors[0]),
            (lambda theta: (lower, upper)) if bounded else None,
        )

    def batch(self, size: int, generator: torch.Generator) -> tuple[Theta, Tensor]:
        """Parameters with relative perturbations, and the published start, for ``size`` instances."""
        t = torch.tensor(self.nominal, dtype=torch.float64).repeat(size, 1)
        t = t * (1 + self.spread * torch.randn(t.shape, generator=generator, dtype=torch.float64))
        return Theta((t,), (True,)), torch.tensor(self.start, dtype=torch.float64).repeat(size, 1)


PROBLEMS: list[Problem] = []


def problem(number, start, optimum, nominal, lower=None, upper=None, spread=0.05):
    """Register the function below as a problem."""

    def register(function: Function) -> Function:
        PROBLEMS.append(Problem(number, start, optimum, nominal, lower, upper, function, spread))
        return function

    return register


def rosenbrock(a, b, t):
    return t[0] * (b - a**2) ** 2 + (t[1] - a) ** 2


@problem(1, (-2, 1), 0.0, (100.0, 1.0), lower=(-INF, -1.5))
def hs1(y, t):
    return rosenbrock(*y, t), [], []


@problem(3, (10, 1), 0.0, (1.0, 1e-5), lower=(-INF, 0))
def hs3(y, t):
    a, b = y
    return t[0] * b + t[1] * (b - a) ** 2, [], []


@problem(4, (1.125, 0.125), 8 / 3, (1.0, 1.0), lower=(1, 0))
def hs4(y, t):
    a, b = y
    return (a + t[0]) ** 3 / 3 + t[1] * b, [], []


@problem(5, (0, 0), -sqrt(3) / 2 - pi / 3, (1.5, 2.5), lower=(-1.5, -3), upper=(4, 3))
def hs5(y, t):
    a, b = y
    return torch.sin(a + b) + (a - b) ** 2 - t[0] * a + t[1] * b + 1, [], []


@problem(6, (-1.2, 1), 0.0, (1.0, 10.0))
def hs6(y, t):
    a, b = y
    return (t[0] - a) ** 2, [t[1] * (b - a**2)], []


@problem(7, (2, 2), -sqrt(3), (1.0, 4.0))
def hs7(y, t):
    a, b = y
    return torch.log(t[0] + a**2) - b, [(1 + a**2) ** 2 + b**2 - t[1]], []


@problem(8, (2, 1), -1.0, (25.0, 9.0))
def hs8(y, t):
    a, b = y
    return 0 * a - 1, [a**2 + b**2 - t[0], a * b - t[1]], []


@problem(9, (0, 0), -0.5, (4.0, 3.0))
def hs9(y, t):
    a, b = y
    return torch.sin(pi * a / 12) * torch.cos(pi * b / 16), [t[0] * a - t[1] * b], []


@problem(10, (-10, 10), -1.0, (3.0, 1.0))
def hs10(y, t):
    a, b = y
    return a - b, [], [-t[0] * a**2 + 2 * a * b - b**2 + t[1]]


@problem(11, (4.9, 0.1), -8.498464223, (5.0, 1.0))
def hs11(y, t):
    a, b = y
    return (a - t[0]) ** 2 + b**2 - 25, [], [-t[1] * a**2 + b]


@problem(12, (0, 0), -30.0, (7.0, 25.0))
def hs12(y, t):
    a, b = y
    return 0.5 * a**2 + b**2 - a * b - t[0] * a - 7 * b, [], [t[1] - 4 * a**2 - b**2]


@problem(14, (2, 2), 9 - 2.875 * sqrt(7), (2.0, 0.25))
def hs14(y, t):
    a, b = y
    return (a - t[0]) ** 2 + (b - 1) ** 2, [a - 2 * b + 1], [-t[1] * a**2 - b**2 + 1]


@problem(15, (-2, 1), 306.5, (100.0, 1.0), upper=(0.5, INF))
def hs15(y, t):
    a, b = y
    return rosenbrock(a, b, t), [], [a * b - t[1], a + b**2]


@problem(18, (2, 2), 5.0, (25.0, 25.0), lower=(2, 0), upper=(50, 50))
def hs18(y, t):
    a, b = y
    return 0.01 * a**2 + b**2, [], [a * b - t[0], a**2 + b**2 - t[1]]


@problem(19, (20.1, 5.84), -6961.81388, (100.0, 82.81), lower=(13, 0), upper=(100, 100), spread=0.003)
def hs19(y, t):
    a, b = y
    return (a - 10) ** 3 + (b - 20) ** 3, [], [(a - 5) ** 2 + (b - 5) ** 2 - t[0], t[1] - (b - 5) ** 2 - (a - 6) ** 2]


@problem(21, (-1, -1), -99.96, (0.01, 10.0), lower=(2, -50), upper=(50, 50))
def hs21(y, t):
    a, b = y
    return t[0] * a**2 + b**2 - 100, [], [10 * a - b - t[1]]


@problem(22, (2, 2), 1.0, (2.0, 1.0))
def hs22(y, t):
    a, b = y
    return (a - t[0]) ** 2 + (b - t[1]) ** 2, [], [2 - a - b, b - a**2]


@problem(23, (3, 1), 2.0, (1.0, 9.0), lower=(-50, -50), upper=(50, 50))
def hs23(y, t):
    a, b = y
    return a**2 + b**2, [], [a + b - t[0], a**2 + b**2 - 1, 9 * a**2 + b**2 - t[1], a**2 - b, b**2 - a]


@problem(24, (1, 0.5), -1.0, (3.0, 6.0), lower=(0, 0))
def hs24(y, t):
    a, b = y
    f = ((a - t[0]) ** 2 - 9) * b**3 / (27 * sqrt(3))
    return f, [], [a / sqrt(3) - b, a + sqrt(3) * b, t[1] - a - sqrt(3) * b]


@problem(27, (2, 2, 2), 0.04, (0.01, 1.0))
def hs27(y, t):
    a, b, c = y
    return t[0] * (a - 1) ** 2 + (b - a**2) ** 2, [a + c**2 + t[1]], []


@problem(28, (-4, 1, 1), 0.0, (3.0, 1.0))
def hs28(y, t):
    a, b, c = y
    return (a + b) ** 2 + (b + c) ** 2, [a + 2 * b + t[0] * c - t[1]], []


@problem(29, (1, 1, 1), -16 * sqrt(2), (48.0, 4.0))
def hs29(y, t):
    a, b, c = y
    return -a * b * c, [], [t[0] - a**2 - 2 * b**2 - t[1] * c**2]


@problem(30, (1, 1, 1), 1.0, (1.0, 1.0), lower=(1, -10, -10), upper=(10, 10, 10))
def hs30(y, t):
    a, b, c = y
    return a**2 + t[0] * b**2 + c**2, [], [a**2 + b**2 - t[1]]


@problem(31, (1, 1, 1), 6.0, (9.0, 1.0), lower=(-10, 1, -10), upper=(10, 10, 1))
def hs31(y, t):
    a, b, c = y
    return t[0] * a**2 + b**2 + 9 * c**2, [], [a * b - t[1]]


@problem(32, (0.1, 0.7, 0.2), 1.0, (3.0, 1.0), lower=(0, 0, 0))
def hs32(y, t):
    a, b, c = y
    return (a + t[0] * b + c) ** 2 + 4 * (a - b) ** 2, [t[1] - a - b - c], [6 * b + 4 * c - a**3 - 3]


@problem(34, (0, 1.05, 2.9), -log(log(10)), (1.0, 1.0), lower=(0, 0, 0), upper=(100, 100, 10))
def hs34(y, t):
    a, b, c = y
    return -a, [], [b - t[0] * torch.exp(a), c - t[1] * torch.exp(b)]


@problem(35, (0.5, 0.5, 0.5), 1 / 9, (8.0, 3.0), lower=(0, 0, 0))
def hs35(y, t):
    a, b, c = y
    f = 9 - t[0] * a - 6 * b - 4 * c + 2 * a**2 + 2 * b**2 + c**2 + 2 * a * b + 2 * a * c
    return f, [], [t[1] - a - b - 2 * c]


@problem(36, (10, 10, 10), -3300.0, (72.0, 2.0), lower=(0, 0, 0), upper=(20, 11, 42))
def hs36(y, t):
    a, b, c = y
    return -a * b * c, [], [t[0] - a - t[1] * b - 2 * c]


@problem(37, (10, 10, 10), -3456.0, (72.0, 2.0), lower=(0, 0, 0), upper=(42, 42, 42))
def hs37(y, t):
    a, b, c = y
    return -a * b * c, [], [t[0] - a - t[1] * b - 2 * c, a + 2 * b + 2 * c]


@problem(38, (-3, -1, -3, -1), 0.0, (100.0, 1.0), lower=(-10,) * 4, upper=(10,) * 4)
def hs38(y, t):
    a, b, c, d = y
    f = rosenbrock(a, b, t) + 90 * (d - c**2) ** 2 + (1 - c) ** 2
    return f + 10.1 * ((b - 1) ** 2 + (d - 1) ** 2) + 19.8 * (b - 1) * (d - 1), [], []


@problem(39, (2, 2, 2, 2), -1.0, (1.0, 1.0))
def hs39(y, t):
    a, b, c, d = y
    return -a, [b - t[0] * a**3 - c**2, t[1] * a**2 - b - d**2], []


@problem(40, (0.8,) * 4, -0.25, (1.0, 1.0))
def hs40(y, t):
    a, b, c, d = y
    return -a * b * c * d, [a**3 + b**2 - t[0], a**2 * d - t[1] * c, d**2 - b], []


@problem(41, (2,) * 4, 52 / 27, (2.0, 2.0), lower=(0,) * 4, upper=(1, 1, 1, 2))
def hs41(y, t):
    a, b, c, d = y
    return 2 - a * b * c, [a + t[0] * b + t[1] * c - d], []


@problem(42, (1,) * 4, 28 - 10 * sqrt(2), (2.0, 2.0))
def hs42(y, t):
    a, b, c, d = y
    return (a - 1) ** 2 + (b - 2) ** 2 + (c - 3) ** 2 + (d - 4) ** 2, [a - t[0], c**2 + d**2 - t[1]], []


@problem(43, (0,) * 4, -44.0, (8.0, 10.0))
def hs43(y, t):
    a, b, c, d = y
    f = a**2 + b**2 + 2 * c**2 + d**2 - 5 * a - 5 * b - 21 * c + 7 * d
    return (
        f,
        [],
        [
            t[0] - a**2 - b**2 - c**2 - d**2 - a + b - c + d,
            t[1] - a**2 - 2 * b**2 - c**2 - 2 * d**2 + a + d,
            5 - 2 * a**2 - b**2 - c**2 - 2 * a + b + d,
        ],
    )


@problem(45, (2,) * 5, 1.0, (2.0, 120.0), lower=(0,) * 5, upper=(1, 2, 3, 4, 5))
def hs45(y, t):
    a, b, c, d, e = y
    return t[0] - a * b * c * d * e / t[1], [], []


@problem(48, (3, 5, -3, 2, -2), 0.0, (1.0, 5.0))
def hs48(y, t):
    a, b, c, d, e = y
    return (a - t[0]) ** 2 + (b - c) ** 2 + (d - e) ** 2, [a + b + c + d + e - t[1], c - 2 * (d + e) + 3], []


@problem(50, (35, -31, 11, 5, -5), 0.0, (6.0, 6.0))
def hs50(y, t):
    a, b, c, d, e = y
    f = (a - b) ** 2 + (b - c) ** 2 + (c - d) ** 4 + (d - e) ** 2
    return f, [a + 2 * b + 3 * c - t[0], b + 2 * c + 3 * d - t[1], c + 2 * d + 3 * e - 6], []


@problem(51, (2.5, 0.5, 2, -1, 0.5), 0.0, (2.0, 4.0))
def hs51(y, t):
    a, b, c, d, e = y
    f = (a - b) ** 2 + (b + c - t[0]) ** 2 + (d - 1) ** 2 + (e - 1) ** 2
    return f, [a + 3 * b - t[1], c + d - 2 * e, b - e], []


@problem(52, (2,) * 5, 1859 / 349, (4.0, 2.0))
def hs52(y, t):
    a, b, c, d, e = y
    f = (t[0] * a - b) ** 2 + (b + c - t[1]) ** 2 + (d - 1) ** 2 + (e - 1) ** 2
    return f, [a + 3 * b, c + d - 2 * e, b - e], []


@problem(53, (2,) * 5, 176 / 43, (2.0, 3.0), lower=(-10,) * 5, upper=(10,) * 5)
def hs53(y, t):
    a, b, c, d, e = y
    f = (a - b) ** 2 + (b + c - t[0]) ** 2 + (d - 1) ** 2 + (e - 1) ** 2
    return f, [a + t[1] * b, c + d - 2 * e, b - e], []


@problem(60, (2,) * 3, 0.03256820025, (1.0, 4.0), lower=(-10,) * 3, upper=(10,) * 3)
def hs60(y, t):
    a, b, c = y
    return (a - t[0]) ** 2 + (a - b) ** 2 + (b - c) ** 4, [a * (1 + b**2) + c**4 - t[1] - 3 * sqrt(2)], []


@problem(61, (0,) * 3, -143.6461422, (7.0, 11.0))
def hs61(y, t):
    a, b, c = y
    f = 4 * a**2 + 2 * b**2 + 2 * c**2 - 33 * a + 16 * b - 24 * c
    return f, [3 * a - 2 * b**2 - t[0], 4 * a - c**2 - t[1]], []


@problem(63, (2,) * 3, 961.7151721, (56.0, 25.0), lower=(0,) * 3)
def hs63(y, t):
    a, b, c = y
    f = 1000 - a**2 - 2 * b**2 - c**2 - a * b - a * c
    return f, [8 * a + 14 * b + 7 * c - t[0], a**2 + b**2 + c**2 - t[1]], []


@problem(64, (1,) * 3, 6299.842428, (1.0, 50000.0), lower=(1e-5,) * 3)
def hs64(y, t):
    a, b, c = y
    f = 5 * a + t[1] / a + 20 * b + 72000 / b + 10 * c + 144000 / c
    return f, [], [t[0] - 4 / a - 32 / b - 120 / c]


@problem(65, (-5, 5, 0), 0.9535288567, (48.0, 10.0), lower=(-4.5, -4.5, -5), upper=(4.5, 4.5, 5))
def hs65(y, t):
    a, b, c = y
    return (a - b) ** 2 + (a + b - t[1]) ** 2 / 9 + (c - 5) ** 2, [], [t[0] - a**2 - b**2 - c**2]


@problem(66, (0, 1.05, 2.9), 0.5181632741, (0.8, 1.0), lower=(0,) * 3, upper=(100, 100, 10))
def hs66(y, t):
    a, b, c = y
    return 0.2 * c - t[0] * a, [], [b - t[1] * torch.exp(a), c - torch.exp(b)]


@problem(71, (1, 5, 5, 1), 17.0140173, (25.0, 40.0), lower=(1,) * 4, upper=(5,) * 4)
def hs71(y, t):
    a, b, c, d = y
    return a * d * (a + b + c) + c, [a**2 + b**2 + c**2 + d**2 - t[1]], [a * b * c * d - t[0]]


@problem(72, (1,) * 4, 727.67937, (0.0401, 0.010085), lower=(0.001,) * 4, upper=(4e5, 3e5, 2e5, 1e5))
def hs72(y, t):
    a, b, c, d = y
    first = t[0] - 4 / a - 2.25 / b - 1 / c - 0.25 / d
    return 1 + a + b + c + d, [], [first, t[1] - 0.16 / a - 0.36 / b - 0.64 / c - 0.64 / d]


@problem(73, (1,) * 4, 29.894378, (5.0, 21.0), lower=(0,) * 4)
def hs73(y, t):
    a, b, c, d = y
    spread = torch.sqrt(0.28 * a**2 + 0.19 * b**2 + 20.5 * c**2 + 0.62 * d**2)
    return (
        24.55 * a + 26.75 * b + 39 * c + 40.5 * d,
        [a + b + c + d - 1],
        [
            2.3 * a + 5.6 * b + 11.1 * c + 1.3 * d - t[0],
            12 * a + 11.9 * b + 41.8 * c + 52.1 * d - t[1] - 1.645 * spread,
        ],
    )


@problem(76, (0.5,) * 4, -4.681818181, (5.0, 4.0), lower=(0,) * 4)
def hs76(y, t):
    a, b, c, d = y
    f = a**2 + 0.5 * b**2 + c**2 + 0.5 * d**2 - a * c + c * d - a - 3 * b + c - d
    return f, [], [t[0] - a - 2 * b - c - d, t[1] - 3 * a - b - 2 * c + d, b + 4 * c - 1.5]


@problem(77, (2,) * 5, 0.24150513, (2.0, 8.0))
def hs77(y, t):
    a, b, c, d, e = y
    f = (a - 1) ** 2 + (a - b) ** 2 + (c - 1) ** 2 + (d - 1) ** 4 + (e - 1) ** 6
    return f, [a**2 * d + torch.sin(d - e) - t[0] * sqrt(2), b + c**4 * d**2 - t[1] - sqrt(2)], []


def three_curves(y, t):
    a, b, c, d, e = y
    return [a**2 + b**2 + c**2 + d**2 + e**2 - t[0], b * c - t[1] * d * e, a**3 + b**3 + 1]


@problem(78, (-2, 1.5, 2, -1, -1), -2.91970041, (10.0, 5.0))
def hs78(y, t):
    a, b, c, d, e = y
    return a * b * c * d * e, three_curves(y, t), []


@problem(79, (2,) * 5, 0.0787768209, (2.0, 2.0))
def hs79(y, t):
    a, b, c, d, e = y
    f = (a - 1) ** 2 + (a - b) ** 2 + (b - c) ** 2 + (c - d) ** 4 + (d - e) ** 4
    return f, [a + b**2 + c**3 - t[0] - 3 * sqrt(2), b - c**2 + d + t[1] - 2 * sqrt(2), a * e - 2], []


SIDES = {"lower": (-2.3, -2.3, -3.2, -3.2, -3.2), "upper": (2.3, 2.3, 3.2, 3.2, 3.2)}


@problem(80, (-2, 2, 2, -1, -1), 0.0539498478, (10.0, 5.0), **SIDES)
def hs80(y, t):
    a, b, c, d, e = y
    return torch.exp(a * b * c * d * e), three_curves(y, t), []


@problem(81, (-2, 2, 2, -1, -1), 0.0539498478, (10.0, 5.0), **SIDES)
def hs81(y, t):
    a, b, c, d, e = y
    return torch.exp(a * b * c * d * e) - 0.5 * (a**3 + b**3 + 1) ** 2, three_curves(y, t), []


@problem(100, (1, 2, 0, 4, 0, 1, 1), 680.6300573, (127.0, 196.0))
def hs100(y, t):
    a, b, c, d, e, f, g = y
    value = (a - 10) ** 2 + 5 * (b - 12) ** 2 + c**4 + 3 * (d - 11) ** 2 + 10 * e**6 + 7 * f**2 + g**4
    return (
        value - 4 * f * g - 10 * f - 8 * g,
        [],
        [
            t[0] - 2 * a**2 - 3 * b**4 - c - 4 * d**2 - 5 * e,
            282 - 7 * a - 3 * b - 10 * c**2 - d + e,
            t[1] - 23 * a - b**2 - 6 * f**2 + 8 * g,
            -4 * a**2 - b**2 + 3 * a * b - 2 * c**2 - 5 * f + 11 * g,
        ],
    )


@problem(113, (2, 3, 5, 5, 1, 2, 7, 3, 6, 10), 24.3062091, (105.0, 120.0))
def hs113(y, t):
    a, b, c, d, e, f, g, h, i, j = y
    value = a**2 + b**2 + a * b - 14 * a - 16 * b + (c - 10) ** 2 + 4 * (d - 5) ** 2 + (e - 3) ** 2 + 2 * (f - 1) ** 2
    return (
        value + 5 * g**2 + 7 * (h - 11) ** 2 + 2 * (i - 10) ** 2 + (j - 7) ** 2 + 45,
        [],
        [
            t[0] - 4 * a - 5 * b + 3 * g - 9 * h,
            -10 * a + 8 * b + 17 * g - 2 * h,
            8 * a - 2 * b - 5 * i + 2 * j + 12,
            t[1] - 3 * (a - 2) ** 2 - 4 * (b - 3) ** 2 - 2 * c**2 + 7 * d,
            40 - 5 * a**2 - 8 * b - (c - 6) ** 2 + 2 * d,
            30 - 0.5 * (a - 8) ** 2 - 2 * (b - 4) ** 2 - 3 * e**2 + f,
            -(a**2) - 2 * (b - 2) ** 2 + 2 * a * b - 14 * e + 6 * f,
            3 * a - 6 * b - 12 * (i - 8) ** 2 + 7 * j,
        ],
    )
