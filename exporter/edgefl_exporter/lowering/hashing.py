"""The hash of `edgefl_exporter.models.randomness` in standard ONNX, bit for bit.

32-bit words are uint32, for which ONNX has shifts and exclusive or. A product is taken in int64 with a factor between
-2^31 and 2^31, so it cannot overflow, and the cast back keeps the low 32 bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir
from onnx import TensorProto, numpy_helper
from onnxscript import opset18

from edgefl_exporter.models.randomness import FACTORS, SHIFTS, STREAMS, Words, site_words

op: Any = opset18
Value = Any


def uniform(seed: Value, step: Value, site: int, size: Sequence[Any]) -> Value:
    """Numbers 0 <= u < 1, multiples of 2^-24, of shape `size`, whose numbers may be values of the graph."""
    base = _mix(_word_xor(_mix(_word_xor(_cast(seed, "UINT32"), _words(STREAMS))), _cast(step, "UINT32")))
    keys = _word_xor(base, _words(site_words(site)))  # [2]
    shape = _shape(size)
    counter = op.Range(_int(0), op.ReduceProd(shape, keepdims=0), _int(1))
    words = _word_xor(_cast(counter, "UINT32"), _key(keys, 0))
    words = _mix(words, _key(keys, 1))
    fractions = _cast(op.BitShift(words, _words([8]), direction="RIGHT"), "FLOAT")
    return op.Reshape(op.Mul(fractions, op.Constant(value_float=2.0**-24)), shape)


def _mix(x: Value, key: Value | None = None) -> Value:
    x = _times(_spread(x, SHIFTS[0]), FACTORS[0])
    x = x if key is None else _word_xor(x, key)
    x = _times(_spread(x, SHIFTS[1]), FACTORS[1])
    return _spread(x, SHIFTS[2])


def _spread(x: Value, shift: int) -> Value:
    return _word_xor(x, op.BitShift(x, _words([shift]), direction="RIGHT"))


def _times(x: Value, factor: int) -> Value:
    signed = factor - 2**32 if factor >= 2**31 else factor  # the same modulo 2^32
    return _cast(op.Mul(_cast(x, "INT64"), _int(signed)), "UINT32")


def _word_xor(a: Value, b: Value) -> Value:
    return op.BitwiseXor(a, b)


def _key(keys: Value, place: int) -> Value:
    return op.Gather(keys, op.Constant(value_ints=[place]))


def _cast(x: Value, dtype: str) -> Value:
    return op.Cast(x, to=getattr(TensorProto, dtype))


def _shape(size: Sequence[Any]) -> Value:
    parts = [
        op.Reshape(n, op.Constant(value_ints=[1])) if isinstance(n, onnx_ir.Value) else op.Constant(value_ints=[n])
        for n in size
    ]
    return op.Concat(*parts, axis=0) if len(parts) > 1 else parts[0] if parts else op.Constant(value_ints=[])


def _words(words: Sequence[int] | Words) -> Value:
    return op.Constant(value=numpy_helper.from_array(np.array(words, np.uint32)))


def _int(value: int) -> Value:
    return op.Constant(value_int=value)
