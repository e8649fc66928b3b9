"""The child for peers in JAX: qpax and JAXopt's OSQP, jitted and mapped over the batch, in double precision.

It imports nothing of torch; a question is ``(method, P, q, A, b, G, h, cotangent)``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from time import perf_counter, process_time
from typing import Any

from benchmarks.worker import serve

_seen: set[tuple[Any, ...]] = set()


def packages() -> dict[str, str]:
    """The versions of those that are installed; raises ``ImportError`` without JAX."""
    import jax

    jax.config.update("jax_enable_x64", True)
    found = {}
    for name in ("jax", "qpax", "jaxopt"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def qpax(P: Any, q: Any, A: Any, b: Any, G: Any, h: Any) -> Any:
    """One instance by qpax; its explicit backend has wrong gradients with respect to G, and 1e-10 gives NaN."""
    import qpax

    return qpax.solve_qp_primal(P, q, A, b, G, h, backend="i", solver_tol=1e-9, target_kappa=1e-9)


def jaxopt(P: Any, q: Any, A: Any, b: Any, G: Any, h: Any) -> Any:
    """One instance by JAXopt's OSQP at tolerance 1e-9, with implicit derivatives."""
    from jaxopt import OSQP

    solver = OSQP(tol=1e-9, maxiter=20_000)
    equalities = (A, b) if b.shape[0] else None
    return solver.run(params_obj=(P, q), params_eq=equalities, params_ineq=(G, h)).params.primal


METHODS: dict[str, Callable[..., Any]] = {"qpax": qpax, "jaxopt": jaxopt}


@cache
def compiled(method: str) -> tuple[Any, Any]:
    """The batched solution map, and its solution with the vector-Jacobian product, both jitted."""
    import jax

    solve = jax.vmap(METHODS[method])

    def both(data: tuple[Any, ...], cotangent: Any) -> Any:
        x, pull = jax.vjp(lambda *parts: solve(*parts), *data)
        return x, pull(cotangent)

    return jax.jit(lambda data: solve(*data)), jax.jit(both)


def answer(method: str, *arrays: Any) -> tuple[float, float, float, Any, list[Any]]:
    """Seconds of the solution alone, of what gradients take beyond it, and of the processors; solution and gradients."""
    import jax
    import numpy as np

    *data, cotangent = (jax.numpy.asarray(a) for a in arrays)
    forward, both = compiled(method)
    shapes = method, *(a.shape for a in arrays)
    if shapes not in _seen:
        _seen.add(shapes)
        jax.block_until_ready((forward(tuple(data)), both(tuple(data), cotangent)))  # compiles
    busy, start = process_time(), perf_counter()
    x, gradients = jax.block_until_ready(both(tuple(data), cotangent))
    stop, busy = perf_counter(), process_time() - busy
    jax.block_until_ready(forward(tuple(data)))
    alone = min(perf_counter() - stop, stop - start)
    return alone, stop - start - alone, busy, np.asarray(x), [np.asarray(g) for g in gradients]


def main() -> None:
    """Answer until the parent is done."""
    try:
        hello: Any = packages()
    except ImportError as error:
        hello = error
    serve(hello, answer)


if __name__ == "__main__":
    main()
