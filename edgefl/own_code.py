"""Python of somebody's own, named FILE.py:NAME: a model, a loss, a weight rule, wherever a name of ours could stand."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from edgefl.errors import InputError, nearest, said


def own(source: str) -> tuple[Path, str] | None:
    """File and name of "weights.py:mine"; None for any other text."""
    file, _, name = source.rpartition(":")
    return (Path(file), name) if file.endswith(".py") and name.isidentifier() else None


def load(path: Path, name: str, *, called: str = "") -> object:
    """The object called `name` in a Python file. Raises InputError in one clear line, which calls the file `called`."""
    module = import_file(path, called=called)
    found = getattr(module, name, None)
    if found is None:
        names = [key for key in vars(module) if not key.startswith("_")]
        raise InputError(f"no {name!r} in {called or path}", hint=nearest(name, names))
    return found


def check_file(path: Path) -> None:
    """Raises InputError where there is no such file, with the name of one that there is."""
    if not path.is_file():
        near = [p.name for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise InputError(f"no file {path}", hint=nearest(path.name, sorted(near)))


def import_file(path: Path, *, called: str = "") -> ModuleType:
    """The Python file as a module, once; its folder is importable while and after it runs, as with `python FILE`."""
    check_file(path)
    key = f"_edgefl_own_{path.resolve()}"
    if key in sys.modules:
        return sys.modules[key]
    spec = importlib.util.spec_from_file_location(key, path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    sys.modules[key] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # a file of somebody's own raises what it likes
        del sys.modules[key]
        raise InputError(f"{called or path} cannot be imported: {said(error)}") from error
    return module
