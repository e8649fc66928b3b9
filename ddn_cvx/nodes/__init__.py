"""Ready-made nodes, built from the public layer API alone."""

from ddn_cvx.nodes.catalogue import CATALOGUE
from ddn_cvx.nodes.control import LinearMPC, NonlinearMPC
from ddn_cvx.nodes.entry import Entry
from ddn_cvx.nodes.hard_constraints import BoneLengths, HardConstraint
from ddn_cvx.nodes.pose import Bundle, PnP, WeightedProcrustes
from ddn_cvx.nodes.projections import LpBall, LpSphere
from ddn_cvx.nodes.robust_pooling import RobustPooling

__all__ = [
    "CATALOGUE",
    "BoneLengths",
    "Bundle",
    "Entry",
    "HardConstraint",
    "LinearMPC",
    "LpBall",
    "LpSphere",
    "NonlinearMPC",
    "PnP",
    "RobustPooling",
    "WeightedProcrustes",
]
