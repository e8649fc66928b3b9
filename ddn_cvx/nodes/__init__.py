"""Ready-made nodes, built from the public layer API alone."""

from ddn_cvx.nodes.attention import (
    Attention as Attention,
)
from ddn_cvx.nodes.attention import (
    Entmax as Entmax,
)
from ddn_cvx.nodes.catalogue import CATALOGUE as CATALOGUE
from ddn_cvx.nodes.consensus import (
    Consensus as Consensus,
)
from ddn_cvx.nodes.consensus import (
    HomographyFit as HomographyFit,
)
from ddn_cvx.nodes.consensus import (
    LineFit as LineFit,
)
from ddn_cvx.nodes.contact import (
    ContactStep as ContactStep,
)
from ddn_cvx.nodes.contact import (
    Discs as Discs,
)
from ddn_cvx.nodes.control import (
    LinearMPC as LinearMPC,
)
from ddn_cvx.nodes.control import (
    NonlinearMPC as NonlinearMPC,
)
from ddn_cvx.nodes.entry import Entry as Entry
from ddn_cvx.nodes.equilibrium import (
    DeepEquilibrium as DeepEquilibrium,
)
from ddn_cvx.nodes.equilibrium import (
    EquilibriumCell as EquilibriumCell,
)
from ddn_cvx.nodes.few_shot import (
    RidgeHead as RidgeHead,
)
from ddn_cvx.nodes.few_shot import (
    SVMHead as SVMHead,
)
from ddn_cvx.nodes.hard_constraints import (
    BoneLengths as BoneLengths,
)
from ddn_cvx.nodes.hard_constraints import (
    HardConstraint as HardConstraint,
)
from ddn_cvx.nodes.large import (
    Portfolio as Portfolio,
)
from ddn_cvx.nodes.large import (
    SparseLeastSquares as SparseLeastSquares,
)
from ddn_cvx.nodes.linear import (
    AnalyticCentre as AnalyticCentre,
)
from ddn_cvx.nodes.linear import (
    Tridiagonal as Tridiagonal,
)
from ddn_cvx.nodes.markov_fields import (
    FieldOfExperts as FieldOfExperts,
)
from ddn_cvx.nodes.markov_fields import (
    PictureTotalVariation as PictureTotalVariation,
)
from ddn_cvx.nodes.mixtures import GaussianMixture as GaussianMixture
from ddn_cvx.nodes.neural_ode import (
    LinearODE as LinearODE,
)
from ddn_cvx.nodes.neural_ode import (
    NeuralODE as NeuralODE,
)
from ddn_cvx.nodes.neural_ode import (
    VectorField as VectorField,
)
from ddn_cvx.nodes.optnet import (
    LearnedConstraints as LearnedConstraints,
)
from ddn_cvx.nodes.optnet import (
    QuadraticProgram as QuadraticProgram,
)
from ddn_cvx.nodes.optnet import (
    TotalVariation as TotalVariation,
)
from ddn_cvx.nodes.permutations import DoublyStochastic as DoublyStochastic
from ddn_cvx.nodes.pose import (
    Bundle as Bundle,
)
from ddn_cvx.nodes.pose import (
    PnP as PnP,
)
from ddn_cvx.nodes.pose import (
    WeightedProcrustes as WeightedProcrustes,
)
from ddn_cvx.nodes.projections import (
    LpBall as LpBall,
)
from ddn_cvx.nodes.projections import (
    LpSphere as LpSphere,
)
from ddn_cvx.nodes.rank_pooling import (
    RankPooling as RankPooling,
)
from ddn_cvx.nodes.rank_pooling import (
    SubspacePooling as SubspacePooling,
)
from ddn_cvx.nodes.robust_pooling import RobustPooling as RobustPooling
from ddn_cvx.nodes.satnet import (
    MaxSatRelaxation as MaxSatRelaxation,
)
from ddn_cvx.nodes.satnet import (
    SATNet as SATNet,
)
from ddn_cvx.nodes.spectral import Eigenvectors as Eigenvectors
from ddn_cvx.nodes.structured import MatchingSVM as MatchingSVM
from ddn_cvx.nodes.submodular import (
    CutRelaxation as CutRelaxation,
)
from ddn_cvx.nodes.submodular import (
    MinNormPoint as MinNormPoint,
)
from ddn_cvx.nodes.summaries import SoftGreedy as SoftGreedy
from ddn_cvx.nodes.training import (
    LogisticRegression as LogisticRegression,
)
from ddn_cvx.nodes.training import (
    RidgeRegression as RidgeRegression,
)
from ddn_cvx.nodes.training import (
    SupportVectorMachine as SupportVectorMachine,
)
from ddn_cvx.nodes.transport import OptimalTransport as OptimalTransport
