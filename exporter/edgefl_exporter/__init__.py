"""edgefl_exporter: PyTorch models become bundles of ONNX training programs. Read `edgefl_exporter.export` first.

The only part of edgefl that imports torch.
"""

from edgefl_exporter.export import export
from edgefl_exporter.models.load_model import load_model
from edgefl_exporter.programs.matryoshka import export_matryoshka
from edgefl_exporter.programs.optimizers import SGD, Adam
from edgefl_exporter.programs.update import Group

__all__ = ["SGD", "Adam", "Group", "export", "export_matryoshka", "load_model"]
