"""What torch's function transforms cannot do with an ``autograd.Function``, found out before a wrong number is returned."""

from __future__ import annotations

import torch

from ddn_cvx.errors import DifferentiationError


def refuse_nested_forward_mode() -> None:
    """Raise inside forward mode over forward mode.

    torch (2.13) loses a tangent there: ``jvp(jvp(f))`` of any ``autograd.Function`` f that is not applied to the innermost
    argument itself comes out wrong, without a word. Forward over reverse (``torch.func.hessian``), reverse over forward and
    reverse over reverse are right.

    Raises
    ------
    DifferentiationError
    """
    stack = torch._C._functorch.get_interpreter_stack() or ()
    if sum(level.key() == torch._C._functorch.TransformType.Jvp for level in stack) > 1:
        raise DifferentiationError(
            "Forward mode over forward mode (jvp of jvp, jacfwd of jacfwd) comes out wrong in torch for custom functions. "
            "Use reverse mode for one of the two: torch.func.hessian, jacfwd(jacrev(f)) or jacrev(jacfwd(f))."
        )
