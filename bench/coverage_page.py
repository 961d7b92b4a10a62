"""docs/coverage.md, from the rows that coverage.py measured."""

from __future__ import annotations

from collections.abc import Iterator

from harness import Row, machine, versions

THIRD_OPINION = "onnx-ad"
MISSING = "missing"
TITLES = {  # kind of row -> the heading of its table
    "zoo": "Models of the zoo",
    "layer": "Layers, each in a small net",
    "option": "Options of export, on a small net",
}


def page(rows: list[Row], runtimes: dict[str, str]) -> str:
    """The page for these rows; `runtimes`: the name of each runtime's column -> why it is missing, "" if it is not."""
    reasons: dict[str, int] = {}  # reason -> its number
    kinds = [kind for kind in TITLES if any(row["kind"] == kind for row in rows)]
    only = "".join(f" --kind {kind}" for kind in kinds) if len(kinds) < len(TITLES) else ""
    command = f"python bench/coverage.py{only} -o docs/coverage.md" if only else "make coverage"
    parts = [_HEAD.format(command=command, machine=_listed(machine()), versions=_listed(versions()))]
    for kind, title in TITLES.items():
        if chosen := [row for row in rows if row["kind"] == kind]:
            parts += [f"## {title}\n", *_table(chosen, list(runtimes), reasons), ""]
    if gone := [f"* {name}: {why}" for name, why in runtimes.items() if why]:
        parts += ["## Missing where this was made\n", *gone, ""]
    if reasons:
        parts += ["## Why not\n", *(f"{number}. {reason}" for reason, number in reasons.items()), ""]
    return "\n".join(parts)


_HEAD = """# Coverage

    {command}

made this page: each model exported, then replayed from its golden inputs in every runtime. `make coverage` takes every
model of the zoo (`edgefl zoo`), every net of the layer tests and every option of export.
Machine: {machine}.
Versions: {versions}.

* *program*: the training program's file, without weights.
* *export*: seconds of one processor core, proofs included (the zoo's for onnxruntime-training too, where it has them).
* *parity*: the worst relative error in the proof at export (|program - torch| / |torch| over whole tensors), over all
  programs and checks. A bundle over a tolerance (1e-4; saturated inputs 2e-3; twenty free steps 1e-2) is not written.
* A runtime's column: the worst relative error over the golden outputs of all programs, as `edgefl verify` gives it; to
  be at most 1e-4.
* *onnx-ad*: how far our gradient is from the one that [onnx-ad](https://github.com/yacoda/onnx-ad) derives from the
  forward half of the training program, ONNX to ONNX: a third opinion. It was told the batch size.
* *no*: the number says why, below.
"""


def _table(rows: list[Row], runtimes: list[str], reasons: dict[str, int]) -> Iterator[str]:
    head = ["model", "parameters", "program, KiB", "export, s", "parity", *runtimes, THIRD_OPINION]
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        notes = row["notes"]
        if "export" in notes:
            cells = ["", "", f"no ({_number(notes['export'], reasons)})", *[""] * (len(runtimes) + 2)]
        else:
            figures = [f"{row['parameters']:,}", f"{row['train_bytes'] / 1024:.0f}", f"{row['export_cpu_s']:.1f}"]
            names = ("parity", *runtimes, THIRD_OPINION)
            cells = [*figures, *(_cell(row[name], notes.get(name, ""), reasons) for name in names)]
        yield f"| {' | '.join([row['model'], *cells])} |"


def _cell(error: float | None, note: str, reasons: dict[str, int]) -> str:
    if error is not None:
        return f"{error:.1e}"
    if not note:
        return ""  # nobody asked
    return MISSING if note.startswith(MISSING) else f"no ({_number(note, reasons)})"


def _number(reason: str, reasons: dict[str, int]) -> int:
    return reasons.setdefault(reason, len(reasons) + 1)


def _listed(values: dict[str, object] | dict[str, str]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items())
