"""A measured figure between what it must be and what it should be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from rich.table import Table

Verdict = Literal["fail", "pass", "goal"]


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the evaluation.

    Attributes:
        name: What is measured.
        value: In `unit`.
        must: The least that a release needs; the most, where `at_most`.
        goal: What good looks like.
        unit: Of value, must, goal and bounds.
        at_most: Whether smaller is better.
        bounds: What the same measure says of other things: of real frames, of copying the last frame, and so on.
        note: How many were measured.
    """

    name: str
    value: float
    must: float
    goal: float
    unit: str
    at_most: bool = False
    bounds: dict[str, float] = field(default_factory=dict)
    note: str = ""

    @property
    def verdict(self) -> Verdict:
        """Where the value lies."""
        sign = -1 if self.at_most else 1
        if sign * self.value >= sign * self.goal:
            return "goal"
        return "pass" if sign * self.value >= sign * self.must else "fail"

    def as_json(self) -> dict[str, Any]:
        """The figure with its verdict, numbers rounded to two places."""
        return {
            "figure": self.name,
            "value": round(self.value, 2),
            "unit": self.unit,
            "must": self.must,
            "goal": self.goal,
            "verdict": self.verdict,
            "bounds": {name: round(bound, 2) for name, bound in self.bounds.items()},
            "note": self.note,
        }


def table(figures: Sequence[Figure]) -> Table:
    """Figures for a terminal."""
    colors: dict[Verdict, str] = {"fail": "red", "pass": "yellow", "goal": "green"}
    shown = Table("figure", "value", "must", "goal", "verdict", "bounds", "measured on")
    for figure in figures:
        sign = "<= " if figure.at_most else ""
        bounds = ", ".join(f"{name} {bound:.1f}" for name, bound in figure.bounds.items())
        value = f"{figure.value:.1f} {figure.unit}"
        verdict = f"[{colors[figure.verdict]}]{figure.verdict}[/]"
        limits = (f"{sign}{limit:g}" for limit in (figure.must, figure.goal))
        shown.add_row(figure.name, value, *limits, verdict, bounds, figure.note)
    return shown
