"""The filter line search of the interior-point method (Wächter & Biegler 2006, sections 2.3 and 2.4), for a batch.

A trial point is taken when it improves the violation ``theta = |h|_1 + |c + s|_1`` or the barrier function
``phi = f - mu sum(log s)`` over the current point and over all pairs in the element's filter, which rules out cycles.
The full step is tried for the whole batch, derivatives included, since most steps are taken.  For just the elements that
refuse it, a second-order correction and several shorter steps are tried at once, with values alone.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ddn_cvx.linalg.elements import choose, put, take
from ddn_cvx.solvers.nonlinear_barrier import BarrierForm, Derivatives, Values
from ddn_cvx.solvers.nonlinear_newton import NewtonSystem, Step

CAPACITY = 24
"""Pairs an element's filter holds; the oldest gives way."""
_THETA_MARGIN, _PHI_MARGIN = 1e-5, 1e-8
_ARMIJO = 1e-4
_ROUNDS = ((1, 2, 3, 4, 5, 6), (8, 10, 12, 14, 16, 18, 20, 22, 24))  # powers of one half that are tried together
_KKT_DECREASE = 0.9


class Filter(NamedTuple):
    """Forbidden pairs, ``(B, CAPACITY)`` each, their number (B,), and the limits of theta (B,)."""

    theta: Tensor
    phi: Tensor
    entries: Tensor
    least: Tensor
    most: Tensor

    @staticmethod
    def empty(theta: Tensor) -> Filter:
        """For initial violations theta (B,)."""
        none = theta.new_full((len(theta), CAPACITY), torch.inf)
        base = theta.clamp(min=1.0)
        return Filter(none, none, torch.zeros_like(theta, dtype=torch.int64), 1e-4 * base, 1e4 * base)

    def accepts(self, theta: Tensor, phi: Tensor) -> Tensor:
        """Whether no pair forbids ``(theta, phi)``."""
        better = (theta.unsqueeze(-1) <= self.theta) | (phi.unsqueeze(-1) <= self.phi)
        return better.all(-1) & (theta <= self.most)

    def add(self, where: Tensor, theta: Tensor, phi: Tensor) -> Filter:
        """Forbid ``(theta, phi)``, with margins, for the elements ``where`` (B,) bool."""
        slot = (self.entries % CAPACITY).unsqueeze(-1)
        new_theta = self.theta.scatter(1, slot, ((1 - _THETA_MARGIN) * theta).unsqueeze(-1))
        new_phi = self.phi.scatter(1, slot, (phi - _PHI_MARGIN * theta).unsqueeze(-1))
        return self._replace(
            theta=torch.where(where.unsqueeze(-1), new_theta, self.theta),
            phi=torch.where(where.unsqueeze(-1), new_phi, self.phi),
            entries=self.entries + where,
        )

    def clear(self, where: Tensor) -> Filter:
        """Forget all pairs of the elements ``where``."""
        column = where.unsqueeze(-1)
        return self._replace(
            theta=self.theta.masked_fill(column, torch.inf),
            phi=self.phi.masked_fill(column, torch.inf),
            entries=self.entries.masked_fill(where, 0),
        )


class Iterate(NamedTuple):
    """The variables ``y (B, n)``, ``s (B, k)``, ``lam (B, p)``, ``z (B, k)`` and the barrier parameter ``mu (B, 1)``."""

    y: Tensor
    s: Tensor
    lam: Tensor
    z: Tensor
    mu: Tensor


class Errors(NamedTuple):
    """Largest dual and primal residual ``(B,)``, the products s z ``(B, k)``, and what these are relative to ``(B,)``."""

    dual: Tensor
    primal: Tensor
    products: Tensor
    weight: Tensor

    def at(self, mu: Tensor) -> Tensor:
        """The error of the barrier problem for mu (B, 1) or a number."""
        worst = torch.maximum(self.dual, self.primal)
        if not self.products.shape[1]:
            return worst
        return torch.maximum(worst, (self.products - mu).abs().amax(-1) / self.weight)


