"""Elementwise expressions: what the fuse pass folds into an operator's epilogue and `map` computes alone.

An expression is a nested tuple, so that it can be compared, hashed, printed and written as JSON:

    ("acc", i)              result i of the operator that the expression is an epilogue of
    ("in", i)               element of extra input i at the same index
    ("const", x)            a number
    (name, arg, ...)        a function of `ops/elementwise.py`
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Expr = tuple[Any, ...]


LEAVES = ("acc", "in", "const")


def substitute(expr: Expr, replace: Callable[[Expr], Expr]) -> Expr:
    """The expression with every leaf replaced by `replace(leaf)`."""
    if expr[0] in LEAVES:
        return replace(expr)
    return (expr[0], *(substitute(arg, replace) for arg in expr[1:]))


def leaves(expr: Expr) -> int:
    """The number of leaves of the expression; one that occurs twice counts twice."""
    return 1 if expr[0] in LEAVES else sum(leaves(arg) for arg in expr[1:])


def to_text(expr: Expr) -> str:
    """The expression as C++ and Python both write it, e.g. `mul(silu(acc0), acc1)`."""
    if expr[0] == "const":
        return repr(float(expr[1]))
    if expr[0] in LEAVES:
        return f"{expr[0]}{expr[1]}"
    return f"{expr[0]}({', '.join(to_text(arg) for arg in expr[1:])})"


def to_cpp(expr: Expr) -> str:
    """The expression over `v16` values named acc0, acc1, …, in0, in1, …"""
    if expr[0] == "const":
        return f"splat({float(expr[1])!r}f)"
    if expr[0] in LEAVES:
        return f"{expr[0]}{expr[1]}"
    return f"{expr[0]}({', '.join(to_cpp(arg) for arg in expr[1:])})"


def to_scalar(expr: Expr) -> str:
    """The expression in C++ over single numbers named acc0, acc1, …, in0, in1, … (`ops/kit/cuda/scalar.cuh`)."""
    if expr[0] == "const":
        return f"{float(expr[1])!r}f"
    if expr[0] in LEAVES:
        return f"{expr[0]}{expr[1]}"
    return f"{expr[0]}({', '.join(to_scalar(arg) for arg in expr[1:])})"
