"""Layers with the calling conventions of other packages, so that code written for those runs after changing an import."""

from ddn_cvx.compat.cvxpylayers import CvxpyLayer

__all__ = ["CvxpyLayer"]
