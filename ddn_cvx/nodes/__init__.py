"""Ready-made nodes, built from the public layer API alone."""

from ddn_cvx.nodes.catalogue import CATALOGUE
from ddn_cvx.nodes.control import LinearMPC, NonlinearMPC
from ddn_cvx.nodes.entry import Entry
from ddn_cvx.nodes.equilibrium import DeepEquilibrium, EquilibriumCell
from ddn_cvx.nodes.few_shot import RidgeHead, SVMHead
from ddn_cvx.nodes.hard_constraints import BoneLengths, HardConstraint
from ddn_cvx.nodes.markov_fields import FieldOfExperts, PictureTotalVariation
from ddn_cvx.nodes.optnet import LearnedConstraints, QuadraticProgram, TotalVariation
from ddn_cvx.nodes.permutations import DoublyStochastic
from ddn_cvx.nodes.pose import Bundle, PnP, WeightedProcrustes
from ddn_cvx.nodes.projections import LpBall, LpSphere
from ddn_cvx.nodes.robust_pooling import RobustPooling
from ddn_cvx.nodes.satnet import MaxSatRelaxation, SATNet
from ddn_cvx.nodes.training import LogisticRegression, RidgeRegression, SupportVectorMachine

__all__ = [
    "CATALOGUE",
    "BoneLengths",
    "Bundle",
    "DeepEquilibrium",
    "DoublyStochastic",
    "Entry",
    "EquilibriumCell",
    "FieldOfExperts",
    "HardConstraint",
    "LearnedConstraints",
    "LinearMPC",
    "LogisticRegression",
    "LpBall",
    "LpSphere",
    "MaxSatRelaxation",
    "NonlinearMPC",
    "PictureTotalVariation",
    "PnP",
    "QuadraticProgram",
    "RidgeHead",
    "RidgeRegression",
    "RobustPooling",
    "SATNet",
    "SVMHead",
    "SupportVectorMachine",
    "TotalVariation",
    "WeightedProcrustes",
]
