"""Written by ``python -m benchmarks.cost_model --write``; see ``cost``."""

# (solver, device): seconds a call, seconds an instance, operations a second
RATES: dict[tuple[str, str], tuple[float, float, float]] = {
    ("active_set", "cpu"): (1.46e-05, 1.07e-06, 6.34e09),
    ("clarabel", "cpu"): (2.62e-04, 3.27e-05, 1.27e09),
    ("conic_interior_point", "cpu"): (2.00e-02, 1.00e-04, 3.00e09),
    ("interior_point", "cpu"): (1.59e-03, 3.49e-05, 1.98e10),
    ("mehrotra", "cpu"): (6.63e-05, 2.69e-05, 1.68e10),
}
