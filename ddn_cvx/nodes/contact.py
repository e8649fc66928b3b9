"""Rigid bodies in contact: the velocities after a step, differentiable in masses, friction and restitution.

    v+ = argmin  1/2 (v+ - v)'M (v+ - v) + mu sum_k p_k |t_k'v+|     subject to   n_k'v+ >= b_k

Normals n and tangents t are rows of the contact Jacobians, b is the velocity at which a contact rebounds, M is the mass. The
optimality conditions are the linear complementarity problem of de Avila Belbute-Peres, Smith, Allen, Tenenbaum & Kolter,
"End-to-end differentiable physics" (NeurIPS 2018): the multipliers are the impulses, 0 <= p, p_k (n_k'v+ - b_k) = 0, and
friction is at most mu p_k, against the motion. In Coulomb's law the p of the objective are these multipliers: they are taken
from the solve before, of which the first has no friction. For a single contact of discs the second is exact.
"""

from __future__ import annotations

import itertools

import cvxpy as cp
import torch
from torch import Tensor, nn

from ddn_cvx import DeclarationError, DeclarativeLayer
from ddn_cvx.nodes.checks import check_shapes
from ddn_cvx.nodes.entry import Entry, Inputs


class ContactStep(nn.Module):
    """``(v (*batch, n), mass (*batch, n), normals (*batch, K, n), tangents (*batch, K, n), rebound (*batch, K),
    friction (*batch)) -> v+ (*batch, n)``.

    A contact that is open has normals and tangents of zero, and a negative rebound.

    Parameters
    ----------
    coordinates, contacts : int
        n and K.
    sweeps : int
        Solves with friction. One is exact where normal impulses do not depend on friction.

    Raises
    ------
    DeclarationError
        A size below one.
    InputError
        An input of another shape.
    SolverError
        No velocities satisfy all contacts.

    Notes
    -----
    ``mass`` is the diagonal of M, above zero: masses and moments of inertia. Velocities are unique even where the impulses
    are not, as under a table with four legs.

    Examples
    --------
    >>> down, floor = torch.tensor([1.0, -2.0]), torch.tensor([[0.0, 1.0]])
    >>> along = torch.tensor([[1.0, 0.0]])
    >>> ContactStep(2, 1)(down, torch.ones(2), floor, along, torch.tensor([1.0]), torch.tensor(0.1))
    tensor([0.7000, 1.0000])
    """

    def __init__(self, coordinates: int, contacts: int, sweeps: int = 1):
        super().__init__()
        for name, size in (("coordinates", coordinates), ("contacts", contacts), ("sweeps", sweeps)):
            if size < 1:
                raise DeclarationError(f"{name} must be at least 1, got {size!r}.")
        self.coordinates, self.contacts, self.sweeps = coordinates, contacts, sweeps
        v, slip = cp.Variable(coordinates), cp.Variable(contacts)
        mass, push = cp.Parameter(coordinates, nonneg=True), cp.Parameter(coordinates)
        normals, weighted = (cp.Parameter((contacts, coordinates)) for _ in range(2))
        rebound = cp.Parameter(contacts)
        idle = cp.Parameter(contacts, nonneg=True)  # 1 without impulse: one constraint holds the slip at zero, not two
        open_ = normals @ v >= rebound
        energy = 0.5 * cp.sum(cp.multiply(mass, cp.square(v))) - push @ v
        free = cp.Problem(cp.Minimize(energy), [open_])
        grip = [slip >= weighted @ v, slip >= -weighted @ v - idle]
        rubbing = cp.Problem(cp.Minimize(energy + cp.sum(slip)), [open_, *grip])
        impulse = open_.dual_variables[0]
        self.free = DeclarativeLayer(free, [mass, push, normals, rebound], [v, impulse])
        self.rubbing = DeclarativeLayer(rubbing, [mass, push, normals, weighted, rebound, idle], [v, impulse])

    def forward(
        self, v: Tensor, mass: Tensor, normals: Tensor, tangents: Tensor, rebound: Tensor, friction: Tensor
    ) -> Tensor:
        """The velocities, in the dtype of v."""
        n, K = self.coordinates, self.contacts
        check_shapes(v=(v, (n,)), mass=(mass, (n,)))
        check_shapes(normals=(normals, (K, n)), tangents=(tangents, (K, n)), rebound=(rebound, (K,)))
        after, impulse = self.free(mass, mass * v, normals, rebound)
        for _ in range(self.sweeps):
            weighted = (friction.unsqueeze(-1) * impulse).unsqueeze(-1) * tangents
            idle = (impulse <= 1e-9 * impulse.amax(-1, keepdim=True)).to(v.dtype)
            after, impulse = self.rubbing(mass, mass * v, normals, weighted, rebound, idle)
        found: Tensor = after
        return found


