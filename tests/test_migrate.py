"""The other half of the page on migrating: what it shows of a package runs where that is installed, and agrees with ours.

Our half is run by ``test_docs.py``. Versions: see the page. DDN and Theseus may also be repositories on ``PYTHONPATH``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

PAGE = (Path(__file__).parents[1] / "docs" / "how-to" / "migrate.md").read_text(encoding="utf-8")
FENCE = re.compile(r"^```(?P<theirs>\{code-block\} )?python\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)

pytestmark = pytest.mark.filterwarnings("ignore")  # those of other packages


@pytest.fixture
def double() -> Any:
    """The page's own tensors in double precision, so that answers can be compared closely."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def sides(title: str, **names: Any) -> tuple[dict[str, Any], str]:
    """What a section's first block on our side leaves behind, and the code of theirs."""
    section = PAGE[PAGE.index(f"## From {title}\n") :]
    found = list(FENCE.finditer(section))
    ours: dict[str, Any] = {"__name__": "__docs__", **names}
    exec(next(FENCE.finditer(PAGE))["code"], ours)  # the imports
    torch.manual_seed(0)
    exec(next(block["code"] for block in found if not block["theirs"]), ours)
    return ours, next((block["code"] for block in found if block["theirs"]), "")


def agree(ours: Callable[..., Tensor], theirs: Callable[..., Tensor], *inputs: Tensor, tolerance: float = 1e-6) -> None:
    """The same answer, and the same gradient of a random function of it."""
    inputs = tuple(value.detach().clone().requires_grad_() for value in inputs)
    answers = [ours(*inputs), theirs(*inputs)]
    torch.testing.assert_close(*answers, atol=tolerance, rtol=tolerance)
    loss = torch.randn(answers[0].shape, generator=torch.Generator().manual_seed(1))
    for mine, other in zip(*(torch.autograd.grad((answer * loss).sum(), inputs) for answer in answers), strict=True):
        torch.testing.assert_close(mine, other, atol=tolerance, rtol=tolerance)


def test_cvxpylayers(double: None) -> None:
    pytest.importorskip("cvxpylayers")
    ours, code = sides("cvxpylayers")
    theirs = {**ours}
    torch.manual_seed(0)
    exec(code, theirs)
    torch.testing.assert_close(ours["solution"], theirs["solution"], atol=1e-6, rtol=0)
    # the plain inputs of the page have a solution at a kink now and then; these have not
    A, b = torch.tensor([[1.0, 0.3], [-0.4, 1.0], [0.5, 0.5]]), torch.tensor([1.0, 0.5, 2.0])
    agree(ours["layer"], lambda A, b: theirs["layer"](A, b, solver_args={"eps": 1e-10})[0], A, b, tolerance=1e-5)


def test_qpth(double: None) -> None:
    pytest.importorskip("qpth")
    ours, code = sides("qpth")
    theirs = {**ours}
    exec(code, theirs)
    torch.testing.assert_close(ours["x"], theirs["x"], atol=1e-6, rtol=0)
    generator = torch.Generator().manual_seed(2)
    Q, p = torch.eye(4).expand(5, 4, 4), torch.randn(5, 4, generator=generator)
    G, A = torch.randn(5, 3, 4, generator=generator), torch.randn(5, 1, 4, generator=generator)
    agree(
        lambda Q, p, G, h, A, b: ours["qp"](Q, p, A, b, G, h),
        lambda *data: theirs["qp"](*data),
        *(Q, p, G, G.sum(-1) + 0.1, A, A.sum(-1)),
    )
    shared = torch.zeros(4, requires_grad=True)  # qpth: the mean over the batch; here: the sum
    data = G, G.sum(-1) + 0.1, A, A.sum(-1)
    (mean,) = torch.autograd.grad(theirs["qp"](Q, shared, *data).sum(), shared)
    (total,) = torch.autograd.grad(ours["qp"](Q, shared, data[2], data[3], data[0], data[1]).sum(), shared)
    torch.testing.assert_close(5 * mean, total, atol=1e-6, rtol=1e-6)


def test_ddn(double: None) -> None:
    pytest.importorskip("ddn.pytorch.node")
    ours, _ = sides("the DDN reference code")
    section = PAGE[PAGE.index("## From the DDN reference code\n") :]
    code = next(FENCE.finditer(section))["code"].replace("from ddn_cvx.compat.ddn import", "from ddn.pytorch.node import")
    theirs: dict[str, Any] = {"torch": torch}
    torch.manual_seed(0)
    exec(code, theirs)
    torch.testing.assert_close(ours["y"], theirs["y"])
    torch.testing.assert_close(ours["x"].grad, theirs["x"].grad)


def test_theseus(double: None) -> None:
    pytest.importorskip("theseus")
    ours, code = sides("Theseus")
    theirs = {"torch": torch, "xs": ours["xs"], "ys": ours["ys"]}
    exec(code, theirs)
    torch.testing.assert_close(ours["ab"], torch.cat([theirs["values"]["a"], theirs["values"]["b"]], -1))

    def fit(xs: Tensor, ys: Tensor) -> Tensor:
        values, _ = theirs["layer"].forward({"x": xs, "y": ys, "a": torch.ones(7, 1), "b": torch.ones(7, 1)})
        return torch.cat([values["a"], values["b"]], -1)

    noise = torch.randn(7, 10, generator=torch.Generator().manual_seed(3))
    agree(ours["layer"], fit, ours["xs"], ours["ys"] + 0.3 * noise)


def test_jaxopt() -> None:
    jax = pytest.importorskip("jax")
    pytest.importorskip("jaxopt")
    jax.config.update("jax_enable_x64", True)
    from jax import numpy as jnp

    ours, code = sides("JAXopt")
    theta = torch.tensor([0.3, -0.1, 0.9], dtype=torch.float64)
    fixed = {
        "start": jnp.ones(3) / 3,
        "f": lambda y, t: y @ t + (y**4).sum(),
        "T": lambda y, t: jnp.cos(y) / 2 + t,
        **{"Q": jnp.eye(3), "A": jnp.ones((1, 3)), "b": jnp.ones(1), "G": -jnp.eye(3), "h": jnp.zeros(3)},
    }

    def run(theta: Any) -> tuple[Any, ...]:
        names = {**fixed, "v": theta, "theta": theta, "c": -theta}  # the quadratic program is the projection again
        exec(code, names)
        return tuple(names[name] for name in "uyxz")

    mine = ours["project"], ours["minimise"], ours["project"], ours["iterate"]
    at = jnp.asarray(theta.numpy())
    for layer, answer, slope in zip(mine, run(at), jax.jacobian(run)(at), strict=True):
        np.testing.assert_allclose(layer(theta[None])[0], np.asarray(answer), atol=2e-3)  # JAXopt stops at 1e-3
        jacobian = torch.func.jacrev(layer)(theta[None])[0, :, 0]
        np.testing.assert_allclose(jacobian, np.asarray(slope), atol=2e-3)
