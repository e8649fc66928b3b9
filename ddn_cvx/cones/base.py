r"""What a closed convex cone K offers: its projection, the derivatives of the projection, and where they jump.

The Euclidean projection Π onto K is the gradient of the potential φ(v) = ½‖Π(v)‖² (Moreau), so its derivatives are
symmetric:

    ``project``      Π(v)    = ∇φ(v)
    ``derivative``   DΠ(v) h = ∇²φ(v) h            eigenvalues in [0, 1], homogeneous of degree 0 in v
    ``spectrum``     DΠ(v)   = U diag(values) Uᵀ
    ``curvature``    ∇_v ⟨a, DΠ(v) b⟩ = ∇³φ(v)[a, b, ·]    symmetric in its three slots

Everything acts on tensors ``(*batch, dim)`` with any number of leading dimensions; equal cones are stacked in a
leading one, so fifty second-order cones of three rows are ``(*batch, 50, 3)``. NaN in one element of the batch stays
in that element.

Kinks. Π is differentiable except on a set of measure zero, where ``margin`` vanishes. There, every method returns one
element of the generalised Jacobian, chosen by one rule: **a zero counts as nonnegative**; K is closed and the
interior of its polar cone is open.

    nonnegative     derivative 1 at v = 0
    every cone      the identity on the boundary of K, the apex included
    second order    of the eigenvalues t ± ‖z‖ of v = (t, z), a zero one counts as nonnegative
    PSD             likewise each zero eigenvalue of the matrix
    exponential,    on the boundary of the polar cone, the limit from outside: the projection onto the ray of K that
      power         is orthogonal to v; on flat faces, zero coordinates count as nonnegative

On the dual side DΠ_{K*}(v) = I − DΠ_K(−v): a constraint that is both tight and without force counts as inactive.
The curvature is that of the same smooth piece, and always finite: zero where it is undefined or overflows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Spectrum(ABC):
    """Eigendecomposition U diag(values) Uᵀ of a DΠ(v); not differentiable, for use inside linear solves.

    ``rotate`` and ``unrotate`` take and return
    matrices ``(*batch, dim, k)``, one column a vector.
    """

    values: Tensor
    """``(*batch, dim)``, in [0, 1] and in no particular order."""

    @property
    @abstractmethod
    def is_diagonal(self) -> bool:
        """True if U = I; then ``rotate`` and ``unrotate`` return their argument untouched."""

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
    """A spectrum with an explicit basis, for cones of a few rows."""

    basis: Tensor
    """U, orthogonal, ``(*batch, dim, dim)``."""

    @property
    def is_diagonal(self) -> bool:
        return False

    def rotate(self, columns: Tensor) -> Tensor:
        return self.basis.mT @ columns

    def unrotate(self, columns: Tensor) -> Tensor:
        return self.basis @ columns


@dataclass(frozen=True)
class Cone(ABC):
    """One closed convex cone in R^dim; the module explains the notation and the rule at kinks."""

    dim: int
    """Number of rows."""

    @property
    @abstractmethod
    def degree(self) -> int:
        """What s'y is divided by to measure a duality gap: the parameter of ``barrier``, or any number of its size."""

    @property
    @abstractmethod
    def centre(self) -> Tensor:
        """A point inside K and K*, ``(dim,)`` float64 on the CPU; zero if K has no interior."""

    @abstractmethod
    def barrier(self, s: Tensor) -> Tensor:
        """A self-concordant barrier of K, ``(*batch,)`` for s ``(*batch, dim)``; NaN or infinite outside of the interior.
        Twice differentiable by autograd and ``torch.func``."""

    @abstractmethod
    def project(self, v: Tensor) -> Tensor:
        """The point of K nearest to v, ``(*batch, dim)``; twice differentiable by autograd and ``torch.func``."""

    @abstractmethod
    def derivative(self, v: Tensor, h: Tensor) -> Tensor:
        """DΠ(v) h for v and h that broadcast to ``(*batch, dim)``; itself differentiable in v and h."""

    @abstractmethod
    def spectrum(self, v: Tensor) -> Spectrum:
        """The eigendecomposition of DΠ(v), a constant for autograd."""

    @abstractmethod
    def curvature(self, v: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """∇_v ⟨a, DΠ(v) b⟩ for v, a, b that broadcast to ``(*batch, dim)``."""

    @abstractmethod
    def margin(self, v: Tensor) -> Tensor:
        """How far v is from the kinks, ``(*batch,)``, in the units of v: positive, and zero exactly on them; a constant for
        autograd. A distance up to a modest factor."""
