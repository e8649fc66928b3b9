"""Public names are documented whole: what goes in, what comes out, where it is from, and an example that runs."""

from __future__ import annotations

import ast
import dataclasses
import doctest
import inspect
import re
import sys
import textwrap
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import ddn_cvx
import ddn_cvx.compat.ddn
from ddn_cvx import compat, extend, nodes, testing

OPTIONS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
NUMBER = re.compile(r"-?\b\d+\.\d*(?:e[-+]?\d+)?")


class Close(doctest.OutputChecker):
    """The same words around the same numbers, of which four digits count: the last ones are the machine's."""

    def check_output(self, want: str, got: str, optionflags: int) -> bool:
        numbers = [[float(number) for number in NUMBER.findall(text)] for text in (want, got)]
        words = [re.sub(r"\s+", "", NUMBER.sub("#", text)) for text in (want, got)]
        if numbers[0] and words[0] == words[1]:
            return len(numbers[0]) == len(numbers[1]) and numbers[1] == pytest.approx(numbers[0], rel=2e-4, abs=2e-4)
        return super().check_output(want, got, optionflags)


def public(module: ModuleType) -> dict[str, Any]:
    """Classes and functions that a module offers, by the name under which they are documented."""
    names = getattr(module, "__all__", None) or [name for name in vars(module) if not name.startswith("_")]
    found = {name: getattr(module, name) for name in names}
    return {
        f"{module.__name__}.{name}": thing
        for name, thing in found.items()
        if (inspect.isclass(thing) or inspect.isfunction(thing)) and thing.__module__.startswith("ddn_cvx")
    }


NAMES = {
    **public(ddn_cvx),
    **public(nodes),
    **public(compat),
    **{name: thing for name, thing in public(testing).items() if inspect.isfunction(thing)},
    **{name: thing for name, thing in public(compat.ddn).items() if thing.__module__ == compat.ddn.__name__},
}
every_name = pytest.mark.parametrize("name", NAMES)
EXTEND = public(extend)
NEEDS = {"ECOS": "ecos", **dict.fromkeys(("ODE", "Torchdiffeq", "NeuralODE", "LinearODE"), "torchdiffeq")}
"""Packages that one may do without, and what then has no example to run."""


def sections(thing: Any) -> set[str]:
    return set(re.findall(r"^([A-Z]\w+)\n-+$", inspect.getdoc(thing) or "", re.MULTILINE))


def undocumented_fields(kind: type) -> Iterator[str]:
    """Fields of a dataclass that no text follows."""
    for base in kind.__mro__:
        if base.__module__.startswith("ddn_cvx"):
            body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0].body  # type: ignore[attr-defined]
            for one, after in zip(body, [*body[1:], None], strict=True):
                if isinstance(one, ast.AnnAssign) and "ClassVar" not in ast.unparse(one.annotation):
                    text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                    if not text and not ast.unparse(one.target).startswith("_"):
                        yield f"{base.__name__}.{ast.unparse(one.target)}"


@every_name
def test_has_an_example(name: str) -> None:
    assert "Examples" in sections(NAMES[name]), f"{name} has no example"


@every_name
def test_arguments_are_documented(name: str) -> None:
    thing = NAMES[name]
    if dataclasses.is_dataclass(thing):
        assert not list(undocumented_fields(thing))  # type: ignore[arg-type]
    elif inspect.isfunction(thing) or not issubclass(thing, (BaseException, int)):
        text = inspect.getdoc(thing) or ""
        for argument in inspect.signature(thing).parameters.values():
            if argument.kind is not argument.VAR_KEYWORD and argument.name != "constr_id":
                assert re.search(rf"^[\w*, ]*\b{argument.name}\b[\w*, ]*( :|$)", text, re.MULTILINE), f"{argument} of {name}"


@every_name
def test_methods_say_what_they_return(name: str) -> None:
    for method, function in vars(NAMES[name]).items() if inspect.isclass(NAMES[name]) else ():
        if inspect.isfunction(function) and not method.startswith("_"):
            assert inspect.getdoc(function), f"{name}.{method}"


@pytest.mark.parametrize("name", NAMES)
def test_examples_run(name: str) -> None:
    thing = NAMES[name]
    if thing.__name__ in NEEDS:
        pytest.importorskip(NEEDS[thing.__name__])
    finder, runner = doctest.DocTestFinder(recurse=True), doctest.DocTestRunner(Close(), optionflags=OPTIONS)
    said: list[str] = []
    with warnings.catch_warnings():
        # Examples of nodes take the imports of their file for granted.
        globs = dict(vars(sys.modules[thing.__module__])) if thing.__module__.startswith("ddn_cvx.nodes") else {}
        for test in finder.find(thing, name, module=False, globs=globs):
            runner.run(test, out=said.append)
    assert not runner.failures, "".join(said)
    assert runner.tries, f"nothing to run in {name}"


@pytest.mark.parametrize("name", EXTEND)
def test_what_extensions_are_written_against_is_documented(name: str) -> None:
    thing = EXTEND[name]
    assert inspect.getdoc(thing), name
    if dataclasses.is_dataclass(thing):
        assert not list(undocumented_fields(thing))  # type: ignore[arg-type]
    for method, function in vars(thing).items() if inspect.isclass(thing) else ():
        if inspect.isfunction(function) and not method.startswith("_"):
            assert inspect.getdoc(getattr(thing, method)), f"{name}.{method}"


def test_the_api_pages_name_everything() -> None:
    docs = Path(__file__).parents[1] / "docs"
    pages = {page.stem: page.read_text(encoding="utf-8") for page in docs.glob("api*.md")}
    overview = pages["api"][: pages["api"].index("**One grammar.**")]
    listed = re.findall(r"\{class\}`~ddn_cvx\.(\w+)`", overview)
    described = re.findall(r":: ddn_cvx\.([\w.]+)", "\n".join(pages.values()))
    assert sorted(listed) == sorted(set(ddn_cvx.__all__) - {"__version__"})
    assert set(listed) | {name.removeprefix("ddn_cvx.") for name in EXTEND} <= set(described)
    assert sorted(re.findall(r"autoclass:: (\S+)", pages["api-nodes"])) == sorted(public(nodes))


def test_options_are_in_one_order() -> None:
    """``max_iterations``, then tolerances, then what is peculiar to the method; ``threads`` last."""
    first = ["max_iterations", "tolerance", "solved_tolerance", "inaccurate_tolerance", "certificate_tolerance"]
    for name, kind in public(ddn_cvx).items():
        if dataclasses.is_dataclass(kind) and "max_iterations" in (options := [f.name for f in dataclasses.fields(kind)]):
            common = [option for option in options if option in first]
            assert common == [option for option in first if option in options], name
            start = options.index("max_iterations")
            assert options[start : start + len(common)] == common, name
            assert "threads" not in options[:-1], name
