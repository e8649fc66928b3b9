"""Bilevel learning: hyperparameters by gradient descent through the training problem, against grid search.

Two models are trained to optimality inside a node; their hyperparameters minimise the loss on validation data.

- A logistic regression with 40 features in four groups, of which two say something about the class, has a penalty for each
  group. Grids of as many trainings: one penalty for all groups (81 values), or three values for each group (3^4).
- A support vector machine with 8 features, of which two matter (the class is the sign of their product), has C and a scale
  for each feature in its kernel. Grid: C and one scale for all features (9 x 9). Two values for each hyperparameter would
  already be 512 trainings, so random search over all of them is the other baseline.

Descent may train 81 times, too, starts in the middle of the grid, and like the grids keeps what was best on the validation
data. Fails if, for either model, descent does not beat every baseline on the validation data and on unseen data, in the
mean over seeds.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from figure import means, options, over_seeds, pyplot, require, save, table
from torch import Tensor, nn

from ddn_cvx.nodes import LogisticRegression, SupportVectorMachine

SOLVES, UNSEEN, VALID = 81, 4000, 200
GROUPS, EACH, TRAIN = 4, 10, 80
FEATURES, SVM_TRAIN = 8, 60

Data = tuple[Tensor, Tensor]
Loss = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]
"""Logarithms of hyperparameters (B, h) -> loss on validation data, loss and per cent of errors on unseen data, (B) each."""


def judge(decision: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.softplus(-labels * decision).mean(-1)


def losses(decide: Callable[[Tensor], Tensor], valid: Data, unseen: Data) -> tuple[Tensor, Tensor, Tensor]:
    with torch.no_grad():
        decision = decide(unseen[0])
        errors = 100 * (decision * unseen[1] <= 0).double().mean(-1)
    return judge(decide(valid[0]), valid[1]), judge(decision, unseen[1]), errors


def logistic(generator: torch.Generator) -> Loss:
    """The loss of per-group penalties, on data where the groups carry much, little and no information."""
    strength = torch.tensor([0.8, 0.25, 0.0, 0.0]).double().repeat_interleave(EACH)
    truth = strength * torch.randn(GROUPS * EACH, generator=generator, dtype=torch.float64)

    def draw(count: int) -> Data:
        A = torch.randn(count, GROUPS * EACH, generator=generator, dtype=torch.float64)
        return A, torch.where(torch.rand(count, generator=generator) < (A @ truth).sigmoid(), 1.0, -1.0).double()

    (A, b), valid, unseen = draw(TRAIN), draw(VALID), draw(UNSEEN)
    model = LogisticRegression(TRAIN, GROUPS * EACH)

    def loss(logs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        w = model(A, b, logs.exp().repeat_interleave(EACH, -1))
        return losses(lambda points: w @ points.T, valid, unseen)

    return loss


def support_vectors(generator: torch.Generator) -> Loss:
    """The loss of C and of the scale of each feature."""

    def draw(count: int) -> Data:
        x = torch.randn(count, FEATURES, generator=generator, dtype=torch.float64)
        return x, torch.where(x[:, 0] * x[:, 1] > 0, 1.0, -1.0).double()

    (x, b), valid, unseen = draw(SVM_TRAIN), draw(VALID), draw(UNSEEN)
    model = SupportVectorMachine(SVM_TRAIN)

    def loss(logs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        C, scale = logs[:, 0].exp(), logs[:, 1:].exp()
        weights, intercept = model(x.expand(len(C), -1, -1), b.expand(len(C), -1), scale, C)
        return losses(lambda points: model.decide(x, weights, intercept, scale, points), valid, unseen)

    return loss


def search(loss: Loss, candidates: Tensor) -> dict[str, float]:
    """Train with every candidate and keep the one that is best on the validation data."""
    parts = [loss(some) for some in candidates.split(9)]
    valid, unseen, errors = (torch.cat(part) for part in zip(*parts, strict=True))
    best = int(valid.argmin())
    return {"validation": valid[best].item(), "unseen": unseen[best].item(), "errors": errors[best].item()}


def descend(loss: Loss, start: Tensor, solves: int) -> tuple[dict[str, float], list[float]]:
    """Adam on the logarithms; what was best on the validation data, and the best so far after each training."""
    logs = start.clone().requires_grad_()
    optimiser = torch.optim.Adam([logs], lr=0.2)
    best, path = {"validation": float("inf")}, []
    for _ in range(solves):
        valid, unseen, errors = loss(logs.unsqueeze(0))
        if valid.item() < best["validation"]:
            best = {"validation": valid.item(), "unseen": unseen.item(), "errors": errors.item()}
        path.append(best["validation"])
        optimiser.zero_grad()
        valid.sum().backward()
        optimiser.step()
    return best, path


def grid(*axes: Tensor) -> Tensor:
    return torch.cartesian_prod(*axes)


def candidates(generator: torch.Generator) -> dict[str, dict[str, Tensor]]:
    """Hyperparameters (logarithms) of each baseline: ``SOLVES`` rows; the grids lie around what descent starts from."""
    wide, three = torch.linspace(-4, 6, SOLVES).double(), torch.tensor([-2.0, 1.0, 4.0]).double()
    some, nine = torch.linspace(-2, 6, 9).double(), torch.linspace(-3, 1, 9).double()
    isotropic = grid(some, nine)
    draws = torch.rand(SOLVES, 1 + FEATURES, generator=generator, dtype=torch.float64)
    return {
        "logistic": {
            "grid, one penalty": wide.unsqueeze(-1).expand(-1, GROUPS),
            "grid, 3 per group": grid(*[three] * GROUPS),
        },
        "svm": {
            "grid, one scale": torch.cat((isotropic[:, :1], isotropic[:, 1:].expand(-1, FEATURES)), -1),
            "random, all scales": torch.cat((8 * draws[:, :1] - 2, 4 * draws[:, 1:] - 3), -1),
        },
    }


STARTS = {"logistic": torch.ones(GROUPS).double(), "svm": torch.tensor([2.0] + [-1.0] * FEATURES).double()}


def main() -> None:
    arguments = options(__doc__, "bilevel")
    solves = 6 if arguments.quick else SOLVES
    paths: dict[str, list[list[float]]] = {"logistic": [], "svm": []}
    names: dict[str, list[str]] = {}

    def run(seed: int) -> dict[str, float]:
        found: dict[str, float] = {}
        generator = torch.Generator().manual_seed(seed)
        baselines = candidates(generator)
        for model, make in (("logistic", logistic), ("svm", support_vectors)):
            loss = make(generator)
            results = {name: search(loss, rows[:solves]) for name, rows in baselines[model].items()}
            results["descent"], path = descend(loss, STARTS[model], solves)
            paths[model].append(path)
            names[model] = list(results)
            found |= {f"{model}: {name}: {part}": v for name, parts in results.items() for part, v in parts.items()}
        return found

    figures = over_seeds(run, arguments.seeds)
    print(f"log loss on validation data and on unseen data, and errors on unseen data in per cent, after {solves} trainings")
    table(figures)
    plot(figures, paths, names, arguments.plot)
    mean = means(figures)
    for model, rows in names.items():
        for part in ("validation", "unseen"):
            other = min(mean[f"{model}: {name}: {part}"] for name in rows[:-1])
            ours = mean[f"{model}: descent: {part}"]
            claim = f"{model}: descent ({ours:.3f}) beats the best baseline ({other:.3f}), {part} loss, {solves} trainings"
            require(claim, ours < other, arguments.quick)


def plot(
    figures: dict[str, list[float]], paths: dict[str, list[list[float]]], names: dict[str, list[str]], path: Path
) -> None:
    plt = pyplot()
    figure, panels = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    titles = {"logistic": "logistic regression, 4 penalties", "svm": "support vector machine, C and 8 scales"}
    for axes, (model, rows) in zip(panels, names.items(), strict=True):
        solves = len(paths[model][0])
        for k, one in enumerate(paths[model]):
            label = "descent (lines: seeds)" if k == 0 else None
            axes.plot(range(1, solves + 1), one, color="tab:blue", label=label)
        for name, colour in zip(rows[:-1], ("tab:orange", "tab:red"), strict=True):
            values = figures[f"{model}: {name}: validation"]
            axes.plot([solves] * len(values), values, "o", color=colour, label=f"{name} (dots: seeds)", clip_on=False)
        axes.set(xlabel="trainings", title=titles[model])
        axes.grid(alpha=0.3)
        axes.legend()
    panels[0].set_ylabel("best validation loss so far")
    save(figure, path)


if __name__ == "__main__":
    main()
