"""The cones of conic programs: batched projections and their first and second derivatives, torch only."""

from ddn_cvx.cones.base import (
    Cone as Cone,
    Dense as Dense,
    Diagonal as Diagonal,
    Spectrum as Spectrum,
)
from ddn_cvx.cones.curved import Curved as Curved
from ddn_cvx.cones.exponential import Exponential as Exponential
from ddn_cvx.cones.nonnegative import Nonnegative as Nonnegative
from ddn_cvx.cones.power import Power as Power
from ddn_cvx.cones.product import (
    Block as Block,
    DualSpectrum as DualSpectrum,
    Product as Product,
)
from ddn_cvx.cones.psd import PSD as PSD
from ddn_cvx.cones.second_order import SecondOrder as SecondOrder
from ddn_cvx.cones.zero import Zero as Zero
