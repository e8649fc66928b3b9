"""Every error and warning of the package, and nothing else.

``DeclarativeError`` is the common base, so ``except ddn_cvx.DeclarativeError`` catches whatever the package raises on
purpose. Each error also derives from the builtin that Python users expect (``ValueError`` for bad input,
``RuntimeError`` for a failed computation), so existing ``except ValueError`` code keeps working.
"""

from __future__ import annotations


class DeclarativeError(Exception):
    """Base class of all errors raised by ddn_cvx.

    Examples
    --------
    >>> import cvxpy as cp, torch, ddn_cvx as ddn
    >>> x, low = cp.Variable(), cp.Parameter()
    >>> layer = ddn.DeclarativeLayer(cp.Problem(cp.Minimize(cp.square(x)), [x >= low, x <= 1]), [low], x)
    >>> try:
    ...     layer(torch.tensor(2.0))
    ... except ddn.DeclarativeError as error:
    ...     print(type(error).__name__)
    SolverError
    """


class DeclarationError(DeclarativeError, ValueError):
    """The problem as declared cannot become a layer; the message names the expression and the rule it breaks.

    Examples
    --------
    >>> import cvxpy as cp, ddn_cvx as ddn
    >>> x = cp.Variable(integer=True, name="count")
    >>> ddn.DeclarativeLayer(cp.Problem(cp.Minimize(cp.square(x))))
    Traceback (most recent call last):
    ddn_cvx.errors.DeclarationError: Variable 'count' is integer: a solution over a discrete set has no derivative. ...
    """


class InputError(DeclarativeError, ValueError, TypeError):
    """A value given to a layer is not acceptable (shape, count, dtype, device, option); nothing has been computed.

    Examples
    --------
    >>> import ddn_cvx as ddn
    >>> ddn.Smoothed(width=-1.0)
    Traceback (most recent call last):
    ddn_cvx.errors.InputError: width must be a positive number, got -1.0.
    """


class SolverError(DeclarativeError, RuntimeError):
    """The forward solve failed for at least one batch element.

    Attributes
    ----------
    status : tuple
        One ``Status`` per failed element, in the order of ``indices``.
    indices : tuple
        The batch indices that failed (tuples of int, one int per leading batch dimension).

    Examples
    --------
    >>> import cvxpy as cp, torch, ddn_cvx as ddn
    >>> x, low = cp.Variable(), cp.Parameter()
    >>> layer = ddn.DeclarativeLayer(cp.Problem(cp.Minimize(cp.square(x)), [x >= low, x <= 1]), [low], x)
    >>> try:
    ...     layer(torch.tensor([0.5, 2.0]))
    ... except ddn.SolverError as error:
    ...     print(error.indices, [status.name for status in error.status])
    ((1,),) ['INFEASIBLE']
    """

    def __init__(self, message: str, status: tuple[object, ...] = (), indices: tuple[tuple[int, ...], ...] = ()):
        super().__init__(message)
        self.status = status
        self.indices = indices


class DifferentiationError(DeclarativeError, RuntimeError):
    """A derivative was asked for that is not available; a wrong number is never returned instead.

    Examples
    --------
    >>> import torch, ddn_cvx as ddn
    >>> node = ddn.TorchProblem((), lambda y, x: (y - x) ** 2, parameters=[()])
    >>> layer = ddn.DeclarativeLayer(node, adjoint=ddn.LPGD())
    >>> torch.func.jvp(layer, (torch.tensor(1.0),), (torch.tensor(1.0),))
    Traceback (most recent call last):
    ddn_cvx.errors.DifferentiationError: LPGD() has no forward mode; use adjoint=Implicit().
    """


class DegradedAnswerWarning(UserWarning):
    """Something is worth knowing of what a call returned: a solver raised and its elements are NaN, or the derivatives of a
    large, badly conditioned problem are less accurate than usual. Python shows it once.

    Examples
    --------
    >>> import warnings, ddn_cvx as ddn
    >>> warnings.filterwarnings("ignore", category=ddn.DegradedAnswerWarning)  # if that is known and wanted
    """
