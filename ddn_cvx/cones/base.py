r"""What a closed convex cone K offers: its projection, the derivatives of the projection, and where they jump.

The Euclidean projection Π_K is the gradient of the potential φ(v) = ½‖Π_K(v)‖² (Moreau), so its derivatives are symmetric:

    ``project``     Π(v)    = ∇φ(v)
    ``derivative``  DΠ(v) h = ∇²φ(v) h           symmetric, eigenvalues in [0, 1], homogeneous of degree 0 in v
    ``spectrum``    DΠ(v)   = U diag(values) Uᵀ
    ``curvature``   ∇_v ⟨a, DΠ(v) b⟩ = ∇³φ(v)[a, b, ·]   symmetric in its three slots

Everything acts on tensors ``(*batch, dim)`` with any number of leading dimensions; equal cones are stacked in a leading one,
so fifty second-order cones of three rows are ``(*batch, 50, 3)``. A row that holds NaN gives NaN in that row and nowhere else.

Kinks. Π_K is differentiable except on a set of measure zero, where ``margin`` vanishes. There every method returns one element of
the generalised Jacobian, chosen by one rule: **a zero counts as nonnegative**, that is K is closed and its polar cone is open.

    nonnegative     derivative 1 at v = 0
    every cone      the identity on the boundary of K, the apex included
    second order    eigenvalues t ± ‖z‖ of v = (t, z): a zero one counts as nonnegative
    PSD             likewise each zero eigenvalue of the matrix
    exponential,    on the boundary of the polar cone the limit from outside it: the rank-one projection onto the ray of K that is
      power           orthogonal to v; on a flat face, zero coordinates count as nonnegative

On the dual side, DΠ_{K*}(v) = I − DΠ_K(−v), so that a constraint that is both tight and without force is treated as inactive.
Curvature is taken from the same smooth piece as the derivative, and so is finite (zero wherever DΠ is locally constant).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Spectrum(ABC):
    """Eigendecomposition U diag(values) Uᵀ of DΠ(v); not differentiable, for use inside linear solves.

    ``values`` is ``(*batch, dim)`` in [0, 1], in no particular order. ``rotate`` and ``unrotate`` take and return matrices
    ``(*batch, dim, k)``, one column a vector.
    """

    values: Tensor

    @property
    @abstractmethod
    def is_diagonal(self) -> bool:
        """True if U = I, in which case ``rotate`` and ``unrotate`` return their argument untouched."""

    @abstractmethod
    def rotate(self, columns: Tensor) -> Tensor:
        """Uᵀ applied to each column of ``(*batch, dim, k)``."""

    @abstractmethod
    def unrotate(self, columns: Tensor) -> Tensor:
        """U applied to each column of ``(*batch, dim, k)``."""


@dataclass(frozen=True, eq=False)
class Diagonal(Spectrum):
    """A spectrum with U = I."""

    @property
    def is_diagonal(self) -> bool:
        return True

    def rotate(self, columns: Tensor) -> Tensor:
        return columns

    def unrotate(self, columns: Tensor) -> Tensor:
        return columns


@dataclass(frozen=True, eq=False)
class Dense(Spectrum):
    """A spectrum with an explicit orthogonal ``basis`` U of shape ``(*batch, dim, dim)``, for cones of a few rows."""

    basis: Tensor

    @property
    def is_diagonal(self) -> bool:
        return False

    def rotate(self, columns: Tensor) -> Tensor:
        return self.basis.mT @ columns

    def unrotate(self, columns: Tensor) -> Tensor:
        return self.basis @ columns


@dataclass(frozen=True)
class Cone(ABC):
    """One closed convex cone in R^dim; see the module for the notation and for the rule at kinks."""

    dim: int

    @abstractmethod
    def project(self, v: Tensor) -> Tensor:
        """The point of K nearest to v, ``(*batch, dim)``; twice differentiable by autograd and ``torch.func``."""

    @abstractmethod
    def derivative(self, v: Tensor, h: Tensor) -> Tensor:
        """DΠ_K(v) h for v and h that broadcast to ``(*batch, dim)``; itself differentiable in v and h."""

    @abstractmethod
    def spectrum(self, v: Tensor) -> Spectrum:
        """The eigendecomposition of DΠ_K(v)."""

    @abstractmethod
    def curvature(self, v: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """∇_v ⟨a, DΠ_K(v) b⟩, ``(*batch, dim)``; always finite."""

    @abstractmethod
    def margin(self, v: Tensor) -> Tensor:
        """How far v is from the nearest kink, ``(*batch,)`` in the units of v: positive, and zero exactly on the kinks."""
