"""A device far from the others: a loss or an update that no difference between honest data explains.

A device that brings 0..255 beside others with 0..1 is fused like any other, and spoils what all have learned. So each
is compared with those that have the same bundle: far is what is many times the others' median, and many times as far
from it as they are from each other. Devices differ by their nature, so the bounds are wide: nothing is refused for it,
a person only hears of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median

FEWEST = 3  # devices with one bundle: of two nobody can say which is the odd one
TIMES = 10.0  # the others' median; devices of one class each are within that of the fleet's first loss
SPREADS = 20.0  # median absolute deviations of the others, none of which is more than their median
LOSS = ".loss"


class Oddness:
    """Compares the devices of each round; `first` are the metrics of each device in the first round of the run.

    A loss is compared with that of a model that has learned nothing, too: late in a run the losses of most devices
    may be next to nothing, and that of one with all classes is not.
    """

    def __init__(self, first: Mapping[str, Mapping[str, float | None]] | None = None) -> None:
        self._first = _medians(first or {})

    def of(
        self, measured: Mapping[str, Mapping[str, float | None]], norms: Mapping[str, float], kinds: Mapping[str, str]
    ) -> dict[str, str]:
        """Device -> what is odd about it, one clause: "train.loss 8841, others 2.1". `kinds`: which bundle it has."""
        for name, value in _medians(measured).items():
            self._first.setdefault(name, value)
        found: dict[str, list[str]] = {}
        for kind in sorted(set(kinds.values())):
            devices = [device for device, its in kinds.items() if its == kind]
            for name in sorted({name for d in devices for name in measured.get(d, {}) if name.endswith(LOSS)}):
                losses = {d: v for d in devices if (v := measured.get(d, {}).get(name)) is not None}
                for device, text in _far(losses, self._first.get(name, 0.0)).items():
                    found.setdefault(device, []).append(f"{name} {text}")
            for device, text in _far({d: norms[d] for d in devices if d in norms}, 0.0).items():
                found.setdefault(device, []).append(f"norm of its update {text}")
        return {device: "; ".join(texts) for device, texts in sorted(found.items())}


def _far(values: Mapping[str, float], usual: float) -> dict[str, str]:
    """The values that are far above all others; `usual` is what none need be compared below."""
    found = {}
    for device, value in values.items() if len(values) >= FEWEST else ():
        others = [other for name, other in values.items() if name != device]
        middle = median(others)
        spread = median(abs(other - middle) for other in others)
        if value > TIMES * max(middle, usual) and value - middle > SPREADS * spread:
            found[device] = f"{value:.4g}, others {middle:.4g}"
    return found


def _medians(measured: Mapping[str, Mapping[str, float | None]]) -> dict[str, float]:
    """The median loss of devices, by name; no more than that of most of them is believed."""
    names = {name for metrics in measured.values() for name in metrics if name.endswith(LOSS)}
    return {
        name: max(0.0, median(v for metrics in measured.values() if (v := metrics.get(name)) is not None))
        for name in names
        if any(metrics.get(name) is not None for metrics in measured.values())
    }
