"""How an element ended: the codes of ``ddn_cvx.solution.Status`` that kernels write, which know nothing of the package."""

SOLVED, INFEASIBLE, LIMIT, BROKEN, INVALID = 0, 2, 4, 5, 6
