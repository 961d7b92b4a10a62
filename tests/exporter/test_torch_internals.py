"""An upgrade of PyTorch looks at two files of one name: nobody else in the exporter names a private part of it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import edgefl_exporter

SOURCES = Path(edgefl_exporter.__file__).parent
OURS = {"torch_internals.py"}  # of the exporter, and of its lowering


def private_names(source: str) -> Iterator[str]:
    """What of `import torch._x`, `from torch._x import y`, `from torch.x import _y` and `torch.x._y` a file has."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "torch":
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.partition(".")[0] == "torch"]
        elif isinstance(node, ast.Attribute) and ast.unparse(node).startswith(("torch.", "nn.", "F.", "Tensor.")):
            names = [ast.unparse(node)]
        else:
            continue
        parts = (name.split(".") for name in names)
        yield from (".".join(p) for p in parts if any(part[:1] == "_" and part[:2] != "__" for part in p))
        yield from (name for name in names if name.startswith(("torch.fx.experimental", "torch.onnx")))


def test_private_names_are_found() -> None:
    source = (
        "from torch._x import y\nimport torch._z\nfrom torch.fx.experimental.proxy_tensor import make_fx\nnn.m._N\n"
    )
    assert list(private_names(source)) == [
        "torch._x.y",
        "torch._z",
        "torch.fx.experimental.proxy_tensor.make_fx",
        "nn.m._N",
    ]
    assert list(private_names("import torch\nfrom torch import nn\ntorch.__file__\naten._softmax.default")) == []


def test_only_two_files_name_what_torch_does_not_promise() -> None:
    found = {
        f"{path.relative_to(SOURCES)}: {name}"
        for path in SOURCES.rglob("*.py")
        if path.name not in OURS
        for name in private_names(path.read_text())
    }
    assert found == set()
    assert list(private_names((SOURCES / "torch_internals.py").read_text()))
