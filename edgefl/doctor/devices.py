"""Devices and how fast one of their cores is, from published measurements. Sources and reasons: docs/doctor.md."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """A kind of device. Speeds are of one core, as (least, most).

    about         processor and memory
    memory_mb     what one process may use, in MB of 10^6 bytes, with the system and its other services beside it
    gflops        float32 matrix multiplication, 10^9 additions and multiplications per second
    copy_gb_s     copying memory, 10^9 bytes per second
    """

    about: str
    memory_mb: float
    gflops: tuple[float, float]
    copy_gb_s: tuple[float, float]


DEVICES: dict[str, Device] = {
    "pi-zero-2w": Device("Raspberry Pi Zero 2 W: Cortex-A53 at 1.0 GHz, 512 MB", 300, (1.5, 6.0), (1.0, 1.3)),
    "pi-4": Device("Raspberry Pi 4: Cortex-A72 at 1.5 to 1.8 GHz, 2 GB", 1500, (5.5, 11.5), (2.2, 2.8)),
    "pi-5": Device("Raspberry Pi 5: Cortex-A76 at 2.4 GHz, 4 GB", 3000, (15.0, 31.0), (4.4, 6.0)),
    "phone-low": Device("a phone for 100 to 150 EUR: Cortex-A53 to A75 at 2 GHz, 3 GB", 500, (3.0, 18.0), (1.5, 4.5)),
    "phone-high": Device("a phone for 800 EUR and more: Cortex-X2, Apple A15 or later, 8 GB", 2000, (40, 85), (8, 28)),
}
