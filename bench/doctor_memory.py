"""What `edgefl doctor` says of memory, beside what training really takes.

    python bench/doctor_memory.py

Each row is a process of its own that reads a bundle and trains five steps with onnxruntime, in MB of 10^6 bytes.
"counted" are the tensors of a step alive at once, "measured" is by how much the process grew beyond the state (which is
there twice), "allowed" is what the doctor reckons with for that. Linux only: the figures come from /proc.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import click
from harness import Row, Target, finish, options

from edgefl.doctor.diagnosis import count, step_bytes

MODELS = ("digits", "mnist-cnn", "lenet5", "resnet8", "resnet8-gn", "kws", "vit", "cnn1")
WORKER = Path(__file__).with_name("doctor_memory_worker.py")


@click.command(help=__doc__)
@options
def main(form: str, quick: bool) -> None:
    from edgefl_exporter import export
    from edgefl_exporter.zoo import ZOO

    rows: list[Row] = []
    targets: list[Target] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in MODELS[:1] if quick else MODELS:
            module, example = ZOO[name].make()
            out = Path(folder) / name
            bundle = export(module, example, out=out, name=name, loss=ZOO[name].loss, programs=("train",))
            costs, train = count(bundle, examples=1)
            written = bundle.manifest.programs["train"].writes
            state = costs.state_bytes + sum(t.size_bytes for t in bundle.manifest.state if t.name in written)
            for memory in costs.memory[:1] if quick else costs.memory:
                command = [sys.executable, str(WORKER), str(out), str(memory.batch_size)]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                measured = (json.loads(done.stdout) - state) / 1e6
                allowed = step_bytes(train, memory.batch_size) / 1e6
                rows.append(
                    {
                        "model": name,
                        "batch": memory.batch_size,
                        "counted": memory.tensors / 1e6,
                        "measured": measured,
                        "allowed": allowed,
                        "measured/allowed": measured / allowed,
                    }
                )
    worst = max(row["measured/allowed"] for row in rows)
    targets.append(Target("measured over allowed, the worst row", worst, 1.0))
    finish("Memory of a training step in MB", rows, targets, form)


if __name__ == "__main__":
    main()
