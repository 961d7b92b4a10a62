"""What a person is told when a model cannot be lowered: the operator, the module, the line, and what to use instead."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType, TracebackType

import torch

import edgefl_exporter
from edgefl.errors import LoweringError

# A word of the operator's name -> what to do. The first that fits is shown.
HINTS = {
    "randperm": "shuffle the data, not the activations",
    "multinomial": "draw with torch.rand and a comparison: it becomes part of the program",
    "rrelu": "use nn.LeakyReLU or nn.PReLU",
    "fractional_max_pool": "use nn.MaxPool2d",
    "rand": "use torch.rand, torch.randn, bernoulli or dropout: these become part of the program",
    "poisson": "use torch.rand, torch.randn, bernoulli or dropout: these become part of the program",
    "exponential": "use -torch.log1p(-torch.rand(...))",
    "cauchy": "use torch.rand, torch.randn, bernoulli or dropout: these become part of the program",
    "geometric": "use torch.rand, torch.randn, bernoulli or dropout: these become part of the program",
    "log_normal": "use torch.randn(...).exp()",
    "fft": "replace the Fourier transform by convolutions, or by features computed before training",
    "stft": "compute the spectrogram before training",
    "complex": "keep real and imaginary parts as two real tensors",
    "view_as_real": "keep real and imaginary parts as two real tensors",
    "polar": "keep real and imaginary parts as two real tensors",
    "sort": "use topk with a fixed k, max pooling or a mean",
    "median": "use a mean, or topk with a fixed k",
    "mode": "use a mean, or topk with a fixed k",
    "kthvalue": "use topk with a fixed k",
    "nonzero": "multiply by a mask instead of selecting: the size of a program's tensors is fixed",
    "masked_select": "multiply by a mask instead of selecting: the size of a program's tensors is fixed",
    "unique": "the size of a program's tensors may not depend on values",
    "bincount": "use one_hot(...).sum(0)",
    "histc": "use one_hot(...).sum(0)",
    "item": "keep the number a tensor: no .item(), float(), int() or if on a value",
    "local_scalar": "keep the number a tensor: no .item(), float(), int() or if on a value",
    "linalg": "decompositions and solvers have no ONNX operator; keep them out of the model, or unroll an iteration",
    "svd": "decompositions have no ONNX operator; keep them out of the model, or unroll an iteration",
    "qr": "decompositions have no ONNX operator; keep them out of the model, or unroll an iteration",
    "cholesky": "decompositions have no ONNX operator; keep them out of the model, or unroll an iteration",
    "inverse": "solve with an unrolled iteration (Newton-Schulz), or keep the inverse as a parameter",
    "bessel": "use torch.exp, log, sin, cos, erf or powers",
    "gamma": "use torch.exp, log, sin, cos, erf or powers",
    "ctc": "train with cross entropy per frame",
    "grid_sampl": "use nn.Upsample, roll, pad or a convolution",
    "deform": "use a plain or a dilated convolution",
    "quantize": "export the float model; fake quantization is not lowered",
    "to_sparse": "use dense tensors",
    "sparse": "use dense tensors",
}
OTHERWISE = "replace the layer by one that lowers"

_OURS = str(Path(edgefl_exporter.__file__).parent)
_TORCH = str(Path(torch.__file__).parent)


@dataclass(frozen=True)
class Place:
    """Where in a model an operator was called: the module's path and the line of the model's code, if known."""

    module: str = ""
    line: str = ""

    def __str__(self) -> str:
        module = f"module {self.module!r}" if self.module else "the model"
        return f"{module} ({self.line})" if self.line else module


def refusal(target: str, place: Place) -> LoweringError:
    hint = next((hint for word, hint in HINTS.items() if word in target), OTHERWISE)
    return LoweringError(f"operator {target} in {place} cannot be lowered", hint=hint)


def calling_line(frame: FrameType | None, outermost: CodeType | None) -> str:
    """FILE:LINE of the innermost code that is neither PyTorch's nor ours, "" if there is none before `outermost`."""
    while frame is not None and frame.f_code is not outermost:
        path = frame.f_code.co_filename
        if not path.startswith((_OURS, _TORCH, "<")):
            return _shown(path, frame.f_lineno)
        frame = frame.f_back
    return ""


def failing_line(traceback: TracebackType | None, outermost: CodeType) -> str:
    """FILE:LINE of the innermost code inside `outermost` of a traceback that is neither PyTorch's nor ours."""
    line, inside = "", False
    while traceback is not None:
        code = traceback.tb_frame.f_code
        inside = inside or code is outermost
        if inside and not code.co_filename.startswith((_OURS, _TORCH, "<")):
            line = _shown(code.co_filename, traceback.tb_lineno)
        traceback = traceback.tb_next
    return line


def _shown(path: str, line: int) -> str:
    relative = os.path.relpath(path)
    return f"{path if relative.startswith('..') else relative}:{line}"
