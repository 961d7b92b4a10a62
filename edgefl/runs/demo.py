"""The run that `edgefl demo` shows."""

from __future__ import annotations

from pathlib import Path

from edgefl.aggregator.settings import RoundSettings
from edgefl.runs.sections import BrokerEngine, BrokerSection, EvaluateSection, FleetSection, RunFile


def demo_run(devices: int, runs: Path, engine: BrokerEngine, seed: int) -> RunFile:
    """Devices learn handwritten digits, each from its own uneven part, to 97 % test accuracy."""
    return RunFile(
        name="demo",
        model="zoo:digits",
        seed=seed,
        runs=str(runs),
        broker=BrokerSection(engine=engine),
        method={"rounds": 40, "epochs": 2, "batch_size": 16, "learning_rate": 0.1},
        round=RoundSettings(min_devices=devices, deadline_s=60.0),
        evaluate=EvaluateSection(data="digits", target_accuracy=0.97),
        fleet=FleetSection(devices=devices, data="digits", partition="dirichlet", alpha=0.5),
    )
