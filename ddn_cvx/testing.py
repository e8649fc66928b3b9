"""Conformance checks: a new layer, cone or solver is tested in one line.

Each check raises ``AssertionError`` with what failed, and returns nothing. They compare with answers that the object
under test did not produce: the optimality conditions, finite differences, one element solved at a time.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ddn_cvx.cones import Cone, Product
from ddn_cvx.layer import DeclarativeLayer
from ddn_cvx.linalg.pattern import Pattern
from ddn_cvx.program.conic import ConicData, ConicProgram
from ddn_cvx.program.instance import Instance
from ddn_cvx.solution import Status
from ddn_cvx.solver_for import Declared
from ddn_cvx.solvers.base import Solver, Workspace


def check_layer(
    layer: DeclarativeLayer, *params: Tensor, tolerance: float = 1e-6, second_order: bool = True, step: float = 1e-5
) -> None:
    """Optimality, first and second derivatives, and independence of the batch, at one batch of parameters.

    Derivatives with respect to the layer's own weights are checked where they are float64, too.

    Parameters
    ----------
    layer : DeclarativeLayer
        Of any kind of problem.
    *params : Tensor
        Float64 parameters ``(*batch, *shape)``, at a point where the solution is regular.
    tolerance : float
        Accepted relative KKT residual; gradients are accepted at 10 times the square root of it against finite
        differences.
    second_order : bool
        Also run ``gradgradcheck``.
    step : float
        Step of the finite differences.

    Raises
    ------
    AssertionError
        Names the check that failed.

    Examples
    --------
    >>> import cvxpy as cp, torch, ddn_cvx as ddn
    >>> from ddn_cvx.testing import check_layer
    >>> x, p = cp.Variable(2), cp.Parameter(2)
    >>> layer = ddn.DeclarativeLayer(cp.Problem(cp.Minimize(cp.sum_squares(x - p)), [cp.norm(x) <= 1]), [p], x)
    >>> check_layer(layer, torch.tensor([[3.0, 4.0], [0.1, 0.2]], dtype=torch.float64))
    """
    solution = layer.solve(*params)
    assert bool((solution.status == int(Status.SOLVED)).all()), f"not solved: {solution.statuses}"
    for name in ("primal_residual", "dual_residual", "gap"):
        worst = getattr(solution, name).max() if solution.status.numel() else torch.zeros(())
        assert float(worst) <= tolerance, f"{name} is {float(worst):.1e}, above {tolerance:.1e}"
    _check_batch(layer, params)
    inputs = tuple(p.detach().clone().requires_grad_() for p in params)
    accept = 10 * tolerance**0.5

    weights = tuple(w for w in layer.parameters() if w.requires_grad and w.dtype == torch.float64)

    def outputs(*args: Tensor) -> tuple[Tensor, ...]:
        return _outputs(layer, *args[: len(inputs)])  # the weights are perturbed where they are

    torch.autograd.gradcheck(outputs, (*inputs, *weights), eps=step, atol=accept, rtol=accept)
    if second_order:
        torch.autograd.gradgradcheck(outputs, (*inputs, *weights), eps=step, atol=accept, rtol=accept)


def _outputs(layer: DeclarativeLayer, *params: Tensor) -> tuple[Tensor, ...]:
    return tuple(tree_leaves(layer(*params)))


def _check_batch(layer: DeclarativeLayer, params: tuple[Tensor, ...]) -> None:
    """The batch gives what its elements give one by one."""
    arguments = layer.node.arguments if isinstance(layer.node, Declared) else None
    if arguments is not None and arguments.declared is None:
        shapes = [p.shape[1:] for p in params]  # dimension 0 is the batch
    else:
        shapes = [torch.Size(s.shape) for s in layer.node.parameters]
    leading = torch.broadcast_shapes(*(p.shape[: p.ndim - len(s)] for p, s in zip(params, shapes, strict=True)))
    whole = _outputs(layer, *params)
    flat = [p.expand((*leading, *s)).reshape((leading.numel(), *s)) for p, s in zip(params, shapes, strict=True)]
    for i in range(leading.numel()):
        single = _outputs(layer, *(p[i : i + 1] for p in flat))
        for one, many in zip(single, whole, strict=True):
            other = many.reshape((leading.numel(), *one.shape[1:]))[i]
            assert torch.allclose(one[0], other, rtol=1e-7, atol=1e-9), f"element {i} differs from its solve alone"


def check_node(
    node: nn.Module,
    *inputs: Tensor,
    reference: Tensor | tuple[Tensor, ...] | None = None,
    tolerance: float = 1e-7,
    second_order: bool = True,
    step: float = 1e-5,
) -> None:
    """Like ``check_layer`` for a module that has layers inside: answers, derivatives, dtype, batches of 0, 1 and N.

    Parameters
    ----------
    node : torch.nn.Module
        What is checked.
    *inputs : Tensor
        Float64, dimension 0 is the batch; at a point where the node is differentiable.
    reference : Tensor or tuple of Tensor, optional
        The right outputs.
    tolerance : float
        Accepted difference from the reference, relative to 1 and the output.
    second_order : bool
        Also run ``gradgradcheck``.
    step : float
        Step of the finite differences.

    Raises
    ------
    AssertionError
        Names the check that failed.

    Examples
    --------
    >>> import torch
    >>> from ddn_cvx.nodes import LpSphere
    >>> from ddn_cvx.testing import check_node
    >>> x, r = torch.tensor([[3.0, 4.0], [1.0, 0.2]], dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    >>> check_node(LpSphere(2, p=2), x, r, reference=x / x.norm(dim=-1, keepdim=True))
    """

    def outputs(*args: Tensor) -> tuple[Tensor, ...]:
        return tuple(tree_leaves(node(*args)))

    whole = [out.detach() for out in outputs(*inputs)]
    expected = whole if reference is None else tree_leaves(reference)
    assert len(whole) == len(expected), f"{len(whole)} outputs, and {len(expected)} in the reference"
    for out, right in zip(whole, expected, strict=True):
        worst = float(((out - right).abs() / (1 + right.abs())).max())
        assert worst <= tolerance, f"differs from the reference by {worst:.1e}"
    for count in (0, 1):
        for out, right in zip(outputs(*(t[:count] for t in inputs)), whole, strict=True):
            assert torch.allclose(out, right[:count], rtol=1e-6, atol=1e-8), f"a batch of {count} differs from the whole"
    for out, right in zip(outputs(*(t.float() for t in inputs)), whole, strict=True):
        assert out.dtype == torch.float32, f"float32 inputs give {out.dtype}"
        assert torch.allclose(out.double(), right, rtol=1e-3, atol=1e-4), "float32 inputs give another answer"
    variables = tuple(t.detach().clone().requires_grad_() for t in inputs)
    torch.autograd.gradcheck(outputs, variables, eps=step, atol=1e-5, rtol=1e-4)
    if second_order:
        torch.autograd.gradgradcheck(outputs, variables, eps=step, atol=1e-4, rtol=1e-3)


def check_cone(cone: Cone, v: Tensor, tolerance: float = 1e-6) -> None:
    """Moreau's decomposition, the derivative against finite differences, and the spectrum against the derivative.

    Parameters
    ----------
    cone : Cone
        What is checked.
    v : Tensor
        Float64 points ``(k, cone.dim)`` away from the kinks of the projection.
    tolerance : float
        Accepted error of what holds exactly; finite differences have a thousand of their steps.

    Raises
    ------
    AssertionError
        Names the property that failed.

    Examples
    --------
    >>> import torch
    >>> from ddn_cvx.cones import SecondOrder
    >>> from ddn_cvx.testing import check_cone
    >>> points = torch.randn(20, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    >>> check_cone(SecondOrder(3), points)
    """
    p = cone.project(v)
    scale = 1 + v.abs().amax(-1)
    assert bool((((p * (v - p)).sum(-1)).abs() <= tolerance * scale**2).all()), "projection and residual are not orthogonal"
    again = cone.project(p)
    assert bool(((again - p).abs().amax(-1) <= tolerance * scale).all()), "projecting twice is not projecting once"
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(v.shape, generator=generator, dtype=v.dtype)
    step = 1e-6
    difference = (cone.project(v + step * h) - cone.project(v - step * h)) / (2 * step)
    derivative = cone.derivative(v, h)
    assert torch.allclose(derivative, difference, atol=1e3 * step, rtol=1e3 * step), (
        "derivative differs from finite differences"
    )
    spectrum = cone.spectrum(v)
    rebuilt = spectrum.unrotate(spectrum.values.unsqueeze(-1) * spectrum.rotate(h.unsqueeze(-1))).squeeze(-1)
    assert torch.allclose(rebuilt, derivative, atol=tolerance, rtol=tolerance), "spectrum does not reproduce the derivative"


def check_solver(solver: Solver, tolerance: float = 1e-6) -> None:
    """Small programs over the cones the solver supports: right answers, infeasible and unbounded ones recognised.

    Parameters
    ----------
    solver : Solver
        Of conic programs.
    tolerance : float
        Accepted relative KKT residual.

    Raises
    ------
    AssertionError
        Names the program that failed.

    Examples
    --------
    >>> import ddn_cvx as ddn
    >>> from ddn_cvx.testing import check_solver
    >>> check_solver(ddn.Clarabel())
    """
    workspace = Workspace()
    for name, program, data in _programs():
        if solver.refusal(program) is not None:
            continue
        raw = solver.solve(program, data, workspace)
        assert bool((raw.status == int(Status.SOLVED)).all()), f"{name}: {[Status(int(s)).name for s in raw.status]}"
        found = Instance(program, data).residuals(raw.x, raw.y, raw.s)
        assert float(found.worst.max()) <= tolerance, f"{name}: KKT residual {float(found.worst.max()):.1e}"
    for name, A, b, q in (
        ("infeasible", [[1.0], [-1.0]], [-1.0, -1.0], 1.0),
        ("unbounded", [[1.0], [1.0]], [1.0, 2.0], 1.0),
    ):
        program = ConicProgram(_empty(1), Pattern.of(torch.tensor(A).numpy()), Product(0, 2, (), (), 0, ()))
        values = torch.tensor([[row[0] for row in A]], dtype=torch.float64)
        data = ConicData(values.new_zeros(1, 0), values.new_full((1, 1), q), values, values.new_tensor([b]))
        raw = solver.solve(program, data, workspace)
        assert int(raw.status[0]) != int(Status.SOLVED), f"an {name} program was reported as solved"


def _empty(n: int) -> Pattern:
    import scipy.sparse as sp

    return Pattern.of(sp.csc_array((n, n)))


def _programs() -> list[tuple[str, ConicProgram, ConicData]]:
    """Strictly feasible, bounded programs: minimise a linear or quadratic function over ``b - x in K`` for each cone."""
    import scipy.sparse as sp

    generator = torch.Generator().manual_seed(0)
    out = []
    for name, cones in (
        ("zero and nonnegative", Product(1, 4, (), (), 0, ())),
        ("second-order", Product(0, 0, (4,), (), 0, ())),
        ("semidefinite", Product(0, 0, (), (3,), 0, ())),
        ("exponential", Product(0, 0, (), (), 1, ())),
        ("power", Product(0, 0, (), (), 0, ((0.3, 0.7),))),
    ):
        n = cones.size
        P, A = Pattern.of(sp.eye_array(n)), Pattern.of(sp.eye_array(n))
        program = ConicProgram(P, A, cones)
        ones = torch.ones(2, n, dtype=torch.float64)
        q = torch.randn(2, n, generator=generator, dtype=torch.float64)
        b = torch.randn(2, n, generator=generator, dtype=torch.float64)
        out.append((name, program, ConicData(ones, q, ones, b)))
    return out
