"""From a PyTorch function to one ONNX graph of standard operators: trace, rewrite, decompose, emit, tidy, check.

Nothing here knows what a loss, an optimizer or a program is; that is `edgefl_exporter.programs`.
"""
