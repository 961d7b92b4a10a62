"""An application that ships onnxruntime-training and knows nothing of edgefl: its own API, three calls per step.

    app.py ARTIFACTS BATCHES LEARNING_RATE OUT MODEL

Trains over the batches `x` [steps, batch, ...] and `y`, saves all parameters to OUT and the inference model to MODEL.
"""

import sys
import types
from pathlib import Path

import numpy as np
import onnxruntime

# `import onnxruntime.training` wants torch for parts that are not needed.
package = types.ModuleType("onnxruntime.training")
package.__path__ = [str(Path(onnxruntime.__file__).parent / "training")]
sys.modules[package.__name__] = package
from onnxruntime.training.api import CheckpointState, Module, Optimizer  # noqa: E402

folder, batches, learning_rate, out, model = sys.argv[1:]
state = CheckpointState.load_checkpoint(f"{folder}/checkpoint")
module = Module(f"{folder}/training_model.onnx", state, f"{folder}/eval_model.onnx")
optimizer = Optimizer(f"{folder}/optimizer_model.onnx", module)
optimizer.set_learning_rate(float(learning_rate))
with np.load(batches) as data:
    steps = list(zip(data["x"], data["y"], strict=True))
module.train()
for x, y in steps:
    module(x, y)
    optimizer.step()
    module.lazy_reset_grad()
np.savez(out, **{name: parameter.data for name, parameter in state.parameters})
module.export_model_for_inferencing(model, ["logits"])
