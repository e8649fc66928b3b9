"""Everything that can be declared: what a layer is made of, and what calls, signatures and explanations tell apart."""

from __future__ import annotations

from ddn_cvx.declare.cvxpy_convex import ConvexProblem
from ddn_cvx.declare.cvxpy_nonconvex import NonconvexProblem
from ddn_cvx.declare.fixed_point import FixedPoint, Root
from ddn_cvx.declare.ode import ODE
from ddn_cvx.declare.torch_problem import TorchProblem

Declared = TorchProblem | FixedPoint | Root | ODE
"""Problems in torch functions, which say themselves what their parameters and variables are: they all have ``arguments``,
``parameters``, ``shapes`` and ``bare`` (of the variables), and ``captured``."""
Node = ConvexProblem | NonconvexProblem | Declared
"""All of them, those read from cvxpy included."""
