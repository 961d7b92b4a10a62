"""edgefl: federated learning on phones and boards. Read `edgefl.method` first."""

__version__ = "0.1.0"
