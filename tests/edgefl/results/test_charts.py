"""The script that draws charts: its ticks, scales and words, under Node; skipped where there is none."""

from __future__ import annotations

import json
import shutil
import subprocess
from importlib.resources import files
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(shutil.which("node") is None, reason="no Node here")


@pytest.fixture(scope="module")
def answers() -> list[Any]:
    """What each of QUESTIONS gives, of one process: a start of Node takes longer than all of them."""
    script = str(files("edgefl.results") / "web" / "charts.mjs")
    asked = ", ".join(f"() => {question}" for question, _ in QUESTIONS)
    source = f"""
        import * as charts from {json.dumps(script)};
        const {{ measure, ticks, decades, written, shown, axisOf, nearest, figures, axes, reach }} = charts;
        const line = (name, ...value) =>
          ({{ name, round: value.map((_, i) => i + 1), bytes: value.map((_, i) => 10 * i), seconds: value, value }});
        const chart = {{ key: "loss", title: "Loss", unit: "number", against: ["round"] }};
        const run = (name, lines, more) => ({{ name, target: null, charts: [{{ ...chart, lines, ...more }}] }});
        console.log(JSON.stringify([{asked}].map((ask) => ask())));
    """
    done = subprocess.run(["node", "--input-type=module", "--eval", source], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: list[Any] = json.loads(done.stdout)
    return found


QUESTIONS: list[tuple[str, Any]] = [
    ("ticks(0, 1)", [0, 0.2, 0.4, 0.6, 0.8, 1]),
    ("ticks(0, 97)", [0, 20, 40, 60, 80, 100]),
    ("ticks(0.3, 0.31)", [0.3, 0.302, 0.304, 0.306, 0.308, 0.31]),
    ("ticks(-3, 8)", [-5, 0, 5, 10]),
    ("ticks(5, 5)", [5]),
    ("decades(0.02, 300)", [0.01, 0.1, 1, 10, 100, 1000]),
    ("decades(1e-12, 1).length <= 8", True),
    ("decades(1e-12, 1).every((d, i, all) => i === 0 || d > all[i - 1])", True),
    ("written(0)", "0"),
    ("written(1234567)", "1,234,567"),
    ("written(0.123456)", "0.1235"),
    ("written(12.5)", "12.5"),
    ("written(0.0000125)", "1.25e-5"),
    ("written(-2.5e9)", "-2.5e9"),
    ('shown(0.97222, "share")', "97.22 %"),
    ('shown(1536, "bytes")', "1.5 KiB"),
    ('shown(0, "bytes")', "0 B"),
    ('shown(1024 ** 6, "bytes")', "1,048,576 TiB"),
    ('shown(8.04, "seconds")', "8.04 s"),
    ('shown(600, "seconds")', "10 min"),
    ('shown(9000, "seconds")', "2.5 h"),
    ('axisOf(0, 43.7 * 1024 ** 2, "bytes").at.map((v) => v / 1024 ** 2)', [0, 10, 20, 30, 40, 50]),
    ('axisOf(0, 2, "number", { whole: true }).at', [0, 1, 2]),
    ('axisOf(0, 0, "bytes").at', [0, 1]),
    ('axisOf(0, 1, "share").place(0.25)', 0.25),
    ('axisOf(3, 3, "number").place(3) >= 0', True),
    ('axisOf(0, 0, "number").to > 0', True),
    ('axisOf(0.01, 100, "number", { logarithmic: true }).place(1).toFixed(6)', "0.500000"),
    ("[nearest([1, 4, 9], -5), nearest([1, 4, 9], 3), nearest([1, 4, 9], 7), nearest([1, 4, 9], 99)]", [0, 1, 2, 2]),
    ("[nearest([], 1), nearest([7], 1)]", [-1, 0]),
    # One run, one line: no name is needed. Two runs: their names, a colour each.
    ('figures([run("a", [line("", 3, 2)])])[0].lines.map((l) => [l.name, l.colour, l.run])', [["", 0, 0]]),
    (
        'figures([run("a", [line("", 3)]), run("b", [line("", 4, 5)])])[0].lines.map((l) => [l.name, l.colour, l.y])',
        [["a", 0, [3]], ["b", 1, [4, 5]]],
    ),
    # Devices keep their colour in both runs, which are told apart by dashes.
    (
        'figures([run("a", [line("x", 1), line("y", 2)]), run("b", [line("y", 3)])])'
        ".map((f) => [f.dashed, f.lines.map((l) => [l.name, l.colour, l.run])])[0]",
        ["b", [["x", 0, 0], ["y", 1, 0], ["y, dashed", 1, 1]]],
    ),
    # A chart that only one run has is drawn too, and one against three axes is three figures.
    ('figures([run("a", []), run("b", [line("", 1)], { key: "other" })]).map((f) => f.lines.length)', [0, 1]),
    (
        'figures([run("a", [line("", 5, 7)], { against: ["round", "bytes", "seconds"] })]).map((f) => f.lines[0].x)',
        [[1, 2], [0, 10], [5, 7]],
    ),
    ('reach(figures([run("a", [line("", 5, 7)]), run("b", [line("", 1, 1, 1)])]))', {"round": 3}),
    # Values over more than three decades have a logarithmic axis; a loss begins at 0.
    ('axes(figures([run("a", [line("", 0.0001, 1)])])[0], 2).y.at', [0.0001, 0.001, 0.01, 0.1, 1]),
    ('axes(figures([run("a", [line("", 0.5, 1)])])[0], 2).y.from', 0),
    ('axes(figures([run("a", [line("", -1, 1)])])[0], 2).y.from', -1),
]


@pytest.mark.parametrize("number", range(len(QUESTIONS)), ids=[question for question, _ in QUESTIONS])
def test_by_hand(number: int, answers: list[Any]) -> None:
    assert answers[number] == QUESTIONS[number][1]
