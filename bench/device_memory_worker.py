"""One process of `device_memory.py`: train a model of the zoo, print what it cost as JSON. Imports as little as it can.

python bench/device_memory_worker.py device|torch MODEL BUNDLE DATA.npz EPOCHS
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

BATCH_SIZE, LEARNING_RATE = 10, 0.05


def memory() -> tuple[float, float]:
    """Peak and present resident memory of this process, in MB of 10^6 bytes."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    peak, now = (int(lines[key].split()[0]) * 1024 / 1e6 for key in ("VmHWM", "VmRSS"))  # the file counts KiB
    return peak, now


def device(model: str, bundle_path: str, data_path: str, epochs: int, mark: Callable[[str], None]) -> float:
    """As a device trains: the last epoch's loss."""
    from edgefl import bundle as bundles
    from edgefl.method import Task
    from edgefl_device.data import fit_to_contract
    from edgefl_device.engines.runtime import Runtime
    from edgefl_device.sources import read
    from edgefl_device.work.interpreter import perform

    mark("imports")
    bundle = bundles.read(bundle_path)
    runtime = Runtime(bundle)
    mark("model")
    train = fit_to_contract(read(data_path), bundle.manifest.data, data_path)
    settings = {"learning_rate": LEARNING_RATE}
    task = Task("train", load=("*",), epochs=epochs, batch_size=BATCH_SIZE, seed=0, settings=settings, send=("*",))
    outcome = perform(runtime, [task], bundle.weights(), {"train": train}, device="device")
    heavy = [name for name in ("torch", "rich", "click", "sklearn", "PIL", "paho") if name in sys.modules]
    assert not heavy, heavy
    return outcome.metrics["train.loss"]


def torch(model: str, bundle_path: str, data_path: str, epochs: int, mark: Callable[[str], None]) -> float:
    """The same in torch, eagerly, one thread: the last epoch's loss."""
    import numpy as np
    import torch
    from torch.nn.functional import cross_entropy

    from edgefl_exporter.zoo import ZOO

    torch.set_num_threads(1)
    mark("imports")
    module, _ = ZOO[model].make()
    optimizer = torch.optim.SGD(module.parameters(), lr=LEARNING_RATE)
    mark("model")
    with np.load(data_path) as archive:
        features, labels = archive["x"], archive["y"]
    rng = np.random.default_rng(0)
    losses: list[float] = []
    for _ in range(epochs):
        losses.clear()
        for rows in rng.permutation(len(labels)).reshape(-1, BATCH_SIZE):
            x = torch.from_numpy(features[rows].astype(np.float32) / 255)[:, None]
            optimizer.zero_grad()
            loss = cross_entropy(module(x), torch.from_numpy(labels[rows].astype(np.int64)))
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(loss.item())
    return sum(losses) / len(losses)


def main() -> None:
    engine, model, bundle_path, data_path, epochs = sys.argv[1:]
    marks = {"python": memory()[1]}

    def mark(name: str) -> None:
        marks[name] = memory()[1]

    started = time.monotonic()
    loss = {"device": device, "torch": torch}[engine](model, bundle_path, data_path, int(epochs), mark)
    seconds = time.monotonic() - started
    peak, steady = memory()
    after = {f"after {name}": value for name, value in marks.items()}
    print(json.dumps({"engine": engine, **after, "peak": peak, "steady": steady, "loss": loss, "seconds": seconds}))


if __name__ == "__main__":
    main()
