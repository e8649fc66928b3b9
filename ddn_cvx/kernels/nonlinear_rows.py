"""Where a lane of the interior-point method for nonlinear programs keeps what."""

from __future__ import annotations

# rows of x: (n,) each
Y, TRIAL_Y, SAVED_Y, GRADIENT, SLOPE, DY, DY_AFFINE, DY_CENTRAL, DY_SECOND, FREE, X_ROWS = range(11)
# rows of e: (p,) each
LAM, TRIAL_LAM, SAVED_LAM, H, TRIAL_H, SECOND_H, DLAM, DLAM_AFFINE, DLAM_CENTRAL, DLAM_SECOND, SCALE_H, E_ROWS = range(12)
# rows of c: (m + 2n,) each, of which the first count[ROWS] are used, and of G .. SCALE_G the first m
T, TRIAL_T, SAVED_T, V, TRIAL_V, SAVED_V, DT, DT_AFFINE, DT_CENTRAL, DT_SECOND, DV, DV_AFFINE, DV_CENTRAL, DV_SECOND = range(
    14
)
G, TRIAL_G, SECOND_G, SCALE_G, SIGMA, BOUND, C_ROWS = range(14, 21)
# numbers
F, TRIAL_F, SCALE_F, MU, SHIFT, FORCED, LENGTH, LONGEST, LONGEST_V, FRACTION = range(10)
THETA, PHI, DESCENT, LEAST_THETA, MOST_THETA, ERROR, BEST, POLISH_AT, POLISHED, DUAL, PRIMAL, NUMBERS = range(10, 22)
# counters
ELEMENT, STATE, ROWS, ITERATION, FIXED_MODE, ENTRIES, HALVINGS, CRAWLED, TROUBLE, WAITED, MERITS, RESETS, COUNTS = range(13)
# parts of a step: DY + AFFINE is the row DY_AFFINE, and so on
WHOLE, AFFINE, CENTRAL, SECOND = range(4)
