"""The Newton step of the interior-point method: inertia, dependent rows, and the equations it solves."""

from __future__ import annotations

import torch
from torch import Tensor

from ddn_cvx.program.nonlinear import NonlinearProgram, Theta
from ddn_cvx.solvers.nonlinear_barrier import BarrierForm
from ddn_cvx.solvers.nonlinear_newton import NewtonSystem, Step

F64 = torch.float64
B, N, P, M = 12, 7, 3, 4


def build(dependent: bool) -> tuple[BarrierForm, NewtonSystem, Tensor, Tensor]:
    """Linear rows, an upper bound, and an indefinite Hessian; in every third element two equalities may be the same."""
    g = torch.Generator().manual_seed(0)
    Jh, Jg = torch.randn(B, P, N, generator=g, dtype=F64), torch.randn(B, M, N, generator=g, dtype=F64)
    if dependent:
        Jh[::3, 1] = Jh[::3, 0]
    H = 3 * torch.randn(B, N, N, generator=g, dtype=F64)

    def evaluate(y: Tensor, theta: Theta) -> tuple[Tensor, Tensor, Tensor]:
        H, Jh, Jg = theta.tensors
        column = y.unsqueeze(-1)
        return 0.5 * (y * (H @ column).squeeze(-1)).sum(-1), (Jh @ column).squeeze(-1) - 1, (Jg @ column).squeeze(-1)

    node = NonlinearProgram(N, P, M, evaluate, lambda theta: (torch.full((N,), -torch.inf), torch.ones(N, dtype=F64)))
    form = BarrierForm(node, Theta((H, Jh, Jg), (True, True, True)), torch.zeros(B, N, dtype=F64))
    s, z = torch.rand(B, M + N, generator=g, dtype=F64) + 0.1, torch.rand(B, M + N, generator=g, dtype=F64)
    none = torch.zeros(B, dtype=F64)
    lam = torch.ones(B, P, dtype=F64)
    system = NewtonSystem(form, form.first, form.hessian(form.start, lam, z), s, z, none, none)
    return form, system, lam, torch.full((B, 1), 0.1, dtype=F64)


def residuals(form: BarrierForm, system: NewtonSystem, step: Step, lam: Tensor, mu: Tensor) -> list[Tensor]:
    at, s, z = form.first, system.s, system.z
    rows = torch.cat((at.Jg, form.bound_rows(B)), 1)
    slope = at.gradient + torch.einsum("bk,bkn->bn", lam, at.Jh) + torch.einsum("bk,bkn->bn", z, rows)
    curved = torch.einsum("bij,bj->bi", system.H, step.y) + system.shift.unsqueeze(-1) * step.y
    pulled = torch.einsum("bk,bkn->bn", step.lam, at.Jh) + torch.einsum("bk,bkn->bn", step.z, rows)
    return [
        slope + curved + pulled,
        at.h + torch.einsum("bkn,bn->bk", at.Jh, step.y),
        at.c + s + step.s + torch.einsum("bkn,bn->bk", rows, step.y),
        s * z + s * step.z + z * step.s - mu,
    ]


def test_the_step_solves_the_linearised_conditions() -> None:
    form, system, lam, mu = build(dependent=False)
    assert (system.shift > 0).any() and (system.dual_shift == 0).all()
    for refine in (torch.zeros_like(mu).bool(), torch.ones_like(mu).bool()):
        step = system.step(lam, mu, form.first.h, form.first.c + system.s, refine)
        assert max(float(r.abs().max()) for r in residuals(form, system, step, lam, mu)) < 1e-8


def test_every_element_has_the_inertia_of_a_minimum() -> None:
    for dependent in (False, True):
        form, system, _, _ = build(dependent)
        assert system.factor.correct_inertia.all() and not system.failed.any()
        assert ((system.dual_shift > 0) == (dependent & (torch.arange(B) % 3 == 0))).all()
        W = torch.diag_embed(system.W)
        rows = torch.cat((form.first.Jg, form.bound_rows(B)), 1)
        condensed = system.H + rows.mT @ W @ rows + torch.diag_embed(system.shift.unsqueeze(-1).expand(B, N))
        tangent = torch.linalg.svd(form.first.Jh).Vh[:, P:]
        assert (torch.linalg.eigvalsh(tangent @ condensed @ tangent.mT) > 0).all()


def test_some_elements_alone() -> None:
    form, system, lam, mu = build(dependent=False)
    rows = torch.tensor([7, 2])
    refine = (torch.arange(B) % 2 == 0).unsqueeze(-1)
    whole = system.step(lam, mu, form.first.h, form.first.c + system.s, refine)
    violation = (form.first.c + system.s)[rows]
    part = system.take(rows).step(lam[rows], mu[rows], form.first.h[rows], violation, refine[rows])
    for a, b in zip(whole, part, strict=True):
        torch.testing.assert_close(a[rows], b, rtol=1e-9, atol=1e-10)