def errors(form: BarrierForm, at: Derivatives, z: Iterate) -> Errors:
    """How far an iterate is from the optimality conditions."""
    slope = at.gradient + form.pull(at.Jg, z.z)
    p, k = z.lam.shape[1], z.s.shape[1]
    sizes = z.z.sum(-1)
    primal = [at.c + z.s] if k else []
    if p:
        slope = slope + (z.lam.unsqueeze(1) @ at.Jh).squeeze(1)
        sizes = sizes + z.lam.abs().sum(-1)
        primal.append(at.h)
    dual_weight = (sizes / (100.0 * max(p + k, 1))).clamp(min=1.0)
    weight = (z.z.sum(-1) / (100.0 * max(k, 1))).clamp(min=1.0)
    violation = torch.cat(primal, 1).abs().amax(-1) if primal else torch.zeros_like(sizes)
    return Errors(slope.abs().amax(-1) / dual_weight, violation, z.s * z.z, weight)


def measures(at: Derivatives | Values, s: Tensor, mu: Tensor) -> tuple[Tensor, Tensor]:
    """``theta`` and ``phi``, ``(B,)``."""
    theta, phi = at.h.abs().sum(-1), at.f
    if s.shape[1]:
        theta = theta + (at.c + s).abs().sum(-1)
        phi = phi - mu.squeeze(-1) * s.log().sum(-1)
    return theta, phi


def longest(x: Tensor, dx: Tensor, fraction: Tensor) -> Tensor:
    """The longest step, at most 1, that leaves ``x + step dx >= (1 - fraction) x``; ``(B, 1)``."""
    if not x.shape[1]:
        return torch.ones_like(fraction)
    return fraction / torch.maximum((-dx / x).amax(-1, keepdim=True), fraction)


