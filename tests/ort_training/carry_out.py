"""Tasks carried out by an engine, in whatever environment runs this: carry_out.py ENGINE BUNDLE DATA OUT

Prints the metrics as JSON; OUT gets what was sent and, as "state.*", the whole state afterwards.
"""

import json
import sys
from pathlib import Path

from edgefl import bundle as bundles
from edgefl.method import Task
from edgefl.tensors import save_tensors
from edgefl_device.data import fit_to_contract
from edgefl_device.engines.engine import start
from edgefl_device.sources import read
from edgefl_device.work.interpreter import perform

RATE = {"learning_rate": 0.02}
engine, path, data, out = sys.argv[1:]
runtime = start(engine, bundles.read(path, engine=engine))
examples = fit_to_contract(read(data), runtime.manifest.data, data)
tasks = [
    Task(program="train", feed="train", epochs=2, batch_size=20, seed=1, settings=RATE, send=("*.weight",)),
    Task(program="evaluate", feed="train", batch_size=64),
    Task(program="predict", feed="train", batch_size=64, send=("logits",)),
]
outcome = perform(runtime, tasks, {}, {"train": examples}, device="pi-1")
if "anchor" in runtime.manifest.programs:
    runtime.step("anchor", {})
state = {f"state.{name}": value for name, value in runtime.state().items()}
Path(out).write_bytes(save_tensors({**outcome.tensors, **state}))
print(json.dumps(outcome.metrics))
