"""Drawings that stand in a page and take its colours: dark on light pages, light on dark ones.

As files of their own (the README) they follow the setting of the system.
"""

from __future__ import annotations

from html import escape
from pathlib import Path

HERE = Path(__file__).parent
INK, FAINT, FORWARD, BACKWARD = "#010203", "#040506", "#3b82f6", "#ea7317"
COLOURS = {INK: "var(--color-foreground-primary, var(--ink))", FAINT: "var(--color-background-border, var(--faint))"}
STYLE = """<style>
.ddn { --ink: #1f2328; --faint: #d8dee4 }
@media (prefers-color-scheme: dark) { .ddn { --ink: #e6edf3; --faint: #444c56 } }
</style>"""
SANS = 'font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif"'
MONO = 'font-family="ui-monospace, SFMono-Regular, Menlo, Consolas, monospace"'
MATHS = 'font-family="STIX Two Text, Cambria, Georgia, Times New Roman, serif" font-style="italic"'


def save(name: str, title: str, width: float, height: float, body: str) -> None:
    """Write ``name.svg`` beside this file; ``title`` is what a screen reader says."""
    for colour, variable in COLOURS.items():
        body = body.replace(colour, variable)
    space = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    head = f'<svg {space} viewBox="0 0 {width:g} {height:g}" class="ddn" role="img" aria-label="{escape(title)}">'
    lines = f"{head}\n{STYLE}\n{body}\n</svg>".splitlines()
    (HERE / f"{name}.svg").write_text("".join(f"{line.rstrip()}\n" for line in lines), encoding="utf-8")


def text(
    x: float, y: float, content: str, size: float = 15, colour: str = INK, rest: str = "", anchor: str = "middle"
) -> str:
    """A line of text, which may hold ``tspan`` elements."""
    style = f'font-size="{size}" text-anchor="{anchor}" style="fill: {colour}" {rest}'
    return f'<text x="{x}" y="{y}" {style}>{content}</text>'


def box(x: float, y: float, width: float, height: float, colour: str, fill: str = "none") -> str:
    """A box with round corners, faintly filled."""
    place = f'x="{x}" y="{y}" width="{width}" height="{height}"'
    return f'<rect {place} rx="10" stroke-width="1.6" style="stroke: {colour}; fill: {fill}" fill-opacity="0.09"/>'


def arrow(x: float, y: float, length: float, colour: str, down: bool = False) -> str:
    """An arrow to the right (left if the length is negative) or down."""
    s = 1 if length > 0 else -1
    turn = f' transform="rotate(90 {x} {y})"' if down else ""
    return (
        f'<g{turn}><path d="M{x} {y}H{x + length - 9 * s}" stroke-width="2.2" fill="none" style="stroke: {colour}"/>'
        f'<path d="M{x + length} {y}l{-12 * s} -6v12z" style="fill: {colour}"/></g>'
    )
