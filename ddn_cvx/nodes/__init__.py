"""Ready-made nodes, built from the public layer API alone."""

from ddn_cvx.nodes.attention import Attention, Entmax
from ddn_cvx.nodes.catalogue import CATALOGUE
from ddn_cvx.nodes.consensus import Consensus, HomographyFit, LineFit
from ddn_cvx.nodes.contact import ContactStep, Discs
from ddn_cvx.nodes.control import LinearMPC, NonlinearMPC
from ddn_cvx.nodes.entry import Entry
from ddn_cvx.nodes.equilibrium import DeepEquilibrium, EquilibriumCell
from ddn_cvx.nodes.few_shot import RidgeHead, SVMHead
from ddn_cvx.nodes.hard_constraints import BoneLengths, HardConstraint
from ddn_cvx.nodes.large import Portfolio, SparseLeastSquares
from ddn_cvx.nodes.linear import AnalyticCentre, Tridiagonal
from ddn_cvx.nodes.markov_fields import FieldOfExperts, PictureTotalVariation
from ddn_cvx.nodes.mixtures import GaussianMixture
from ddn_cvx.nodes.neural_ode import LinearODE, NeuralODE, VectorField
from ddn_cvx.nodes.optnet import LearnedConstraints, QuadraticProgram, TotalVariation
from ddn_cvx.nodes.permutations import DoublyStochastic
from ddn_cvx.nodes.pose import Bundle, PnP, WeightedProcrustes
from ddn_cvx.nodes.projections import LpBall, LpSphere
from ddn_cvx.nodes.rank_pooling import RankPooling, SubspacePooling
from ddn_cvx.nodes.robust_pooling import RobustPooling
from ddn_cvx.nodes.satnet import MaxSatRelaxation, SATNet
from ddn_cvx.nodes.spectral import Eigenvectors
from ddn_cvx.nodes.structured import MatchingSVM
from ddn_cvx.nodes.submodular import CutRelaxation, MinNormPoint
from ddn_cvx.nodes.summaries import SoftGreedy
from ddn_cvx.nodes.training import LogisticRegression, RidgeRegression, SupportVectorMachine
from ddn_cvx.nodes.transport import OptimalTransport

__all__ = [
    "CATALOGUE",
    "AnalyticCentre",
    "Attention",
    "BoneLengths",
    "Bundle",
    "Consensus",
    "ContactStep",
    "CutRelaxation",
    "DeepEquilibrium",
    "Discs",
    "DoublyStochastic",
    "Eigenvectors",
    "Entmax",
    "Entry",
    "EquilibriumCell",
    "FieldOfExperts",
    "GaussianMixture",
    "HardConstraint",
    "HomographyFit",
    "LearnedConstraints",
    "LineFit",
    "LinearMPC",
    "LinearODE",
    "LogisticRegression",
    "LpBall",
    "LpSphere",
    "MatchingSVM",
    "MaxSatRelaxation",
    "MinNormPoint",
    "NeuralODE",
    "NonlinearMPC",
    "OptimalTransport",
    "PictureTotalVariation",
    "PnP",
    "Portfolio",
    "QuadraticProgram",
    "RankPooling",
    "RidgeHead",
    "RidgeRegression",
    "RobustPooling",
    "SATNet",
    "SVMHead",
    "SoftGreedy",
    "SparseLeastSquares",
    "SubspacePooling",
    "SupportVectorMachine",
    "TotalVariation",
    "Tridiagonal",
    "VectorField",
    "WeightedProcrustes",
]
