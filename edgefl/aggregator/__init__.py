"""The aggregator: rounds and the wire without I/O, fusion, what is durable, and the process around it."""
