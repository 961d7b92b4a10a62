"""What a bundle asks of a device, before anybody has the device: work, memory, bytes to send, time.

    shapes.py     a program's graph with the size of every tensor, for any batch size
    costs.py      multiply-adds and peak memory, counted on that graph
    speed.py      how fast this machine is
    devices.py    how fast others are, as published
    diagnosis.py  all of it for one bundle: read this first
    examine.py    the verb: a bundle, or a model that is exported for the occasion

A bundle needs onnx and onnxruntime, not torch: `edgefl doctor x.bundle` runs on a board too.
"""
