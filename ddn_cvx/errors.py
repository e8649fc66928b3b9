"""Every error and warning of the package, and nothing else.

``DeclarativeError`` is the common base, so ``except ddn_cvx.DeclarativeError`` catches whatever the package raises on
purpose. Each error also derives from the builtin that Python users expect (``ValueError`` for bad input,
``RuntimeError`` for a failed computation), so existing ``except ValueError`` code keeps working.
"""

from __future__ import annotations


class DeclarativeError(Exception):
    """Base class of all errors raised by ddn_cvx."""


class DeclarationError(DeclarativeError, ValueError):
    """The problem as declared cannot become a layer; the message names the expression and the rule it breaks."""


class InputError(DeclarativeError, ValueError, TypeError):
    """A value given to a layer is not acceptable (shape, count, dtype, device); nothing has been computed."""


class SolverError(DeclarativeError, RuntimeError):
    """The forward solve failed for at least one batch element.

    Attributes
    ----------
    status : tuple
        One ``Status`` per failed element, in the order of ``indices``.
    indices : tuple
        The batch indices that failed (tuples of int, one int per leading batch dimension).
    """

    def __init__(self, message: str, status: tuple[object, ...] = (), indices: tuple[tuple[int, ...], ...] = ()):
        super().__init__(message)
        self.status = status
        self.indices = indices


class DifferentiationError(DeclarativeError, RuntimeError):
    """A derivative was asked for that is not available; a wrong number is never returned instead."""


class DegradedAnswerWarning(UserWarning):
    """The answer is usable but not what a regular problem would give; shown once per layer."""
