"""What makes a custom function of torch right in forward mode inside of forward mode."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from torch.autograd import forward_ad


def forward_rule(rule: Callable[..., Any]) -> Callable[..., Any]:
    """``rule(ctx, saved, *tangents)`` as the ``jvp`` of an ``autograd.Function``.

    torch (2.13) turns forward mode off while it runs a ``jvp``: what that computes from tensors that move in an outer
    forward mode stands still there, and the jvp of a jvp is wrong without a word. Here it stays on, and ``saved``, which
    are ``ctx.saved_tensors``, come without the tangents that are the rule's own arguments.
    """

    @wraps(rule)
    def jvp(ctx: Any, *tangents: Any) -> Any:
        saved = tuple(forward_ad.unpack_dual(t).primal for t in ctx.saved_tensors)
        with forward_ad._set_fwd_grad_enabled(True):
            return rule(ctx, saved, *tangents)

    return jvp
