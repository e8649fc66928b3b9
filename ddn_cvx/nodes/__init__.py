"""Ready-made nodes, built from the public layer API alone."""

from ddn_cvx.nodes.catalogue import CATALOGUE
from ddn_cvx.nodes.entry import Entry
from ddn_cvx.nodes.few_shot import RidgeHead, SVMHead
from ddn_cvx.nodes.optnet import LearnedConstraints, QuadraticProgram, TotalVariation
from ddn_cvx.nodes.projections import LpBall, LpSphere
from ddn_cvx.nodes.robust_pooling import RobustPooling

__all__ = [
    "CATALOGUE",
    "Entry",
    "LearnedConstraints",
    "LpBall",
    "LpSphere",
    "QuadraticProgram",
    "RidgeHead",
    "RobustPooling",
    "SVMHead",
    "TotalVariation",
]
