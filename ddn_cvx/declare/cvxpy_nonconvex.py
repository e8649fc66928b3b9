"""A cvxpy problem that need not be convex as a node: a nonlinear program and its outputs, all plain torch.

The problem is rewritten in smooth form (:mod:`ddn_cvx.declare.smooth_form`). Objective and constraints are compiled together
into one function of the batch; derivatives of every order come from autograd through it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import cvxpy as cp
import numpy as np
import scipy.sparse as sp
import torch
from cvxpy.expressions.expression import Expression
from cvxpy.expressions.leaf import Leaf
from torch import Tensor

from ddn_cvx.declare.as_declared import AsDeclared
from ddn_cvx.declare.atoms import compile_expression, compile_expressions, is_compact, specify
from ddn_cvx.declare.atoms_evaluator import Evaluator
from ddn_cvx.declare.free_entries import FreeEntries
from ddn_cvx.declare.rules import distinct_names
from ddn_cvx.declare.smooth_form import Bound, Row, named
from ddn_cvx.declare.smooth_form_cones import CONSTRAINTS, smooth
from ddn_cvx.errors import DeclarationError
from ddn_cvx.linalg.blocks import per_element
from ddn_cvx.program.nonlinear import NonlinearProgram, Theta
from ddn_cvx.program.optimality import State

Values = Mapping[int, Tensor]
STRAY = 1e-4
"""Relative size of what finite differences may leave outside a structure."""


class NonconvexProblem:
    """Any problem of real, continuous variables; holds no values and no cvxpy objects that matter.

    A variable starts from its ``value``, if it has one when the problem is declared. Otherwise its entries start at fixed,
    irregular points: between 1/4 and 3/4 of the way from the lower to the upper bound; 1/2 to 3/2 inside a single bound;
    between 1/4 and 3/4 where there is none. Where some function has no value or no slope at that point, variables without
    a value start from ones (square matrices from the identity).

    Parameters
    ----------
    problem : cvxpy.Problem
    parameters : sequence of cvxpy.Parameter
        All parameters of the problem, in the order of the layer's arguments.
    variables : sequence of cvxpy.Variable
        The outputs: variables of the problem, or ``constraint.dual_variables[i]``.
    reason : str
        Why the problem is not convex, for messages.

    Raises
    ------
    DeclarationError
        A variable is complex, integer or boolean, or an atom or constraint has no smooth form.
    """

    stationary = False

    def __init__(
        self,
        problem: cp.Problem,
        parameters: Sequence[cp.Parameter],
        variables: Sequence[cp.Variable],
        reason: str = "",
    ):
        _check(problem)
        form = smooth(problem)
        self.reason = reason
        self.sign = -1.0 if isinstance(problem.objective, cp.Maximize) else 1.0
        self.parameters = tuple(specify(p) for p in parameters)
        self.declared = AsDeclared(problem)
        self._inputs = [_Input(p) for p in parameters]
        own, auxiliary = problem.variables(), [a.variable for a in form.auxiliaries]
        self._names = distinct_names(own)
        self._entries = FreeEntries([*own, *auxiliary])
        self._functions = _Together(
            [form.objective, *(r.expression for r in form.equalities + form.inequalities)], [*parameters, *own, *auxiliary]
        )
        self._equalities, self._inequalities = ([_Multiplier(r) for r in g] for g in (form.equalities, form.inequalities))
        self._bounds = [_Bounded(b, parameters) for b in form.bounds]
        self._sizes = {v.id: v.size for v in (*own, *auxiliary)}
        self._starts = [(v.id, *_start(v)) for v in own]
        known: list[Leaf] = [*parameters, *own]
        self._initial = []
        for a in form.auxiliaries:
            self._initial.append((a.variable.id, tuple(a.variable.shape), _compiled(a.initial, known)))
            known.append(a.variable)
        self._dual_of = [
            [(d.id, tuple(d.shape)) for d in c.dual_variables if d.id in form.duals] for c in problem.constraints
        ]
        multipliers = [r.multiplier for r in form.equalities + form.inequalities]
        multipliers += [b.multiplier for b in form.bounds if b.multiplier is not None]
        self._duals = {
            key: (_compiled(form.duals[key], [*known, *multipliers]), shape, form.duals[key].ndim)
            for of in self._dual_of
            for key, shape in of
        }
        self._cones = [(*(_compiled(part, [*known, *multipliers]) for part in cone), cone[0].ndim) for cone in form.cones]
        self._outputs = [self._output(k, v) for k, v in enumerate(variables)]
        self.output_shapes = [(tuple(v.shape), False) for v in variables]
        self.n = self._entries.n
        p, m = (sum(row.size for row in group) for group in (self._equalities, self._inequalities))
        self.sizes = (self.n, p, m)
        visible = torch.arange(self.n) < FreeEntries(own).n
        box = self._box if self._bounds else None
        self._program = NonlinearProgram(self.n, p, m, self._evaluate, box, visible=visible)

    def _output(self, k: int, variable: cp.Variable) -> int:
        if variable.id not in self._names.values() and variable.id not in self._duals:
            raise DeclarationError(
                f"variables[{k}] ({variable.name()!r}) is the dual variable of an equality of complex expressions, which a "
                "problem that is not DCP does not have; ask for a primal variable instead."
            )
        return int(variable.id)

    # ---------------------------------------------------------------- what a call needs

    def theta(self, values: Sequence[Tensor], device: torch.device) -> Theta:
        """Parameters ``(B, *shape)`` as real tensors; differentiable."""
        parts = [part for value, given in zip(values, self._inputs, strict=True) for part in given.split(value)]
        return Theta(tuple(parts), (True,) * len(parts))

    def program(self, theta: Theta, layout: object = None) -> NonlinearProgram:
        """The program, the same for all parameters."""
        return self._program

    def admissible(self, theta: Theta, batch: int) -> Tensor:
        """Whether the parameters have the attributes they were declared with, ``(B,)`` bool."""
        like = torch.zeros(batch, dtype=torch.float64, device=theta.tensors[0].device if theta.tensors else None)
        return self.declared.admissible(self._given(theta), like)

    def violation(self, y: Tensor, f: Tensor, theta: Theta, tolerance: float) -> Tensor:
        """The largest violation, relative, of the problem as declared, ``(B,)``; an objective other than ``f`` is one."""
        _, worst = self.declared({**self._given(theta), **self._variables(y)}, self.sign * f, tolerance)
        return worst

    def outside(self, state: State, theta: Theta, ok: Tensor) -> Tensor:
        """How far multipliers of second-order cones are from the dual cone, relative, ``(B,)``; zero for failed elements.

        At the apex of a cone the smooth form is stationary also where the declared problem descends; this tells.
        """
        worst = torch.zeros_like(state.y[:, 0])
        if not self._cones:
            return worst
        values = self._multiplied(state, theta, ok)
        for pull, length, ndim in self._cones:
            inner, outer = (_batched(part(values), ndim, len(worst)).reshape(len(worst), -1) for part in (pull, length))
            worst = torch.maximum(worst, ((outer - inner) / (1.0 + outer)).amax(1))
        return torch.where(ok, worst, 0.0)

    def start(self, theta: Theta, layout: object, like: Tensor) -> Tensor:
        """Where the solver starts, ``(B, n)``."""
        with torch.no_grad():
            first, second = (self._start(theta, like, choice) for choice in (0, 1))
        lam, mu = (like.new_ones(len(like), k) for k in (self._program.p, self._program.m))
        slope = self._program.gradient(first, theta.detach(), lam, mu)
        with torch.no_grad():
            f, h, g = self._program.values(first, theta)
        usable = torch.isfinite(torch.cat((f.unsqueeze(1), h, g, slope), 1)).all(1, keepdim=True)
        return torch.where(usable, first, second)

    def recover(self, state: State, theta: Theta, ok: Tensor) -> dict[str, Tensor]:
        """The outputs ``(B, *shape)`` in order; differentiable."""
        values = self._entries.unpack(state.y)
        if self._duals and any(key in self._duals for key in self._outputs):
            values |= self._dual_values(state, theta, ok, set(self._outputs))
        return {str(k): values[key] for k, key in enumerate(self._outputs)}

    def unpack(self, y: Tensor) -> dict[str, Tensor]:
        """All declared variables."""
        values = self._entries.unpack(y)
        return {name: values[key] for name, key in self._names.items()}

    def duals(self, state: State, theta: Theta, ok: Tensor) -> tuple[tuple[Tensor, ...], ...]:
        """For each constraint as declared, its dual variables."""
        found = self._dual_values(state, theta, ok, set(self._duals))
        return tuple(tuple(found[key] for key, _ in of) for of in self._dual_of)

    # ---------------------------------------------------------------- plain torch

    def _given(self, theta: Theta) -> dict[int, Tensor]:
        rest = iter(theta.tensors)
        return {given.key: given.join(rest) for given in self._inputs}

    def _variables(self, y: Tensor) -> dict[int, Tensor]:
        return self._entries.unpack(y)

    def _evaluate(self, y: Tensor, theta: Theta) -> tuple[Tensor, Tensor, Tensor]:
        f, *rows = self._functions({**self._given(theta), **self._variables(y)}, len(y))
        k = len(self._equalities)
        h, g = (torch.cat(group, 1) if group else y[:, :0] for group in (rows[:k], rows[k:]))
        return self.sign * f.sum(1), h, g

    def _box(self, theta: Theta) -> tuple[Tensor, Tensor]:
        given = self._given(theta)
        like = theta.tensors[0] if theta.tensors else torch.zeros(1, dtype=torch.float64)
        sides = []
        for side in (-1, 1):
            full = {
                key: torch.full((len(like), size), side * torch.inf, dtype=torch.float64, device=like.device)
                for key, size in self._sizes.items()
            }
            for bound in self._bounds:
                if bound.side == side:
                    full[bound.key] = bound.tighten(full[bound.key], given)
            sides.append(self._entries.pack(full))
        return sides[0], sides[1]

    def _start(self, theta: Theta, like: Tensor, choice: int) -> Tensor:
        lower, upper = self._program.bounds(theta, like)
        low, high = (self._entries.unpack(t) for t in (lower, upper))
        values = dict(self._given(theta))
        for key, known, candidates in self._starts:
            wanted = candidates[choice].to(like.device)
            if not known and choice == 0:
                wanted = _between(wanted, low[key], high[key])
            values[key] = wanted.expand(len(like), *wanted.shape[-(candidates[0].ndim) :] if candidates[0].ndim else ())
            values[key] = values[key].clamp(low[key], high[key])
        for key, shape, initial in self._initial:
            value = initial(values)
            values[key] = torch.nan_to_num(value, nan=1.0).expand(len(like), *shape).clamp(low[key], high[key])
        return self._entries.pack(values)

    def _dual_values(self, state: State, theta: Theta, ok: Tensor, wanted: set[int]) -> dict[int, Tensor]:
        values, batch = self._multiplied(state, theta, ok), len(state.y)
        return {
            key: _batched(evaluate(values), ndim, batch).reshape(batch, *shape)
            for key, (evaluate, shape, ndim) in self._duals.items()
            if key in wanted
        }

    def _multiplied(self, state: State, theta: Theta, ok: Tensor) -> dict[int, Tensor]:
        """Parameters, variables and the multipliers of rows and bounds, by id."""

        # Where an element failed, the expressions are evaluated at ones: their derivatives at zero may be infinite.
        def safe(t: Tensor) -> Tensor:
            return torch.where(per_element(ok, t), t, 1.0)

        theta = Theta(tuple(safe(t) for t in theta.tensors), theta.batched)
        y, lam, mu, z = (safe(t) for t in state)
        values = {**self._given(theta), **self._variables(y)}
        for rows, flat in ((self._equalities, lam), (self._inequalities, mu)):
            parts = flat.split([row.size for row in rows], 1)
            values |= {row.key: part.reshape(len(y), *row.shape) for row, part in zip(rows, parts, strict=True)}
        if self._bounds:
            lower, upper = self._program.bounds(theta, y)
            forces, low, high = (self._entries.unpack(t) for t in (z, lower, upper))
            for bound in self._bounds:
                if bound.multiplier is not None:
                    tightest = (low if bound.side < 0 else high)[bound.key]
                    values[bound.multiplier] = bound.force(forces[bound.key], tightest, values)
        return values


def _compiled(expression: Expression, leaves: Sequence[Leaf]) -> Evaluator:
    """Of sparse parameters the entries are given."""
    return compile_expression(expression, leaves, compact=True)


class _Together:
    """Expressions evaluated together, each ``(B, size)``."""

    def __init__(self, expressions: Sequence[Expression], leaves: Sequence[Leaf]):
        self._every = compile_expressions(expressions, leaves, compact=True)
        self._ndims = [e.ndim for e in expressions]

    def __call__(self, values: Values, batch: int) -> list[Tensor]:
        pairs = zip(self._every.every(values), self._ndims, strict=True)
        return [_batched(value, ndim, batch).reshape(batch, -1) for value, ndim in pairs]


class _Input:
    """A parameter between its value ``(B, *shape)``, of a sparse one its entries, and the real tensors of theta."""

    def __init__(self, parameter: cp.Parameter):
        a = parameter.attributes
        self.key, self.is_complex = parameter.id, parameter.is_complex()
        matrix = parameter.ndim == 2
        self.symmetric = matrix and any(a[k] for k in ("symmetric", "PSD", "NSD", "hermitian"))
        self.mask: Tensor | None = None
        if (a["diag"] or a["sparsity"]) and not is_compact(parameter):
            pattern = np.zeros(parameter.shape)
            pattern[np.diag_indices(parameter.shape[0]) if a["diag"] else parameter.sparse_idx] = 1.0
            self.mask = torch.from_numpy(pattern)

    def split(self, value: Tensor) -> list[Tensor]:
        """Symmetric ones are averaged with their transpose, so that a gradient is that of the symmetric argument; NaN in
        elements that do not have the structure they were declared with."""
        given = value
        if self.symmetric:
            value = (value + value.mH) / 2
        if self.mask is not None:
            value = value * self.mask.to(value.device)
        if value is not given and value.numel():
            with torch.no_grad():
                off, size = ((t.abs().flatten(1).amax(1)) for t in (given - value, value))
                stray = off > STRAY * (1.0 + size)
            value = torch.where(per_element(stray, value), torch.nan, value)
        return [value.real, value.imag] if self.is_complex else [value]

    def join(self, parts: Any) -> Tensor:
        """The value again."""
        real = next(parts)
        return torch.complex(real, next(parts)) if self.is_complex else real


class _Multiplier:
    """Where in ``lam`` or ``mu`` the multiplier of a row is."""

    def __init__(self, row: Row):
        self.key, self.shape, self.size = row.multiplier.id, tuple(row.multiplier.shape), row.multiplier.size


class _Bounded:
    """A bound on entries of a variable, evaluated at the parameters."""

    def __init__(self, bound: Bound, parameters: Sequence[cp.Parameter]):
        self.key, self.side = bound.variable.id, bound.side
        self.multiplier = None if bound.multiplier is None else bound.multiplier.id
        self._shape, self._ndim = bound.places.shape, bound.value.ndim
        self._value = _compiled(bound.value, parameters)
        self._places = torch.from_numpy(bound.places.reshape(-1).copy())

    def _at(self, values: Values, batch: int) -> Tensor:
        value = _batched(self._value(values).to(torch.float64), self._ndim, batch)
        padded = value.reshape(batch, *(1,) * (len(self._shape) - self._ndim), *value.shape[1:])
        return padded.expand(batch, *self._shape).reshape(batch, -1)

    def tighten(self, full: Tensor, values: Values) -> Tensor:
        """The bounds on all entries ``(B, size)``, with this one."""
        value, places = self._at(values, len(full)).to(full.device), self._places.to(full.device)
        alone = torch.full_like(full, self.side * torch.inf).index_copy(1, places, value)
        return torch.maximum(full, alone) if self.side < 0 else torch.minimum(full, alone)

    def force(self, z: Tensor, tightest: Tensor, values: Values) -> Tensor:
        """Its multiplier: that of the bound, unless another bound is tighter."""
        batch, places = len(z), self._places.to(z.device)
        own = self._at(values, batch).to(z.device)
        pushed, limit = (t.reshape(batch, -1).index_select(1, places) for t in (z, tightest))
        mine = own <= limit if self.side > 0 else own >= limit
        return torch.where(mine, (self.side * pushed).clamp(min=0), 0.0).reshape(batch, *self._shape)


def _batched(value: Tensor, ndim: int, batch: int) -> Tensor:
    """``(B, *shape)``, also of what does not depend on the batch."""
    return value.expand(batch, *value.shape) if value.ndim == ndim else value.expand(batch, *value.shape[1:])


def _start(variable: cp.Variable) -> tuple[bool, tuple[Tensor, Tensor]]:
    """Whether the user gave a value, and two starting points; without one the first is a part of the way between bounds."""
    value = variable.value_sparse if variable.attributes["sparsity"] else variable.value
    if value is not None:
        dense = value.toarray() if sp.issparse(value) else np.asarray(value)
        given = torch.from_numpy(np.array(dense, dtype=np.float64).reshape(variable.shape))
        return True, (given, given)
    steps = np.arange(1, variable.size + 1) * (5**0.5 - 1) / 2
    fractions = np.reshape(0.25 + 0.5 * (steps - np.floor(steps)), variable.shape)
    ones = np.ones(variable.shape)
    if variable.ndim == 2 and variable.shape[0] == variable.shape[1]:
        ones = np.eye(variable.shape[0])
        if variable.attributes["PSD"] or variable.attributes["NSD"]:
            sign = 1.0 if variable.attributes["PSD"] else -1.0
            fractions, ones = sign * (fractions + len(ones) * ones), sign * ones
    return False, (torch.from_numpy(fractions), torch.from_numpy(ones))


def _between(fraction: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """A point that part of the way from one bound to the other; twice it inside a single one, it itself without any."""
    has_lower, has_upper = lower.isfinite(), upper.isfinite()
    low, high = (torch.where(has, t, 0.0) for has, t in ((has_lower, lower), (has_upper, upper)))
    one = torch.where(has_lower, low + 2 * fraction, torch.where(has_upper, high - 2 * fraction, fraction))
    return torch.where(has_lower & has_upper, low + fraction * (high - low), one)


def _check(problem: cp.Problem) -> None:
    """Refuse variables and constraints that a nonlinear program cannot have."""
    if not problem.variables():
        raise DeclarationError("The problem is not DCP and has no variables: there is nothing to solve for.")
    rules = {
        "integer": "a solution over a discrete set has no derivative. Relax it to a continuous variable with bounds",
        "boolean": "a solution over a discrete set has no derivative. Relax it to a continuous variable with bounds",
        "complex": "problems that are not DCP take real variables only. Declare its real and imaginary parts",
        "imag": "problems that are not DCP take real variables only. Declare its imaginary part",
        "hermitian": "problems that are not DCP take real variables only. Declare its real and imaginary parts",
    }
    for variable in problem.variables():
        for attribute, rule in rules.items():
            if variable.attributes[attribute]:
                raise DeclarationError(f"Variable {variable.name()!r} is {attribute}: {rule}.")
    for constraint in problem.constraints:
        if type(constraint).__name__ not in CONSTRAINTS:
            raise DeclarationError(
                f"{named(constraint)} is not supported; supported types: {', '.join(sorted(CONSTRAINTS))}."
            )
