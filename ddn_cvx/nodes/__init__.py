"""Ready-made nodes, built from the public layer API alone."""

from ddn_cvx.nodes.catalogue import CATALOGUE
from ddn_cvx.nodes.contact import ContactStep, Discs
from ddn_cvx.nodes.control import LinearMPC, NonlinearMPC
from ddn_cvx.nodes.entry import Entry
from ddn_cvx.nodes.equilibrium import DeepEquilibrium, EquilibriumCell
from ddn_cvx.nodes.few_shot import RidgeHead, SVMHead
from ddn_cvx.nodes.hard_constraints import BoneLengths, HardConstraint
from ddn_cvx.nodes.neural_ode import LinearODE, NeuralODE, VectorField
from ddn_cvx.nodes.optnet import LearnedConstraints, QuadraticProgram, TotalVariation
from ddn_cvx.nodes.permutations import DoublyStochastic
from ddn_cvx.nodes.pose import Bundle, PnP, WeightedProcrustes
from ddn_cvx.nodes.projections import LpBall, LpSphere
from ddn_cvx.nodes.rank_pooling import RankPooling, SubspacePooling
from ddn_cvx.nodes.robust_pooling import RobustPooling
from ddn_cvx.nodes.training import LogisticRegression, RidgeRegression, SupportVectorMachine

__all__ = [
    "CATALOGUE",
    "BoneLengths",
    "Bundle",
    "ContactStep",
    "DeepEquilibrium",
    "Discs",
    "DoublyStochastic",
    "Entry",
    "EquilibriumCell",
    "HardConstraint",
    "LearnedConstraints",
    "LinearMPC",
    "LinearODE",
    "LogisticRegression",
    "LpBall",
    "LpSphere",
    "NeuralODE",
    "NonlinearMPC",
    "PnP",
    "QuadraticProgram",
    "RankPooling",
    "RidgeHead",
    "RidgeRegression",
    "RobustPooling",
    "SVMHead",
    "SubspacePooling",
    "SupportVectorMachine",
    "TotalVariation",
    "VectorField",
    "WeightedProcrustes",
]
