"""The filter line search of the interior-point method (Wächter & Biegler 2006, sections 2.3 and 2.4), for a batch.

A trial point is taken when it improves the violation ``theta = |h|_1 + |c + s|_1`` or the barrier function
``phi = f - mu sum(log s)`` over the current point and over all pairs in the element's filter, which rules out cycles.
The full step is tried for the whole batch, derivatives included, since most steps are taken; corrections and shorter
steps are tried with values alone, for just the elements that refuse.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ddn_cvx.solvers.nonlinear_barrier import BarrierForm, Derivatives, Values, choose, put, take
from ddn_cvx.solvers.nonlinear_newton import NewtonSystem, Step

CAPACITY = 24
"""Pairs an element's filter holds; the oldest gives way."""
_THETA_MARGIN, _PHI_MARGIN = 1e-5, 1e-8
_ARMIJO = 1e-4
_CORRECTIONS = 2
_HALVINGS = 25
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
    form: BarrierForm, system: NewtonSystem, old: Iterate, at: Derivatives, step: Step, fraction: Tensor, filter_: Filter,
    error: Tensor,
) -> Found:
    """Find the step to take along ``step``; ``fraction`` (B, 1) is the part of the way to the boundary it may go."""
    length = longest(old.s, step.s, fraction)
    theta, phi = measures(at, old.s, old.mu)
    slope = (at.gradient * step.y).sum(-1)
    if old.s.shape[1]:
        slope = slope - (old.mu * step.s / old.s).sum(-1)
    eps = torch.finfo(phi.dtype).eps
    test = _Test(theta, phi, slope, 10 * eps * phi.abs().clamp(min=1.0))
    y = old.y + length * step.y
    trial = form.derivatives(y)
    s = old.s + length * step.s
    new_theta, new_phi = measures(trial, s, old.mu)
    good, descent = test.passes(filter_, new_theta, new_phi, length.squeeze(-1))
    good = good & ~system.failed
    new = _move(old, y, s, step, length, fraction)
    refused = torch.nonzero(~good).flatten()
    failed = torch.zeros_like(good)
    if len(refused):
        some = _Some(form, system, old, step, fraction, filter_, refused, test)
        trial_error = errors(some.form, take(trial, refused), take(new, refused)).at(some.old.mu)
        some.close(trial_error <= _KKT_DECREASE * error[refused], y[refused], s[refused], length[refused])
        some.correct(take(trial, refused), s[refused], at, length[refused])
        some.shorten(length[refused])
        again = some.form.derivatives(some.y)
        finite = again.gradient.sum(-1).isfinite() & again.Jh.sum((1, 2)).isfinite() & again.Jg.sum((1, 2)).isfinite()
        failed[refused] = ~(some.done & finite)
        corrected = _move(some.old, some.y, some.s, some.step, some.length, some.fraction)
        new = put(new, refused, corrected)
        trial = put(trial, refused, again)
        descent[refused] = some.descent
        new, trial = choose(failed, old, new), choose(failed, at, trial)
    return Found(new, trial, filter_.add(~descent & ~failed, theta, phi), failed)


class _Some:
    """The elements that refused the full step; each keeps the first point that is good enough."""

    def __init__(
        self, form: BarrierForm, system: NewtonSystem, old: Iterate, step: Step, fraction: Tensor, filter_: Filter,
        rows: Tensor, test: _Test,
    ):
        self.form, self.system = form.take(rows), system.take(rows)
        self.old, self.filter, self.test = take(old, rows), take(filter_, rows), take(test, rows)
        self.step, self.fraction, self.rows = take(step, rows), fraction[rows], rows
        self.failed = self.system.failed
        self.y, self.s, self.length = self.old.y.clone(), self.old.s.clone(), torch.zeros_like(self.fraction)
        self.done, self.descent = torch.zeros_like(self.failed), torch.zeros_like(self.failed)

    def close(self, good: Tensor, y: Tensor, s: Tensor, length: Tensor) -> None:
        """Let the elements that are ``good`` keep this point."""
        good = good & ~self.failed
        column = good.unsqueeze(-1)
        self.y, self.s = torch.where(column, y, self.y), torch.where(column, s, self.s)
        self.length = torch.where(column, length, self.length)
        self.done = self.done | good

    def correct(self, trial: Derivatives, s: Tensor, at: Derivatives, length: Tensor) -> None:
        """Second-order corrections: constraints linearised from their values at the refused point."""
        h, violation = at.h[self.rows], at.c[self.rows] + self.old.s
        if not h.shape[1] + violation.shape[1]:
            return
        theta = measures(trial, s, self.old.mu)[0]
        wanted = (theta >= self.test.theta) & theta.isfinite() & ~self.done & ~self.failed
        pick = torch.nonzero(wanted).flatten()
        if not len(pick):
            return
        form, system, old = self.form.take(pick), self.system.take(pick), take(self.old, pick)
        test, filter_, fraction = take(self.test, pick), take(self.filter, pick), self.fraction[pick]
        h, violation, first = h[pick], violation[pick], length[pick]
        values, s, scale = Values(trial.f[pick], trial.h[pick], trial.c[pick]), s[pick], first
        for _ in range(_CORRECTIONS):
            h, violation = scale * h + values.h, scale * violation + values.c + s
            step = system.step(old.lam, old.mu, h, violation)
            scale = longest(old.s, step.s, fraction)
            y = old.y + scale * step.y
            values = form.values(y)
            s = old.s + scale * step.s
            good, descent = test.passes(filter_, *measures(values, s, old.mu), first.squeeze(-1))
            good = good & ~self.done[pick]
            rows = pick[good]
            self.y[rows], self.s[rows], self.length[rows] = y[good], s[good], scale[good]
            self.step = Step(*(t.index_copy(0, rows, new[good]) for t, new in zip(self.step, step, strict=True)))
            self.done[rows], self.descent[rows] = True, descent[good]

    def shorten(self, length: Tensor) -> None:
        """Halve the step until it is taken, for just the elements still without one."""
        left = torch.nonzero(~self.done & ~self.failed).flatten()
        for _ in range(_HALVINGS):
            if not len(left):
                return
            length = 0.5 * length
            form, old, step = self.form.take(left), take(self.old, left), take(self.step, left)
            size = length[left]
            y = old.y + size * step.y
            values = form.values(y)
            s = old.s + size * step.s
            test, filter_ = take(self.test, left), take(self.filter, left)
            good, descent = test.passes(filter_, *measures(values, s, old.mu), size.squeeze(-1))
            rows = left[good]
            self.y[rows], self.s[rows], self.length[rows] = y[good], s[good], size[good]
            self.done[rows], self.descent[rows] = True, descent[good]
            left = left[~good]


def _move(old: Iterate, y: Tensor, s: Tensor, step: Step, length: Tensor, fraction: Tensor) -> Iterate:
    """The iterate with multipliers moved along with y and s, each z kept within a factor of mu / s."""
    if not s.shape[1]:
        return Iterate(y, s, old.lam + length * step.lam, old.z, old.mu)
    z = old.z + longest(old.z, step.z, fraction) * step.z
    central = old.mu / s
    z = torch.minimum(torch.maximum(z, 1e-10 * central), 1e10 * central)
    return Iterate(y, s, old.lam + length * step.lam, z, old.mu)
