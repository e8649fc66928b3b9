"""What a layer takes and returns, read from its declaration: all that a compiler needs to know of it."""

from __future__ import annotations

from typing import NamedTuple

from ddn_cvx.declare.arguments import Arguments
from ddn_cvx.declare.cvxpy_convex import ConvexProblem
from ddn_cvx.declare.cvxpy_nonconvex import NonconvexProblem
from ddn_cvx.declare.node import Node
from ddn_cvx.declare.ode import ODE

Shape = tuple[int, ...]


class Signature(NamedTuple):
    """In plain numbers and text, which a compiler can look at."""

    arguments: tuple[str, ...]
    """Their names, by position."""
    shapes: tuple[tuple[Shape, ...], ...] | None
    """For each argument the shapes of the tensors in it; None: dimension 0 of every tensor is the batch."""
    complex_arguments: tuple[bool, ...]
    """For each argument, whether complex numbers are meant."""
    outputs: str | None
    """``[(shape, whether complex), ...]`` as text; None if the shapes are known only after a call."""
    names: tuple[str, ...] | None
    """Of the outputs, if they are a dict."""
    bare: bool
    """Whether there is one output, a tensor."""
    captures: bool
    """Whether the functions of the problem refer to tensors besides their inputs."""

    @staticmethod
    def of(node: Node, bare: bool) -> Signature:
        """``bare`` says whether the output of a cvxpy problem is a tensor."""
        if isinstance(node, ConvexProblem | NonconvexProblem):
            specs = node.parameters
            return Signature(
                tuple(s.name for s in specs),
                tuple((s.shape,) for s in specs),
                tuple(s.is_complex for s in specs),
                repr(node.output_shapes),
                None,
                bare,
                False,
            )
        before = _times(node) if isinstance(node, ODE) else ()
        return Signature(
            tuple(node.arguments.names),
            _shapes(node.arguments),
            (False,) * len(node.arguments.names),
            None if before is None else repr([((*before, *shape), False) for shape in node.shapes.values()]),
            None if node.bare else tuple(node.shapes),
            node.bare,
            bool(node.captured.current()),
        )


def _shapes(arguments: Arguments) -> tuple[tuple[Shape, ...], ...] | None:
    if arguments.declared is None:
        return None
    return tuple(tuple(spec.shape for spec in specs) for specs, _ in arguments.declared)


def _times(node: ODE) -> Shape | None:
    if node.only_last:
        return ()
    return None if node.count is None else (node.count,)
