"""One process of `deq_memory.py`: PyTorch, five steps, gradients through all applications of the block.

Prints by how many bytes it grew, at its peak.

python bench/deq_memory_worker.py MODEL BATCH_SIZE STEPS
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from doctor_memory_worker import memory

from edgefl_exporter.zoo import ZOO


def main() -> None:
    torch.set_num_threads(1)
    name, batch_size, most = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    model, example = ZOO[name].make()
    x, y = torch.randn(batch_size, *example.shape[1:]), torch.zeros(batch_size, dtype=torch.int64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again from now
    before = memory("VmRSS")
    for _ in range(5):
        optimizer.zero_grad()
        u = model.inject(x)
        z = torch.zeros_like(u)
        for _ in range(most + 1):
            z = model.block(z, u)
        torch.nn.functional.cross_entropy(model.head(z), y).backward()
        optimizer.step()
    print(memory("VmHWM") - before)


if __name__ == "__main__":
    main()
