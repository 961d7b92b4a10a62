"""Bundles for the laws of methods: the one made by hand, and small networks as the exporter makes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from edgefl.bundle import Bundle


@pytest.fixture(scope="session")
def make_bundle(regression: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Bundle]:
    """A bundle by its name in `exported`, or "regression". Each is made once, when it is first wanted."""
    made = {"regression": regression}

    def make(name: str) -> Bundle:
        if name not in made:
            made[name] = exported(name, tmp_path_factory.mktemp("bundles") / f"{name}.bundle")
        return made[name]

    return make


def exported(name: str, out: Path) -> Bundle:
    """ "layers": a body and a head; "pushed": with a momentum of 0.5; "anchored" and "controlled": with the terms of
    FedProx and SCAFFOLD; "shifted": with FedDyn's; "shallow" and "deep": classifiers for FedProto; "solved": an
    equilibrium."""
    from layers import (  # torch takes seconds to import; most tests here need none
        export_classifier,
        export_equilibrium,
        export_layers,
    )

    from edgefl_exporter import SGD

    if name in ("shallow", "deep"):
        return export_classifier(out, deep=name == "deep")
    if name == "solved":
        return export_equilibrium(out)
    if name == "pushed":
        return export_layers(out, optimizer=SGD(0.1, momentum=0.5))
    method = {"controlled": "scaffold", "shifted": "feddyn"}.get(name, "fedavg")
    options = {"proximal": 0.0} if name == "anchored" else {}
    return export_layers(out, method=method, **options)
