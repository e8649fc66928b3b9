"""Draws the flow charts of the pages on concepts, solvers and adjoints: from top to bottom, with answers beside.

python docs/figures/choices.py
"""

from __future__ import annotations

from html import escape

from drawing import FORWARD, INK, MONO, SANS, arrow, box, save, text

SOLVERS = (
    ("No reason to choose?", 'solver="auto"', "by a cost model; print(layer.explain())"),
    ("Local minima in the way?", "MultiStart()", "or solve= of your own, initial= for one start"),
    ("A solver of your own?", "TorchProblem(solve=...)", "checked and polished like any other"),
    ("Large and sparse?", "Clarabel()", "FirstOrder() if factors fill up, or on a GPU"),
    ("Slow in float64?", "ConicInteriorPoint(single=True)", "factors in float32, the answer refined"),
    ("To compare packages?", 'CvxpySolver("OSQP"), SCS(), Diffcp()', "the same gradient with all of them"),
)
ADJOINTS = (
    ("The true derivative?", "Implicit()", "the default: exact, every mode"),
    ("Zero: the answer jumps?", "Smoothed(width)", "a slope within width, in units of the objective"),
    ("Zero, further than that?", "LPGD(tau)", "looks as far as the loss would move the answer"),
    ("At a kink, one side?", "Implicit(weakly_active=...)", '"inactive", "active" or "average"'),
    ("A cheap direction will do?", "Approximate(mode)", "downhill often, not always"),
    ("Newton's own steps?", "Unrolled(steps)", "plain autograd, to check the others"),
    ("As cvxpylayers has it?", "DiffcpAdjoint()", "cone programs, first order, slow"),
)

STEPS = (
    ("declare", "what you write", "a problem in cvxpy or torch; read once"),
    ("program", "F(z, data) = 0", "structure without values"),
    ("solve", "z* with F(z*) = 0", "a whole batch, by whatever solver"),
    ("solution", "a status for each element", "checked against what you wrote"),
    ("differentiate", "dz*/d data", "from F alone; no solver is asked"),
    ("layer", "nn.Module", "shapes, batches, devices, errors"),
)


def outcome(x: float, y: float, width: float, answer: str, remark: str) -> list[str]:
    """A box with what to take, and why."""
    return [
        box(x, y, width, 50, FORWARD, FORWARD),
        text(x + 10, y + 21, escape(answer, quote=False), 13.5, INK, MONO, "start"),
        text(x + 10, y + 41, escape(remark, quote=False), 13, INK, "", "start"),
    ]


def chart(rows: tuple[tuple[str, str, str], ...], yes: str = "yes", no: str = "no") -> str:
    """A row for each question: no goes down, yes goes right."""
    parts = [f"<g {SANS}>"]
    for place, (question, answer, remark) in enumerate(rows):
        y = 6 + 78 * place
        parts += [
            box(6, y, 204, 50, INK),
            text(108, y + 30, escape(question), 14),
            arrow(213, y + 25, 44, FORWARD),
            text(232, y + 17, yes, 12, FORWARD),
            *outcome(260, y, 334, answer, remark),
        ]
        if place + 1 < len(rows):
            parts += [arrow(108, y + 53, 22, INK, down=True), text(124, y + 69, no, 12, INK)]
    return "\n".join((*parts, "</g>"))


def tall_chart(rows: tuple[tuple[str, str, str], ...], yes: str = "yes") -> str:
    """The same for a phone: each answer below its question."""
    parts = [f"<g {SANS}>"]
    for place, (question, answer, remark) in enumerate(rows):
        y = 6 + 132 * place
        parts += [
            box(6, y, 348, 34, INK),
            text(180, y + 22, escape(question), 15),
            arrow(60, y + 36, 24, FORWARD, down=True),
            text(76, y + 52, yes, 12, FORWARD, "", "start"),
            *outcome(32, y + 62, 322, answer, remark),
        ]
        if place + 1 < len(rows):
            parts.append(arrow(18, y + 36, 94, INK, down=True))
    return "\n".join((*parts, "</g>"))


def main() -> None:
    for name, title, rows in (
        ("solvers", "Which solver: questions and answers", SOLVERS),
        ("adjoints", "Which adjoint: questions and answers", ADJOINTS),
    ):
        save(name, title, 600, 78 * len(rows) - 16, chart(rows))
        save(f"{name}_tall", title, 360, 132 * len(rows) - 8, tall_chart(rows))
    title = "From a declaration to a layer: declare, program, solve, solution, differentiate, layer"
    save("steps", title, 600, 78 * len(STEPS) - 16, chart(STEPS, "", ""))
    save("steps_tall", title, 360, 132 * len(STEPS) - 8, tall_chart(STEPS, ""))


if __name__ == "__main__":
    main()