class _Test(NamedTuple):
    """What a trial point is compared with, ``(B,)`` each."""

    theta: Tensor
    phi: Tensor
    slope: Tensor
    rounding: Tensor

    def passes(self, filter_: Filter, theta: Tensor, phi: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        """Whether the trial is taken, and whether as a decrease of phi by Armijo's rule."""
        switch = (self.slope < 0) & (length * (-self.slope).clamp(min=0) ** 2.3 > self.theta**1.1)
        armijo = phi <= self.phi + _ARMIJO * length * self.slope + self.rounding
        better = theta <= (1 - _THETA_MARGIN) * self.theta
        better = better | (phi <= self.phi - _PHI_MARGIN * self.theta + self.rounding)
        descent = switch & (self.theta <= filter_.least)
        good = torch.where(descent, armijo, better) & filter_.accepts(theta, phi - self.rounding)
        return good & theta.isfinite() & phi.isfinite(), descent


class Found(NamedTuple):
    """The end of a search: the new iterate (the old one where ``failed``), derivatives there, the filter."""

    iterate: Iterate
    at: Derivatives
    filter: Filter
    failed: Tensor


def search(
    form: BarrierForm,
    system: NewtonSystem,
    old: Iterate,
    at: Derivatives,
    step: Step,
    fraction: Tensor,
    filter_: Filter,
    error: Tensor,
) -> Found:
    """Find the step to take along ``step``; ``fraction`` (B, 1) is the part of the way to the boundary it may go.

    ``error`` (B,) is that of the barrier problem; where all else fails the full step is taken if that falls well.
    """
    length = longest(old.s, step.s, fraction)
    theta, phi = measures(at, old.s, old.mu)
    slope = (at.gradient * step.y).sum(-1)
    if old.s.shape[1]:
        slope = slope - (old.mu * step.s / old.s).sum(-1)
    test = _Test(theta, phi, slope, 10 * torch.finfo(phi.dtype).eps * phi.abs().clamp(min=1.0))
    y, s = old.y + length * step.y, old.s + length * step.s
    trial = form.values(y)
    good, descent = test.passes(filter_, *measures(trial, s, old.mu), length.squeeze(-1))
    new = _move(old, y, s, step, length, fraction)
    failed = system.failed
    refused = torch.nonzero(~good | failed).flatten()
    if len(refused):
        element = _Element(length, fraction, error, failed, at.h, at.c)
        rest = (take(t, refused) for t in (trial, element, new, old, step, filter_, test))
        some, some_failed, some_descent = _retry(form.take(refused), system.take(refused), *rest)  # type: ignore[arg-type]
        new, descent = put(new, refused, some), descent.index_copy(0, refused, some_descent)
        failed = failed.index_copy(0, refused, some_failed)
    there = form.derivatives(new.y)
    smooth = there.gradient.sum(-1) + there.Jh.sum((1, 2)) + there.Jg.sum((1, 2))
    failed = failed | ~smooth.isfinite()
    if len(refused) or bool(failed.any()):
        new, there = choose(failed, old, new), choose(failed, at, there)
    return Found(new, there, filter_.add(~descent & ~failed, theta, phi), failed)


class _Element(NamedTuple):
    """What the second part of a search needs of each element besides the iterate, the step and the filter."""

    length: Tensor
    fraction: Tensor
    error: Tensor
    lost: Tensor
    h: Tensor
    c: Tensor


def _retry(
    form: BarrierForm,
    system: NewtonSystem,
    trial: Values,
    element: _Element,
    full: Iterate,
    old: Iterate,
    step: Step,
    filter_: Filter,
    test: _Test,
) -> tuple[Iterate, Tensor, Tensor]:
    """For elements that refused the full step: the iterate they take, whether there is none, and descents of phi.

    In order of preference: the step with the constraints linearised from their values at the end of the full one; that
    step halved until it is taken; the full step if it brings the optimality conditions nearer.
    """
    length, fraction = element.length, element.fraction
    theta = measures(trial, full.s, old.mu)[0]
    wanted = (theta >= test.theta) & theta.isfinite()
    h, violation = length * element.h + trial.h, length * (element.c + old.s) + trial.c + full.s
    second = system.step(old.lam, old.mu, h, violation, refine=torch.ones_like(length, dtype=torch.bool))
    second_length = longest(old.s, second.s, fraction)
    best, good, descent = full, torch.zeros_like(wanted), torch.zeros_like(wanted)
    for powers in _ROUNDS:
        size = torch.stack([0.5**power * length for power in powers])
        y, s = old.y + size * step.y, old.s + size * step.s
        corrected = torch.zeros_like(wanted)
        if powers is _ROUNDS[0]:
            y = torch.cat(((old.y + second_length * second.y).unsqueeze(0), y))
            s = torch.cat(((old.s + second_length * second.s).unsqueeze(0), s))
            size = torch.cat((second_length.unsqueeze(0), size))
        values = form.tile(len(size)).values(y.flatten(0, 1))
        values = Values(*(t.unflatten(0, size.shape[:2]) for t in values))
        passed, down = test.passes(filter_, *measures(values, s, old.mu), size.squeeze(-1))
        if powers is _ROUNDS[0]:
            passed[0] &= wanted
        first = passed.to(torch.uint8).argmax(0)
        if powers is _ROUNDS[0]:
            corrected = first == 0
        pick = (first, torch.arange(len(first), device=first.device))
        moved = _move(old, y[pick], s[pick], choose(corrected, second, step), size[pick], fraction)
        found = passed.any(0) & ~good
        best, descent, good = choose(found, moved, best), torch.where(found, down[pick], descent), good | found
        if bool((good | element.lost).all()):
            return best, ~good | element.lost, descent
    nearer = errors(form, form.derivatives(full.y), full).at(old.mu) <= _KKT_DECREASE * element.error
    return best, ~(good | nearer) | element.lost, descent


def _move(old: Iterate, y: Tensor, s: Tensor, step: Step, length: Tensor, fraction: Tensor) -> Iterate:
    """The iterate with multipliers moved along with y and s, each z kept within a factor of mu / s."""
    if not s.shape[1]:
        return Iterate(y, s, old.lam + length * step.lam, old.z, old.mu)
    z = old.z + longest(old.z, step.z, fraction) * step.z
    central = old.mu / s
    z = torch.minimum(torch.maximum(z, 1e-10 * central), 1e10 * central)
    return Iterate(y, s, old.lam + length * step.lam, z, old.mu)
