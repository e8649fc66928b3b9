"""The cones of conic programs: batched projections and their first and second derivatives, torch only."""

from ddn_cvx.cones.base import Cone, Dense, Diagonal, Spectrum
from ddn_cvx.cones.curved import Curved
from ddn_cvx.cones.exponential import Exponential
from ddn_cvx.cones.nonnegative import Nonnegative
from ddn_cvx.cones.power import Power
from ddn_cvx.cones.product import Block, DualSpectrum, Product
from ddn_cvx.cones.psd import PSD
from ddn_cvx.cones.second_order import SecondOrder
from ddn_cvx.cones.zero import Zero

__all__ = [
    "PSD",
    "Block",
    "Cone",
    "Curved",
    "Dense",
    "Diagonal",
    "DualSpectrum",
    "Exponential",
    "Nonnegative",
    "Power",
    "Product",
    "SecondOrder",
    "Spectrum",
    "Zero",
]
