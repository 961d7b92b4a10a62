"""What the exporter takes of PyTorch that PyTorch does not promise to keep: this file, and the one of that name in
`lowering/` with what takes two seconds to import, are where an upgrade is looked at.

Nobody else here names a private module or attribute of torch (a test looks); the names of ATen operators, some of which
begin with an underscore, are the operator set that is translated.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest import mock

import torch
from torch import nn
from torch.utils import checkpoint
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = [
    "AnyBatchNorm",
    "AnyConvolution",
    "AnyDropout",
    "AnyNorm",
    "TorchDispatchMode",
    "backward_number",
    "forward_number",
    "layers_as_written",
    "pack_padded_sequence",
    "replaced_checkpoints",
]

# The layers of every dimension. A norm is a BatchNorm or an InstanceNorm.
AnyBatchNorm = nn.modules.batchnorm._BatchNorm
AnyNorm = nn.modules.batchnorm._NormBase
AnyConvolution = nn.modules.conv._ConvNd
AnyDropout = nn.modules.dropout._DropoutNd

pack_padded_sequence = torch._C._VariableFunctions._pack_padded_sequence


def forward_number() -> int:
    """The autograd number of the operator that is being called, which its backward operators share."""
    return torch._C._autograd._get_sequence_nr() - 1


def backward_number() -> int | None:
    """The number of the forward operator whose backward pass is running, None outside a backward pass."""
    node = torch._C._current_autograd_node()
    return None if node is None else node._sequence_nr()


@contextlib.contextmanager
def layers_as_written() -> Iterator[None]:
    """Without PyTorch's fused transformer layer, which in evaluation mode reads weights past the modules that hold
    them, adapters left out."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextlib.contextmanager
def replaced_checkpoints(reentrant: object, other: object) -> Iterator[None]:
    """While the block runs, what torch.utils.checkpoint calls for its two forms."""
    with (
        mock.patch.object(checkpoint, "CheckpointFunction", reentrant),
        mock.patch.object(checkpoint, "_checkpoint_without_reentrant_generator", other),
    ):
        yield
