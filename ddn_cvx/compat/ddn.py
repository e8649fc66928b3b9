"""The node classes of the DDN reference implementation (``ddn.pytorch.node``), ours underneath.

A node is a class that says what is minimised and how it is solved. Names, signatures and shapes are those of the reference:
every input and the output have one leading batch dimension, functions take the inputs first and the output as ``y=``.
What the solver returns is polished, checked and differentiated as in a ``TorchProblem``, so that the gradient is right for
linear and nonlinear constraints, active and inactive ones in one batch, redundant ones, and in single precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ddn_cvx.compat.ddn_response import OwnGradient, Response, answer
from ddn_cvx.declare.capture import Captured
from ddn_cvx.errors import DeclarationError


class AbstractNode:
    """Anything with a solution and a vector-Jacobian product.

    Raises
    ------
    NotImplementedError
        A subclass lacks the method.

    Examples
    --------
    >>> import torch
    >>> from ddn_cvx.compat import ddn
    >>> class Double(ddn.AbstractNode):
    ...     def solve(self, x):
    ...         return 2 * x, None
    ...     def gradient(self, x, y=None, v=None, ctx=None):
    ...         return (2 * v,)
    >>> x = torch.ones(2, 3, requires_grad=True)
    >>> ddn.DeclarativeLayer(Double())(x).sum().backward()
    >>> x.grad[0]
    tensor([2., 2., 2.])
    """

    def solve(self, *xs: Tensor) -> tuple[Tensor, Any]:
        """The output ``(b, ...)`` and a context for ``gradient``, or None."""
        raise NotImplementedError(f"{type(self).__name__} must define solve(*xs), which returns (y, ctx).")

    def gradient(self, *xs: Tensor, y: Tensor | None = None, v: Tensor | None = None, ctx: Any = None) -> Any:
        """The vector-Jacobian product with ``v`` (default ones), a tuple with one entry for each input."""
        raise NotImplementedError(f"{type(self).__name__} must define gradient(*xs, y, v, ctx).")


class AbstractDeclarativeNode(AbstractNode):
    """``y in argmin f(x, y)``. Subclasses define ``objective`` and ``solve``.

    Parameters
    ----------
    eps : float
        Accepted violation of the optimality conditions, if above 1e-6. Active constraints are found by their multipliers,
        not by this number.
    gamma : float, optional
        Damping: derivatives are taken with ``H + gamma I`` for the Hessian H.
    chunk_size : int, optional
        Accepted and without effect: no Jacobian is formed that would have to be cut.

    Raises
    ------
    DeclarationError
        A subclass lacks ``objective``.

    Examples
    --------
    >>> import torch
    >>> from ddn_cvx.compat import ddn
    >>> class Mean(ddn.AbstractDeclarativeNode):
    ...     def objective(self, x, y):
    ...         return (x - y).square().sum(-1)
    ...     def solve(self, x):
    ...         return x.mean(-1, keepdim=True), None
    >>> x = torch.tensor([[1.0, 2.0, 6.0]], requires_grad=True)
    >>> Mean().jacobian(x)[0]
    tensor([[[0.3333, 0.3333, 0.3333]]])
    """

    def __init__(self, eps: float = 1e-12, gamma: float | None = None, chunk_size: int | None = None):
        self.eps, self.gamma, self.chunk_size = eps, gamma, chunk_size

    def objective(self, *xs: Tensor, y: Tensor) -> Tensor:
        """``f``, ``(b,)``."""
        raise DeclarationError(f"{type(self).__name__} must define objective(*xs, y).")

    def gradient(
        self, *xs: Tensor, y: Tensor | None = None, v: Tensor | None = None, ctx: Any = None
    ) -> tuple[Tensor | None, ...]:
        """The vector-Jacobian product with ``v`` (default ones) at ``y`` (default: solved for).

        Returns
        -------
        tuple
            One entry for each input: ``(b, ...)``, or None where it does not require grad.
        """
        out, leaves, wanted = self._traced(xs, y)
        if not wanted:
            return (None,) * len(xs)
        found = torch.autograd.grad(out, [leaves[k] for k in wanted], torch.ones_like(out) if v is None else v.detach())
        return _spread(found, wanted, len(xs))

    def jacobian(self, *xs: Tensor, y: Tensor | None = None, ctx: Any = None) -> tuple[Tensor | None, ...]:
        """The derivative of the output, ``(b, *y.shape[1:], *x.shape[1:])`` for each input that requires grad."""
        out, leaves, wanted = self._traced(xs, y)
        if not wanted:
            return (None,) * len(xs)
        columns = out.flatten(1).unbind(1)
        rows = [
            torch.autograd.grad(column.sum(), [leaves[k] for k in wanted], retain_graph=True, materialize_grads=True)
            for column in columns
        ]
        found = [
            torch.stack([row[i] for row in rows], 1).reshape(*out.shape, *leaves[k].shape[1:]) for i, k in enumerate(wanted)
        ]
        return _spread(found, wanted, len(xs))

    def _traced(self, xs: Sequence[Any], y: Tensor | None) -> tuple[Tensor, list[Any], list[int]]:
        """The output as a function of fresh leaves in the places ``wanted``."""
        if y is None:
            y = answer(self, xs)
        wanted = [k for k, x in enumerate(xs) if isinstance(x, Tensor) and x.requires_grad]
        leaves = [x.detach().requires_grad_() if k in wanted else x for k, x in enumerate(xs)]
        with torch.enable_grad():
            return Response(self, "raise", False)(leaves, y.detach()), leaves, wanted


class EqConstDeclarativeNode(AbstractDeclarativeNode):
    """``y in argmin f(x, y) s.t. h(x, y) = 0``. Subclasses define ``equality_constraints`` besides.

    Parameters
    ----------
    eps, gamma, chunk_size
        See ``AbstractDeclarativeNode``.

    Raises
    ------
    DeclarationError
        A subclass lacks a method.

    Examples
    --------
    >>> import torch
    >>> from ddn_cvx.compat import ddn
    >>> class Sphere(ddn.EqConstDeclarativeNode):
    ...     def objective(self, x, y):
    ...         return (x - y).square().sum(-1)
    ...     def equality_constraints(self, x, y):
    ...         return y.square().sum(-1) - 1
    ...     def solve(self, x):
    ...         return x / x.norm(dim=-1, keepdim=True), None
    >>> ddn.DeclarativeLayer(Sphere())(torch.tensor([[3.0, 4.0]]))
    tensor([[0.6000, 0.8000]])
    """

    def equality_constraints(self, *xs: Tensor, y: Tensor) -> Tensor | None:
        """``h``, ``(b,)`` or ``(b, p)``."""
        raise DeclarationError(f"{type(self).__name__} must define equality_constraints(*xs, y).")


class IneqConstDeclarativeNode(EqConstDeclarativeNode):
    """The same with ``g(x, y) <= 0``. Subclasses define ``inequality_constraints`` and, if any,
    ``equality_constraints``.

    Parameters
    ----------
    eps, gamma, chunk_size
        See ``AbstractDeclarativeNode``.

    Raises
    ------
    DeclarationError
        A subclass lacks a method.

    Examples
    --------
    >>> import torch
    >>> from ddn_cvx.compat import ddn
    >>> class Relu(ddn.IneqConstDeclarativeNode):
    ...     def objective(self, x, y):
    ...         return (x - y).square().sum(-1)
    ...     def inequality_constraints(self, x, y):
    ...         return -y
    ...     def solve(self, x):
    ...         return x.clamp(min=0), None
    >>> ddn.DeclarativeLayer(Relu())(torch.tensor([[3.0, 4.0]]))
    tensor([[3., 4.]])
    """

    def equality_constraints(self, *xs: Tensor, y: Tensor) -> Tensor | None:
        """``h``, ``(b,)`` or ``(b, p)``; None if there are none."""
        return None

    def inequality_constraints(self, *xs: Tensor, y: Tensor) -> Tensor | None:
        """``g``, ``(b,)`` or ``(b, q)``."""
        raise DeclarationError(f"{type(self).__name__} must define inequality_constraints(*xs, y).")


class LinEqConstDeclarativeNode(EqConstDeclarativeNode):
    """``y in argmin f(x, y) s.t. A y = d``, independent of x. Subclasses define ``linear_constraint_parameters``.

    Parameters
    ----------
    eps, gamma, chunk_size
        See ``AbstractDeclarativeNode``.

    Raises
    ------
    DeclarationError
        A subclass lacks a method.

    Examples
    --------
    >>> import torch
    >>> from ddn_cvx.compat import ddn
    >>> class Centred(ddn.LinEqConstDeclarativeNode):
    ...     def objective(self, x, y):
    ...         return (x - y).square().sum(-1)
    ...     def linear_constraint_parameters(self, y):
    ...         return torch.ones(1, 2), torch.zeros(1)
    ...     def solve(self, x):
    ...         return x - x.mean(-1, keepdim=True), None
    >>> ddn.DeclarativeLayer(Centred())(torch.tensor([[3.0, 4.0]]))
    tensor([[-0.5000,  0.5000]])
    """

    def linear_constraint_parameters(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """``A (p, m)`` and ``d (p,)``."""
        raise DeclarationError(f"{type(self).__name__} must define linear_constraint_parameters(y).")

    def equality_constraints(self, *xs: Tensor, y: Tensor) -> Tensor:
        """``A y - d``, ``(b, p)``."""
        A, d = self.linear_constraint_parameters(y)
        return y.flatten(1) @ A.to(y.dtype).mT - d.to(y.dtype)


class GeneralConstDeclarativeNode(IneqConstDeclarativeNode):
    """Both kinds of constraints under the names of the reference's single-instance module, here for a batch of tensors.

    Parameters
    ----------
    eps, gamma, chunk_size
        See ``AbstractDeclarativeNode``.

    Raises
    ------
    DeclarationError
        A subclass lacks a method.

    Examples
    --------
    >>> import torch
    >>> from ddn_cvx.compat import ddn
    >>> class Simplex(ddn.GeneralConstDeclarativeNode):
    ...     def objective(self, x, y):
    ...         return (x - y).square().sum(-1)
    ...     def eq_constraints(self, x, y):
    ...         return y.sum(-1) - 1
    ...     def ineq_constraints(self, x, y):
    ...         return -y
    ...     def solve(self, x):  # right where no entry becomes negative
    ...         return x + (1 - x.sum(-1, keepdim=True)) / x.shape[-1], None
    >>> ddn.DeclarativeLayer(Simplex())(torch.tensor([[0.8, 0.6]]))
    tensor([[0.6000, 0.4000]])
    """

    def eq_constraints(self, *xs: Tensor, y: Tensor) -> Tensor | None:
        """``h``, ``(b,)`` or ``(b, p)``; None if there are none."""
        return None

    def ineq_constraints(self, *xs: Tensor, y: Tensor) -> Tensor | None:
        """``g``, ``(b,)`` or ``(b, q)``; None if there are none."""
        return None

    def equality_constraints(self, *xs: Tensor, y: Tensor) -> Tensor | None:
        """The same as ``eq_constraints``."""
        return self.eq_constraints(*xs, y=y)

    def inequality_constraints(self, *xs: Tensor, y: Tensor) -> Tensor | None:
        """The same as ``ineq_constraints``."""
        return self.ineq_constraints(*xs, y=y)


class NonUniqueDeclarativeNode(AbstractDeclarativeNode):
    """A node with a valley of solutions; the gradient is that of least norm (by the pseudo-inverse of the Hessian).

    Every node here does so where the Hessian is singular; the class is for those who want to say it.

    Parameters
    ----------
    eps, gamma, chunk_size
        See ``AbstractDeclarativeNode``.

    Examples
    --------
    >>> import torch
    >>> from ddn_cvx.compat import ddn
    >>> class Sum(ddn.NonUniqueDeclarativeNode):
    ...     def objective(self, x, y):
    ...         return (x - y.sum(-1, keepdim=True)).square().sum(-1)
    ...     def solve(self, x):
    ...         return torch.cat((x, torch.zeros_like(x)), -1), None
    >>> x = torch.ones(1, 1, requires_grad=True)
    >>> Sum().jacobian(x)[0].flatten()
    tensor([0.5000, 0.5000])
    """


class DeclarativeFunction:
    """``DeclarativeFunction.apply(node, *inputs)`` is ``DeclarativeLayer(node)(*inputs)``.

    Examples
    --------
    >>> import torch
    >>> from ddn_cvx.compat import ddn
    >>> class Mean(ddn.AbstractDeclarativeNode):
    ...     def objective(self, x, y):
    ...         return (x - y).square().sum(-1)
    ...     def solve(self, x):
    ...         return x.mean(-1, keepdim=True), None
    >>> ddn.DeclarativeFunction.apply(Mean(), torch.tensor([[1.0, 2.0, 6.0]]))
    tensor([[3.]])
    """

    @staticmethod
    def apply(problem: AbstractNode, *inputs: Any) -> Tensor:
        """The output ``(b, ...)``."""
        return DeclarativeLayer(problem)(*inputs)


class DeclarativeLayer(nn.Module):
    """A node as a module: ``layer(*xs)`` is the output ``(b, ...)``, differentiable in every input that requires grad.

    A node that overrides ``gradient`` is differentiated by its own method, unchecked. Tensors that the functions of the
    node refer to receive their gradients and are parameters of the layer.

    Parameters
    ----------
    problem : AbstractNode
        The node, an object of a subclass of one of these classes.
    on_failure : "raise" or "nan"
        What to do with elements whose answer violates the optimality conditions, even after polishing.
    stationary : bool
        Accept saddle points and maxima from ``solve``.

    Raises
    ------
    SolverError
        ``solve`` of the node returned something that is not a solution, and ``on_failure="raise"``.

    Examples
    --------
    >>> import torch
    >>> from ddn_cvx.compat import ddn
    >>> class Mean(ddn.AbstractDeclarativeNode):
    ...     def objective(self, x, y):
    ...         return (x - y).square().sum(-1)
    ...     def solve(self, x):
    ...         return x.mean(-1, keepdim=True), None
    >>> ddn.DeclarativeLayer(Mean())(torch.tensor([[1.0, 2.0, 6.0]]))
    tensor([[3.]])
    """

    def __init__(self, problem: AbstractNode, on_failure: Literal["raise", "nan"] = "raise", stationary: bool = False):
        super().__init__()
        self.problem = problem
        self._respond: Response | None = None
        if isinstance(problem, AbstractDeclarativeNode) and not _has_own_gradient(problem):
            self._respond = Response(problem, on_failure, stationary)
            self.captured = Captured(_functions(problem))

    def forward(self, *inputs: Any) -> Tensor:
        """The output ``(b, ...)``."""
        if self._respond is None:
            found: Tensor = OwnGradient.apply(self.problem, *inputs)  # type: ignore[no-untyped-call]  # torch's
            return found
        return self._respond(inputs, answer(self.problem, inputs))


def _functions(node: AbstractDeclarativeNode) -> dict[str, object]:
    names = ("objective", "equality_constraints", "inequality_constraints", "linear_constraint_parameters")
    return {name: getattr(node, name) for name in names if hasattr(node, name)}


def _has_own_gradient(node: AbstractNode) -> bool:
    return getattr(node.gradient, "__func__", None) is not AbstractDeclarativeNode.gradient


def _spread(found: Sequence[Tensor], places: Sequence[int], count: int) -> tuple[Tensor | None, ...]:
    out: list[Tensor | None] = [None] * count
    for place, value in zip(places, found, strict=True):
        out[place] = value
    return tuple(out)
