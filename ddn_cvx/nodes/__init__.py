"""Ready-made nodes, built from the public layer API alone."""

from ddn_cvx.nodes.attention import (
    Attention as Attention,
    Entmax as Entmax,
)
from ddn_cvx.nodes.catalogue import CATALOGUE as CATALOGUE
from ddn_cvx.nodes.consensus import (
    Consensus as Consensus,
    HomographyFit as HomographyFit,
    LineFit as LineFit,
)
from ddn_cvx.nodes.contact import (
    ContactStep as ContactStep,
    Discs as Discs,
)
from ddn_cvx.nodes.control import (
    LinearMPC as LinearMPC,
    NonlinearMPC as NonlinearMPC,
)
from ddn_cvx.nodes.entry import Entry as Entry
from ddn_cvx.nodes.equilibrium import (
    DeepEquilibrium as DeepEquilibrium,
    EquilibriumCell as EquilibriumCell,
)
from ddn_cvx.nodes.few_shot import (
    RidgeHead as RidgeHead,
    SVMHead as SVMHead,
)
from ddn_cvx.nodes.hard_constraints import (
    BoneLengths as BoneLengths,
    HardConstraint as HardConstraint,
)
from ddn_cvx.nodes.large import (
    Portfolio as Portfolio,
    SparseLeastSquares as SparseLeastSquares,
)
from ddn_cvx.nodes.linear import (
    AnalyticCentre as AnalyticCentre,
    Tridiagonal as Tridiagonal,
)
from ddn_cvx.nodes.markov_fields import (
    FieldOfExperts as FieldOfExperts,
    PictureTotalVariation as PictureTotalVariation,
)
from ddn_cvx.nodes.mixtures import GaussianMixture as GaussianMixture
from ddn_cvx.nodes.neural_ode import (
    LinearODE as LinearODE,
    NeuralODE as NeuralODE,
    VectorField as VectorField,
)
from ddn_cvx.nodes.optnet import (
    LearnedConstraints as LearnedConstraints,
    QuadraticProgram as QuadraticProgram,
    TotalVariation as TotalVariation,
)
from ddn_cvx.nodes.permutations import DoublyStochastic as DoublyStochastic
from ddn_cvx.nodes.pose import (
    Bundle as Bundle,
    PnP as PnP,
    WeightedProcrustes as WeightedProcrustes,
)
from ddn_cvx.nodes.projections import (
    LpBall as LpBall,
    LpSphere as LpSphere,
)
from ddn_cvx.nodes.rank_pooling import (
    RankPooling as RankPooling,
    SubspacePooling as SubspacePooling,
)
from ddn_cvx.nodes.robust_pooling import RobustPooling as RobustPooling
from ddn_cvx.nodes.satnet import (
    MaxSatRelaxation as MaxSatRelaxation,
    SATNet as SATNet,
)
from ddn_cvx.nodes.spectral import Eigenvectors as Eigenvectors
from ddn_cvx.nodes.structured import MatchingSVM as MatchingSVM
from ddn_cvx.nodes.submodular import (
    CutRelaxation as CutRelaxation,
    MinNormPoint as MinNormPoint,
)
from ddn_cvx.nodes.summaries import SoftGreedy as SoftGreedy
from ddn_cvx.nodes.training import (
    LogisticRegression as LogisticRegression,
    RidgeRegression as RidgeRegression,
    SupportVectorMachine as SupportVectorMachine,
)
from ddn_cvx.nodes.transport import OptimalTransport as OptimalTransport
