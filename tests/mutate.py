"""`make mutate`: of the small mistakes that one can make in a module, how many do the module's own tests see?

mutmut makes the mistakes, one at a time (`-` for `+`, `<` for `<=`, None for an argument), in functions and methods
without a decorator, and runs the tests that pass there. It has one set of tests for everything and wants a package to
lie where it is imported from. So each module of mutants.toml has a copy of the tree, with its packages as in the wheel.
"""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PACKAGES = ("edgefl", "exporter/edgefl_exporter", "devices/python/edgefl_device", "broker/edgefl_broker")
BESIDE = ("tests", "bench", "docs", "examples", "pyproject.toml", "README.md", "CHANGELOG.md")
LEAST = 95.0  # per cent
CAUGHT = {1, 3, 36, 24, -24, 152, 255, -11, -9}  # mutmut's exit codes for: a test failed, took too long, crashed
CONFIG = """[mutmut]
source_paths =
    edgefl
    edgefl_exporter
    edgefl_device
    edgefl_broker
only_mutate =
    {file}
pytest_add_cli_args_test_selection =
    {tests}
also_copy =
    {beside}
do_not_mutate_patterns =
    ^\\s*assert\\s
process_isolation = forkserver
"""

Mutant = dict[str, Any]  # name, line, was, becomes


@click.command()
@click.argument("names", nargs=-1)
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text")
@click.option("--jobs", default=2, show_default=True, help="Mutants that are tested at a time.")
def main(names: tuple[str, ...], form: str, jobs: int) -> None:
    """Say how many mutants of each module its own tests catch; exit 1 where they catch too few.

    NAMES are parts of the paths in tests/mutants.toml; without any, all modules are mutated.

    \b
    Example:
        python tests/mutate.py store journal
    """
    table = tomllib.loads((ROOT / "tests/mutants.toml").read_text())
    chosen = [entry for entry in table["module"] if not names or any(name in entry["file"] for name in names)]
    results = [result_of(entry, table.get("equivalent", []), jobs) for entry in chosen]
    if form == "json":
        print(json.dumps(results))
    if not chosen or any(result["percent"] < LEAST or result["unknown"] for result in results):
        sys.exit(1)


def result_of(entry: dict[str, Any], named: list[dict[str, str]], jobs: int) -> dict[str, Any]:
    """One module: its mutants counted, those that live and are not named as equivalent, and what is named in vain."""
    source = ROOT / entry["file"]
    package = next(path for path in PACKAGES if entry["file"].startswith(f"{path}/"))
    file = f"{Path(package).name}/{source.relative_to(ROOT / package).as_posix()}"
    tests = sorted(str(p.relative_to(ROOT)) for pattern in entry["tests"] for p in ROOT.glob(pattern))
    assert source.exists() and tests, f"mutants.toml: no {entry['file']}, or no tests for it"
    with tempfile.TemporaryDirectory() as folder:
        tree = copied(Path(folder), file, tests)
        done = mutmut(tree, "run", "--max-children", str(jobs))
        codes: dict[str, int | None] = {}
        if (tree / "mutants" / f"{file}.meta").exists():
            codes = json.loads((tree / "mutants" / f"{file}.meta").read_text())["exit_code_by_key"]
        if not codes or None in codes.values():
            sys.exit(
                f"{entry['file']}: mutmut ended with exit code {done.returncode} before all mutants were tested\n"
                f"{done.stdout[-3000:]}"
            )
        living = [described(tree, name, tree / file) for name, code in codes.items() if code not in CAUGHT]
    own = [one for one in named if one["file"] == entry["file"]]
    pairs = [(one["was"], one["becomes"]) for one in own]
    survivors = [mutant for mutant in living if (mutant["was"], mutant["becomes"]) not in pairs]
    found = {(mutant["was"], mutant["becomes"]) for mutant in living}
    total = len(codes) - (len(living) - len(survivors))
    percent = 100 * (1 - len(survivors) / max(1, total))
    unknown = [pair for pair in pairs if pair not in found]
    print(
        f"{entry['file']}: {percent:.1f} % of {total} mutants caught, {len(codes) - total} equivalent", file=sys.stderr
    )
    for mutant in survivors:
        print(f"  {entry['file']}:{mutant['line']}\n    - {mutant['was']}\n    + {mutant['becomes']}", file=sys.stderr)
    for was, becomes in unknown:
        print(f"  named as equivalent, but no mutant lives:\n    - {was}\n    + {becomes}", file=sys.stderr)
    counts = {"file": entry["file"], "mutants": total, "equivalent": len(codes) - total, "percent": round(percent, 2)}
    return counts | {"survivors": survivors, "unknown": unknown}


def copied(tree: Path, file: str, tests: list[str]) -> Path:
    """The tree with its packages side by side, set up to mutate one file."""
    ignored = shutil.ignore_patterns("__pycache__", "*.bundle", "runs", "node_modules")
    for path in (*PACKAGES, *BESIDE):
        target = tree / (Path(path).name if path in PACKAGES else path)
        if (ROOT / path).is_dir():
            shutil.copytree(ROOT / path, target, ignore=ignored)
        else:
            shutil.copy(ROOT / path, target)
    lists = {"tests": "\n    ".join(tests), "beside": "\n    ".join(BESIDE)}
    (tree / "setup.cfg").write_text(CONFIG.format(file=file, **lists))
    return tree


def mutmut(tree: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mutmut", *arguments]
    return subprocess.run(command, cwd=tree, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def described(tree: Path, name: str, source: Path) -> Mutant:
    """Where a mutant is and what it changes."""
    lines = mutmut(tree, "show", name).stdout.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("@@"))
    hunk = lines[start + 1 :]
    offset = int(lines[start].split()[1].split(",")[0][1:]) - 1
    before = next(i for i, line in enumerate(hunk) if line[0:1] in ("-", "+"))
    was = " ".join(line[1:].strip() for line in hunk if line.startswith("-"))
    becomes = " ".join(line[1:].strip() for line in hunk if line.startswith("+"))
    return {"name": name, "line": line_of(name, source) + offset + before, "was": was, "becomes": becomes}


def line_of(name: str, source: Path) -> int:
    """Where a mutant's function begins. `name` is MODULE.x_NAME__mutmut_1 or MODULE.xǁCLASSǁNAME__mutmut_1."""
    *holder, function = name.rpartition(".")[2].rpartition("__mutmut_")[0][2:].split("ǁ")
    tree: Any = ast.parse(source.read_text())
    if holder:
        tree = next(node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name == holder[0])
    found = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == function)
    return min([found.lineno, *(decorator.lineno for decorator in found.decorator_list)])


if __name__ == "__main__":
    main()
