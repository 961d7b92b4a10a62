"""Bundles for the laws of methods: the one made by hand, and small networks as the exporter makes them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest

from edgefl import bundle as bundles
from edgefl.bundle import Bundle


@pytest.fixture(scope="session")
def make_bundle(regression: Bundle, once: Callable[..., Path]) -> Callable[[str], Bundle]:
    """A bundle by its name in `exported`, or "regression". Each is made once, when it is first wanted."""

    @functools.cache
    def make(name: str) -> Bundle:
        if name == "regression":
            return regression
        return bundles.read(once(name, lambda folder: exported(name, folder / f"{name}.bundle")) / f"{name}.bundle")

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
