"""benchmarks/ablation.py: equal budgets, and a table that says what the reports say."""

from typing import Any

import ablation
import pytest

from livetalk_model.train.cost import STUDENT, Stage


@pytest.mark.parametrize("recipe", ablation.RECIPES)
def test_every_recipe_has_the_same_forward_passes(recipe):
    run = ablation.settings(recipe, 3, 4000.0)
    method = run.distillation
    spent = Stage(
        name="", learning=2, frozen=1, updates=run.steps, every=method.generator_every,
        chunks=method.chunks,
    ).forwards  # fmt: skip
    assert spent == pytest.approx(4000, rel=0.02)
    assert run.seed == 3 and STUDENT.chunks == 5


def report(mean: float, collapsed: int | None) -> dict[str, Any]:
    def entry(group: str, measure: str) -> dict[str, Any]:
        named = {"low": mean - 0.1, "high": mean + 0.1} if measure == "all" else {}
        return {"mean": mean, "low": None, "high": None, **named}

    summary: dict[str, dict[str, Any]] = {}
    for group, measure, _ in ablation.ROWS[:-1]:
        summary.setdefault(group, {})[measure] = entry(group, measure)
    streams = [
        {"color_correction": "off", "collapsed_in_chunk": collapsed},
        {"color_correction": "on", "collapsed_in_chunk": 1},
    ]
    return {"models": {"this": {"summary": {"off": summary}, "streams": streams}}}


def test_the_table_has_a_column_a_recipe():
    lines = ablation.table({"k1": report(1.05, 7), "k5": report(0.81, None)})
    assert lines[0] == "| measure | k1 | k5 |" and len(lines) == 2 + len(ablation.ROWS) + 1
    assert "| 1.05 [0.95, 1.15] | 0.81 [0.71, 0.91] |" in lines[2]
    assert lines[-2].endswith("| - | - |")  # a measure that no report has
    assert lines[-1] == "| streams whose picture was lost | 1 of 1 | 0 of 1 |"
