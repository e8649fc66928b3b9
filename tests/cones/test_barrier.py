"""Barriers and centres: inside both cones, logarithmically homogeneous, convex, and infinite or NaN outside."""

import pytest
import torch
from cone_points import CONES, F64, contains, generator, name
from torch.func import grad, hessian

from ddn_cvx.cones import Cone, Power, Product, SecondOrder, Zero

SINGLE = [cone for cone in CONES if not isinstance(cone, Power) or len(cone.alphas) == 1]
PARAMETER = {"SecondOrder": lambda cone: 2, "Zero": lambda cone: 0}
"""Where the parameter of the barrier is not the degree."""


@pytest.mark.parametrize("cone", SINGLE, ids=name)
def test_centre_is_inside_both_cones(cone: Cone) -> None:
    around = cone.centre + 0.01 * torch.nn.functional.normalize(
        torch.randn(50, cone.dim, generator=generator(0), dtype=F64), dim=-1
    )
    if not isinstance(cone, Zero):
        assert contains(cone, around, 0.0) and contains(cone, around, 0.0, dual=True)


@pytest.mark.parametrize("cone", SINGLE, ids=name)
def test_barrier_is_logarithmically_homogeneous_and_convex(cone: Cone) -> None:
    """``grad B(s)'s = -ν`` with the parameter ν of the barrier (Nesterov & Nemirovskii 1994, section 2.3)."""
    s = cone.centre + 0.05 * torch.randn(cone.dim, generator=generator(1), dtype=F64) * (cone.degree > 0)
    parameter = PARAMETER.get(type(cone).__name__, lambda cone: cone.degree)(cone)
    assert float(grad(cone.barrier)(s) @ s) == pytest.approx(-parameter)
    if parameter:
        assert float(torch.linalg.eigvalsh(hessian(cone.barrier)(s)).min()) > 0
        assert float(cone.barrier(2 * s) - cone.barrier(s)) == pytest.approx(-parameter * torch.tensor(2.0).log().item())


@pytest.mark.parametrize("cone", [cone for cone in SINGLE if not isinstance(cone, Zero)], ids=name)
def test_barrier_is_not_finite_outside(cone: Cone) -> None:
    assert not bool(cone.barrier(torch.stack((-cone.centre, 0 * cone.centre))).isfinite().any())


def test_product_adds_up_in_any_order() -> None:
    product = Product(1, 2, (3, 1, 3), (2,), 1, ((0.3, 0.7),), (SecondOrder(4),))
    s = product.centre(torch.zeros(2, product.size, dtype=F64)) * torch.tensor([[1.0], [2.0]], dtype=F64)
    expected = torch.zeros(2, dtype=F64)
    for block in product.blocks():
        part = s[:, block.rows]
        cone = {"soc": SecondOrder, "other": SecondOrder}.get(block.kind)
        if cone is not None:
            expected -= (part[:, 0] ** 2 - (part[:, 1:] ** 2).sum(-1)).log()
        elif block.kind == "nonneg":
            expected -= part.log().sum(-1)
    others = Product(psd=(2,), exp=1, power=((0.3, 0.7),))
    rest = torch.cat([s[:, block.rows] for block in product.blocks() if block.kind in ("psd", "exp", "power")], 1)
    assert torch.allclose(product.barrier(s), expected + others.barrier(rest))
    assert product.degree == 2 + 3 + 2 + 3 + 3 + 1
