"""All of edgefl from Python: export a model, simulate a fleet, run it over MQTT, look at what came out.

    python examples/from_python.py

Takes about half a minute, and leaves a folder `from-python/` where it is run. docs/python.md tells of each step.
"""

from pathlib import Path

import torch
from torch import nn

import edgefl

FOLDER = Path("from-python")


def main() -> None:
    # 1. A model is any torch.nn.Module and an example of its input, [batch, ...].
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 10))
    bundle = edgefl.export(model, torch.zeros(1, 1, 8, 8), out=FOLDER / "digits.bundle", name="digits")
    print(f"{bundle.manifest.name}: {bundle.size_bytes:,} bytes, proven against PyTorch")

    # 2. A run is what a run file says; here as a dict. Four devices share handwritten digits unevenly.
    run = {
        "name": "digits",
        "bundle": str(bundle.path),
        "runs": str(FOLDER),
        "method": {"name": "fedavg", "rounds": 8, "epochs": 2, "batch_size": 16, "learning_rate": 0.2},
        "round": {"min_devices": 4},
        "evaluate": {"data": "digits"},
        "fleet": {"devices": 4, "data": "digits", "partition": "dirichlet", "alpha": 1.0},
    }

    # 3. Try it in this process: no broker, nothing left on disk. Two settings side by side, as in a notebook.
    for epochs in (1, 4):
        tried = edgefl.simulate({**run, "method": {**run["method"], "epochs": epochs}})
        print(f"{epochs} epochs a round: {tried.accuracy:.1%} after {len(tried.history)} rounds")

    # 4. Then for real: a broker, an aggregator and four device processes that speak MQTT.
    result = edgefl.run(run, on_round=lambda record: print(f"round {record.round}: {record.accuracy:.1%}"))
    print(f"{result.accuracy:.1%} in {result.rounds} rounds, {sum(r.bytes_up for r in result.history):,} bytes sent")
    print(f"report: {result.report()}")

    # 5. The result is plain: rows for pandas, arrays, and a model that onnxruntime runs anywhere.
    columns = ("round", "accuracy", "train.loss", "bytes_up")
    for row in result.records[-2:]:
        print({name: row[name] for name in columns})
    print({name: value.shape for name, value in result.weights().items()})
    print(f"model: {result.models[0]}")


if __name__ == "__main__":
    main()