class Discs(nn.Module):
    """A step of discs in a box: ``(at (*batch, N, 2), v (*batch, N, 3), mass (*batch, N), friction (*batch), restitution
    (*batch))`` -> the next ``at`` and ``v``.

    v holds the velocity, m/s, and the spin, rad/s. Discs touch each other, the floor at 0, and walls at 0 and ``width``,
    m; the same friction and restitution hold everywhere. A step is of semi-implicit Euler.

    Parameters
    ----------
    discs : int
        N.
    radius : float
        Of each disc, m.
    width : float
        Of the box, m.
    step : float
        Time step, s.
    gravity : float
        Downwards, m/s^2.
    sweeps : int
        See ``ContactStep``.

    Raises
    ------
    DeclarationError
        A number that is not above zero (gravity may be).
    InputError
        An input of another shape.

    Notes
    -----
    When contacts open and close is not differentiated: between two such moments the derivative is exact.

    Examples
    --------
    >>> at, v = torch.tensor([[0.5, 0.1]]), torch.tensor([[1.0, 0.0, 0.0]])  # on the floor, sliding
    >>> one = torch.tensor(1.0)
    >>> at, v = Discs(1, radius=0.1, width=1.0, step=0.1)(at, v, one.expand(1), 0.0 * one, 0.0 * one)
    >>> at, v
    (tensor([[0.6000, 0.1000]]), tensor([[1.0000, 0.0000, 0.0000]]))
    """

    def __init__(self, discs: int, radius: float, width: float, step: float = 0.02, gravity: float = 9.81, sweeps: int = 1):
        super().__init__()
        for name, value in (("discs", discs), ("radius", radius), ("width", width), ("step", step)):
            if not value > 0:
                raise DeclarationError(f"{name} must be above 0, got {value!r}.")
        self.discs, self.radius, self.width, self.time, self.gravity = discs, radius, width, step, gravity
        pairs = list(itertools.combinations(range(discs), 2))
        self.first, self.second = [a for a, _ in pairs], [b for _, b in pairs]
        self.contact = ContactStep(3 * discs, len(pairs) + 3 * discs, sweeps)

    def forward(self, at: Tensor, v: Tensor, mass: Tensor, friction: Tensor, restitution: Tensor) -> tuple[Tensor, Tensor]:
        """Positions and velocities after the step, in the dtype of ``at``."""
        n = self.discs
        check_shapes(at=(at, (n, 2)), v=(v, (n, 3)), mass=(mass, (n,)))
        normals, tangents, gap = self.contacts(at)
        fall = v.new_tensor([0.0, -self.gravity * self.time, 0.0])
        flat = (v + fall).flatten(-2)
        closed = (gap <= 0).to(v.dtype).unsqueeze(-1)
        approach = (normals @ flat.unsqueeze(-1)).squeeze(-1).clamp(max=0)
        rebound = torch.where(gap <= 0, -restitution.unsqueeze(-1) * approach, -1.0)
        inertia = torch.stack((mass, mass, 0.5 * self.radius**2 * mass), -1).flatten(-2)
        after = self.contact(flat, inertia, closed * normals, closed * tangents, rebound, friction).unflatten(-1, (n, 3))
        return at + self.time * after[..., :2], after

    def contacts(self, at: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Normals and tangents ``(*batch, K, 3 N)`` and gaps ``(*batch, K)``: pairs of discs, floor, left and right wall."""
        n, r = self.discs, self.radius
        apart = at[..., self.second, :] - at[..., self.first, :]
        distance = apart.norm(dim=-1, keepdim=True)
        one = torch.eye(n, dtype=at.dtype, device=at.device)
        walls = at.new_tensor([[0.0, 1.0], [1.0, 0.0], [-1.0, 0.0]]).repeat_interleave(n, 0)
        way = torch.cat((apart / distance.clamp(min=1e-9), walls.expand(*at.shape[:-2], -1, -1)), -2)  # of the normal
        side = torch.stack((-way[..., 1], way[..., 0]), -1)
        pushed = torch.cat((one[self.second], one.repeat(3, 1))).unsqueeze(-1)  # along the normal, and back the other disc
        back = torch.cat((one[self.first], torch.zeros_like(one).repeat(3, 1))).unsqueeze(-1)
        zero = torch.zeros_like(way[..., :1])
        normals = (pushed - back) * torch.cat((way, zero), -1).unsqueeze(-2)
        # the surface at the contact moves with -r times the spin along the side of the pushed disc, +r of the other
        turning = torch.cat((torch.zeros_like(way), torch.ones_like(zero)), -1).unsqueeze(-2)
        tangents = (pushed - back) * torch.cat((side, zero), -1).unsqueeze(-2) - r * (pushed + back) * turning
        x, y = at.unbind(-1)
        gap = torch.cat((distance.squeeze(-1) - 2 * r, y - r, x - r, self.width - r - x), -1)
        return normals.flatten(-2), tangents.flatten(-2), gap


# ---------------------------------------------------------------- the catalogue's entries


def _sample_step(batch: int, generator: torch.Generator) -> Inputs:
    """A disc of radius one on the floor: sideways velocity, downward velocity and spin, mass, friction, rebound."""
    number = torch.rand(6, batch, generator=generator, dtype=torch.float64)
    v = torch.stack((2 * number[0] - 1, -0.5 - number[1], 2 * number[2] - 1), -1)
    mass = 0.5 + number[3].unsqueeze(-1).expand(-1, 3) * v.new_tensor([1.0, 1.0, 0.5])
    normals, tangents = (v.new_tensor(row).expand(batch, 1, 3) for row in ([0.0, 1.0, 0.0], [1.0, 0.0, 1.0]))
    return v, mass, normals, tangents, 0.5 * number[4].unsqueeze(-1), 0.05 + 0.2 * number[5]


def _bounce(v: Tensor, mass: Tensor, normals: Tensor, tangents: Tensor, rebound: Tensor, friction: Tensor) -> Tensor:
    """One contact in closed form: an impulse along the normal, and one against the slip, as large as friction allows."""
    n, t = normals[..., 0, :], tangents[..., 0, :]
    p = (rebound[..., 0] - (n * v).sum(-1)).clamp(min=0) / (n * n / mass).sum(-1)
    stick = -(t * v).sum(-1) / (t * t / mass).sum(-1)
    f = torch.maximum(torch.minimum(stick, friction * p), -friction * p)
    return v + (p.unsqueeze(-1) * n + f.unsqueeze(-1) * t) / mass


def _sample_discs(batch: int, generator: torch.Generator) -> Inputs:
    """Two discs about to part ways or in contact, away from the walls."""
    number = torch.rand(8, batch, generator=generator, dtype=torch.float64)
    angle = 2 * torch.pi * number[0]
    way = torch.stack((angle.cos(), angle.sin()), -1)
    at = torch.stack((1 - 0.199 * way, 1 + 0.199 * way), -2)
    side = torch.stack((-way[:, 1], way[:, 0]), -1)
    hit = (0.5 + number[1]).unsqueeze(-1) * way + (number[2] - 0.5).unsqueeze(-1) * side
    v = torch.cat((torch.stack((hit, -hit), -2), 4 * number[3:5].T.unsqueeze(-1) - 2), -1)
    return at, v, 0.5 + number[5:7].T, 0.1 + 0.2 * number[7], 0.5 + 0.4 * number[6]


def _collide(at: Tensor, v: Tensor, mass: Tensor, friction: Tensor, restitution: Tensor) -> tuple[Tensor, Tensor]:
    """The collision of two discs of radius 0.2 in closed form, and a step of 0.02 s."""
    way = (at[:, 1] - at[:, 0]) / (at[:, 1] - at[:, 0]).norm(dim=-1, keepdim=True)
    side = torch.stack((-way[:, 1], way[:, 0]), -1)
    relative = v[:, 1, :2] - v[:, 0, :2]
    closing = (relative * way).sum(-1).clamp(max=0)
    slip = (relative * side).sum(-1) - 0.2 * (v[:, 0, 2] + v[:, 1, 2])
    reduced = 1 / (1 / mass).sum(-1)
    p = -(1 + restitution) * closing * reduced
    f = torch.maximum(torch.minimum(-slip * reduced / 3, friction * p), -friction * p)  # a solid disc: 1 + m r^2 / I = 3
    push = p.unsqueeze(-1) * way + f.unsqueeze(-1) * side
    sign = v.new_tensor([-1.0, 1.0])
    linear = v[..., :2] + sign.view(1, 2, 1) * push.unsqueeze(1) / mass.unsqueeze(-1)
    spin = v[..., 2] - 0.2 * f.unsqueeze(-1) / (0.02 * mass)
    return at + 0.02 * linear, torch.cat((linear, spin.unsqueeze(-1)), -1)


ENTRIES = (
    Entry(
        name="contact-step",
        title="velocities of rigid bodies after contact, with friction",
        kind="conic",
        source="de Avila Belbute-Peres et al., NeurIPS 2018",
        build=lambda: ContactStep(3, 1),
        sample=_sample_step,
        reference=_bounce,
        example="15_bouncing_discs",
        tags=frozenset({"physics"}),
    ),
    Entry(
        name="discs",
        title="a step of colliding discs in a box",
        kind="conic",
        source="de Avila Belbute-Peres et al., NeurIPS 2018",
        build=lambda: Discs(2, 0.2, 2.0, gravity=0.0),
        sample=_sample_discs,
        reference=_collide,
        example="15_bouncing_discs",
        tags=frozenset({"physics"}),
    ),
)
