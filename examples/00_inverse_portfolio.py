"""Learn what an investor believes from the portfolios that were chosen.

An investor sees market features z, expects returns ``mu = W z`` and holds the portfolio

    maximise  mu'x - gamma/2 x'Sigma x   subject to  sum(x) = 1,  0 <= x <= 0.4.

We see features and portfolios only. Gradient descent through the optimisation problem recovers W up to what the portfolios
reveal, and predicts the portfolios of new days. Baseline: linear regression from features to portfolios, projected onto the
constraints. Prints both errors and fails unless the layer's is less than half.
"""

from __future__ import annotations

from pathlib import Path

import cvxpy as cp
import torch
from figure import options, pyplot, require, save
from tqdm import trange

import ddn_cvx as ddn

ASSETS, FEATURES, DAYS = 8, 4, 200


def portfolio_layer(covariance: torch.Tensor) -> ddn.DeclarativeLayer:
    """``expected returns (*batch, ASSETS) -> portfolio (*batch, ASSETS)``."""
    x, mu = cp.Variable(ASSETS), cp.Parameter(ASSETS)
    risk = cp.quad_form(x, cp.psd_wrap(covariance.numpy()))
    problem = cp.Problem(cp.Maximize(mu @ x - 2.0 * risk), [cp.sum(x) == 1, x >= 0, x <= 0.4])
    return ddn.DeclarativeLayer(problem, [mu], x)


def main() -> None:
    arguments = options(__doc__, "inverse_portfolio")
    generator = torch.Generator().manual_seed(0)
    factors = torch.randn(ASSETS, 3, generator=generator, dtype=torch.float64)
    covariance = 0.05 * (factors @ factors.T) + 0.1 * torch.eye(ASSETS, dtype=torch.float64)
    layer = portfolio_layer(covariance)
    truth = 0.4 * torch.randn(ASSETS, FEATURES, generator=generator, dtype=torch.float64)
    features = torch.randn(2 * DAYS, FEATURES, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        portfolios = layer(features @ truth.T)
    seen, unseen = slice(0, DAYS), slice(DAYS, None)

    guess = torch.zeros_like(truth).requires_grad_()
    optimiser = torch.optim.Adam([guess], lr=0.03)
    losses = []
    with trange(5 if arguments.quick else 120, desc="learning the investor's beliefs", unit="step") as progress:
        for _ in progress:
            loss = (layer(features[seen] @ guess.T) - portfolios[seen]).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
            progress.set_postfix(loss=f"{loss.item():.2e}")

    with torch.no_grad():
        error = (layer(features[unseen] @ guess.T) - portfolios[unseen]).square().mean().sqrt().item()
    ones = torch.ones(DAYS, 1, dtype=torch.float64)
    design = torch.cat([features[seen], ones], 1)
    weights = torch.linalg.lstsq(design, portfolios[seen]).solution
    regression = torch.cat([features[unseen], ones], 1) @ weights
    x, p = cp.Variable(ASSETS), cp.Parameter(ASSETS)
    admissible = [cp.sum(x) == 1, x >= 0, x <= 0.4]
    project = ddn.DeclarativeLayer(cp.Problem(cp.Minimize(cp.sum_squares(x - p)), admissible), [p], x)
    baseline = (project(regression) - portfolios[unseen]).square().mean().sqrt().item()
    print(f"root mean squared error on unseen days: through the problem {error:.4f}, linear regression {baseline:.4f}")
    with torch.no_grad():
        plot(losses, layer(features[unseen] @ guess.T), project(regression), portfolios[unseen], arguments.plot)
    claim = f"the layer ({error:.4f}) has less than half the error of linear regression ({baseline:.4f})"
    require(claim, error < 0.5 * baseline, arguments.quick)


def plot(losses: list[float], layer: torch.Tensor, regression: torch.Tensor, truth: torch.Tensor, path: Path) -> None:
    plt = pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    left.semilogy(losses)
    left.set(xlabel="step", ylabel="mean squared error", title="learning beliefs from portfolios")
    right.plot(
        truth.flatten(), regression.flatten(), ".", color="tab:orange", alpha=0.3, label="linear regression, projected"
    )
    right.plot(truth.flatten(), layer.flatten(), ".", color="tab:blue", alpha=0.5, label="through the problem")
    right.plot([0, 0.4], [0, 0.4], color="black", linewidth=0.8)
    right.set(xlabel="share chosen", ylabel="share predicted", title="unseen days")
    right.legend()
    save(figure, path, dpi=120)


if __name__ == "__main__":
    main()
