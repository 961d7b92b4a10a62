"""FedProx (Li et al., MLSys 2020, arXiv:1812.06127): the proximal term, and the program `anchor`."""

from __future__ import annotations

from types import MappingProxyType

from edgefl_exporter.methods.method import Method


class FedProx(Method, frozen=True, kw_only=True):
    """A recipe with `proximal`, mu, which a run can set; the term and its program come with it."""

    name = "fedprox"
    defaults = MappingProxyType({"proximal": 0.01})
