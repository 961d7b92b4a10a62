"""Write walk.json: files that the walk over a program's bytes lets pass, and files that it refuses, in every language.

    python tests/vectors/make_walk.py

    rules      the table, the lists and the bounds of edgefl/trust/onnx_walk.py; another language's are these
    accepted   file (base64), for an engine
    refused    file (base64), for an engine; `why` is part of what is said about it

The files are made byte by byte: no library writes what most of them hold. SECRET is the name of a file beside the
process, which a runtime would read.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from edgefl.trust import onnx_walk

PATH = Path(__file__).parent / "walk.json"
SECRET = "secret.bin"  # of 16 float32: of fewer, onnxruntime 1.32 wants to know more than it does

FLOAT, STRING, COMPLEX = 1, 8, 14
LEN = 2  # wire type


def varint(value: int, *, longer: int = 0) -> bytes:
    """A number in base 128, of 64 bits where it is negative; `longer`: with so many bytes that it need not have."""
    if value < 0:
        value += 2**64
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    if longer:
        out[-1] |= 0x80
        out += bytes([0x80] * (longer - 1)) + b"\0"
    return bytes(out)


def number(field: int, *values: int) -> bytes:
    return b"".join(varint(field << 3) + varint(value) for value in values)


def part(field: int, *parts: bytes | str) -> bytes:
    """Text, bytes, or a message of parts."""
    data = b"".join(p.encode() if isinstance(p, str) else p for p in parts)
    return varint(field << 3 | LEN) + varint(len(data)) + data


def entry(field: int, key: str, value: str) -> bytes:
    return part(field, part(1, key), part(2, value))


def tensor(name: str, *data: bytes, dims: tuple[int, ...] = (16,), kind: int = FLOAT) -> bytes:
    return number(1, *dims) + number(2, kind) + part(8, name) + b"".join(data)


RAW = part(9, bytes(64))  # zeros
LOCATION = entry(13, "location", SECRET) + entry(13, "length", "64")
OUTSIDE = number(14, 1)  # data_location: external
EXTERNAL = LOCATION + OUTSIDE


def attribute(name: str, kind: int, *value: bytes) -> bytes:
    return part(5, part(1, name), *value, number(20, kind))


def node(operator: str, inputs: str, output: str, *rest: bytes) -> bytes:
    return part(1, *(part(1, name) for name in inputs.split()), part(2, output), part(4, operator), *rest)


def value(field: int, name: str, kind: int = FLOAT, *dims: bytes) -> bytes:
    shape = part(2, *(part(1, dim) for dim in dims or [number(1, 16)]))
    return part(field, part(1, name), part(2, part(1, number(1, kind), shape)))


def graph(*parts: bytes) -> bytes:
    return b"".join([*parts, part(2, "program")])


INPUT, OUTPUT = value(11, "x"), value(12, "y")
MAX = node("Max", "x w", "y")
IMPORT = part(8, part(1, ""), number(2, 18))
MICROSOFT = part(8, part(1, "com.microsoft"), number(2, 1))
FOREIGN = part(7, "com.microsoft")


def model(*parts: bytes, rest: bytes = IMPORT, producer: str = "edgefl") -> bytes:
    """A program of a graph with these parts."""
    return number(1, 9) + part(2, producer) + part(7, graph(*parts)) + rest


def largest(*data: bytes, **other: Any) -> bytes:
    """y = max(x, w), where w is an initializer with these data."""
    return model(MAX, part(5, tensor("w", *data, **other)), INPUT, OUTPUT)


def constant(*inside: bytes) -> bytes:
    """y = max(x, w), where w is a Constant with this attribute."""
    return model(node("Constant", "", "w", *inside), MAX, INPUT, OUTPUT)


def branching(*inside: bytes) -> bytes:
    """y = max(x, w), where w is made in the branch."""
    branch = graph(*inside, node("Max", "x w", "z"), value(12, "z"))
    yes = part(5, tensor("yes", part(9, b"\1"), dims=(), kind=9))
    branches = [attribute(name, 5, part(6, branch)) for name in ("then_branch", "else_branch")]
    return model(node("If", "yes", "y", *branches), yes, INPUT, OUTPUT)


def with_attribute(*inside: bytes) -> bytes:
    """y = LeakyRelu(x), with one attribute."""
    return model(node("LeakyRelu", "x", "y", part(5, part(1, "alpha"), *inside)), INPUT, OUTPUT)


def nested(depth: int) -> bytes:
    """Graphs inside graphs."""
    inner = graph()
    for _ in range(depth):
        inner = graph(node("If", "", "", attribute("then_branch", 5, part(6, inner))))
    return number(1, 9) + part(7, inner) + IMPORT


def sparse(name: str) -> bytes:
    indices = b"".join(bytes([i, *bytes(7)]) for i in range(16))
    return part(1, tensor(name, EXTERNAL)) + part(2, tensor("", part(9, indices), kind=7)) + number(3, 16)


ONE_VALUE = entry(13, "location", SECRET) + entry(13, "length", "4") + OUTSIDE
TENSOR = tensor("w", RAW)
FUNCTION = part(
    25,
    part(1, "Read"),
    part(5, "w"),
    part(7, part(2, "w"), part(4, "Constant"), attribute("value", 4, part(5, tensor("", EXTERNAL)))),
    part(9, part(1, ""), number(2, 18)),
    part(10, "own"),
)

# name -> file, part of the reason. The first rows are those of a runtime that read SECRET.
EXTERNAL_DATA = {
    "external data in an initializer": (largest(EXTERNAL), "external data (Tensor.external_data, at byte "),
    "external data, location first said": (
        largest(OUTSIDE + LOCATION),
        "external data (Tensor.data_location, at byte ",
    ),
    "external data of ./": (
        largest(entry(13, "location", f"./{SECRET}"), OUTSIDE),
        "external data (Tensor.external_data, at byte ",
    ),
    "external data in a branch's initializer": (branching(part(5, tensor("w", EXTERNAL))), "external data"),
    "external data in a Constant in a branch": (
        branching(node("Constant", "", "w", attribute("value", 4, part(5, tensor("", EXTERNAL))))),
        "external data",
    ),
    "external data in a Constant": (constant(attribute("value", 4, part(5, tensor("", EXTERNAL)))), "external data"),
    "external data in a sparse Constant": (
        constant(attribute("sparse_value", 11, part(22, sparse("")))),
        "a sparse tensor (Attribute.sparse_tensor",
    ),
    "external data in a sparse initializer": (
        model(MAX, part(15, sparse("w")), INPUT, OUTPUT),
        "a sparse tensor (Graph.sparse_initializer",
    ),
    "external data in ConstantOfShape's value": (
        model(
            part(5, tensor("sixteen", part(9, bytes([16, *bytes(7)])), dims=(1,), kind=7)),
            node("ConstantOfShape", "sixteen", "w", attribute("value", 4, part(5, tensor("", ONE_VALUE, dims=(1,))))),
            MAX,
            INPUT,
            OUTPUT,
        ),
        "external data",
    ),
    "external data in a function": (
        model(
            node("Read", "", "w", part(7, "own")),
            MAX,
            INPUT,
            OUTPUT,
            rest=IMPORT + part(8, part(1, "own"), number(2, 1)) + FUNCTION,
        ),
        "operator 'Read' of the domain 'own'",
    ),
    "data_location that is 1 in 32 bits": (largest(number(14, 2**32 + 1), LOCATION), "external data"),
    "data_location in too many bytes": (largest(varint(14 << 3), varint(1, longer=1), LOCATION), "external data"),
    "data_location twice": (largest(number(14, 0, 1), LOCATION), "external data"),
    "a tag that is data_location's in 32 bits": (
        largest(varint((14 << 3) + 2**32), varint(1), LOCATION),
        f"an unknown field (number {(14 << 3) + 2**32 >> 3} of Tensor",
    ),
    "a tag in too many bytes": (largest(varint(14 << 3, longer=1), varint(1), LOCATION), "longer than it need be"),
    "an unknown field first": (largest(number(99, 1), EXTERNAL), "an unknown field (number 99 of Tensor"),
    "an empty group first": (
        largest(varint(99 << 3 | 3), varint(99 << 3 | 4), EXTERNAL),
        "an unknown field (number 99 of Tensor",
    ),
    "a group around it": (
        largest(RAW, varint(14 << 3 | 3), OUTSIDE, varint(14 << 3 | 4)),
        "external data (Tensor.data_location",
    ),
    "data_location as a row": (largest(RAW, part(14, varint(1))), "external data (Tensor.data_location"),
    "external data without a location": (largest(OUTSIDE), "external data"),
    "data_location, of the file itself": (largest(RAW, number(14, 0)), "external data"),
    "external data at an address in memory": (
        largest(entry(13, "location", "*/_ORT_MEM_MAXR_/*") + entry(13, "offset", "4096"), OUTSIDE),
        "external data",
    ),
    "training info with external data": (
        model(MAX, part(5, TENSOR), INPUT, OUTPUT, rest=IMPORT + part(20, part(1, part(5, tensor("v", EXTERNAL))))),
        "training info (Model.training_info",
    ),
    "two graphs": (
        number(1, 9) + part(7, graph(MAX, INPUT, OUTPUT)) + part(7, part(5, tensor("w", EXTERNAL))) + IMPORT,
        "Model.graph twice",
    ),
    "a tensor in two halves": (
        constant(part(5, part(1, "value"), part(5, number(1, 16), number(2, FLOAT)), part(5, EXTERNAL), number(20, 4))),
        "does not hold the values of its shape",
    ),
    "a tensor twice": (
        constant(part(5, part(1, "value"), part(5, TENSOR), part(5, number(2, FLOAT)), number(20, 4))),
        "Attribute.t twice",
    ),
}

REFUSED = {
    **EXTERNAL_DATA,
    # what runs
    "another domain's operator": (
        model(node("Gelu", "x", "y", FOREIGN), INPUT, OUTPUT, rest=IMPORT + MICROSOFT),
        "operator 'Gelu' of the domain 'com.microsoft'",
    ),
    "another domain's operator, without an import": (
        model(node("Gelu", "x", "y", FOREIGN), INPUT, OUTPUT),
        "operator 'Gelu' of the domain 'com.microsoft'",
    ),
    "another domain's import": (
        model(MAX, part(5, TENSOR), INPUT, OUTPUT, rest=IMPORT + MICROSOFT),
        "operator set 1 of the domain 'com.microsoft'",
    ),
    "another domain in a branch": (
        branching(node("Gelu", "x", "w", FOREIGN)),
        "operator 'Gelu' of the domain 'com.microsoft'",
    ),
    "the default domain by its other name": (
        model(node("Relu", "x", "y", part(7, "ai.onnx")), INPUT, OUTPUT),
        "operator 'Relu' of the domain 'ai.onnx'",
    ),
    "functions": (model(node("Relu", "x", "y"), INPUT, OUTPUT, rest=IMPORT + FUNCTION), "functions (Model.functions"),
    "random numbers": (model(node("RandomNormalLike", "x", "y"), INPUT, OUTPUT), "operator 'RandomNormalLike', which"),
    "an operator of onnxruntime's own in the default domain": (
        model(node("SimplifiedLayerNormalization", "x x", "y"), INPUT, OUTPUT),
        "operator 'SimplifiedLayerNormalization', which",
    ),
    "no operator": (model(part(1, part(1, "x"), part(2, "y")), INPUT, OUTPUT), "operator '', which"),
    "an operator with a long name": (model(node("A" * 1000, "x", "y"), INPUT, OUTPUT), f"operator '{'A' * 60}...',"),
    "operator set 17": (
        model(MAX, part(5, TENSOR), INPUT, OUTPUT, rest=part(8, number(2, 17))),
        "does not import operator set 18",
    ),
    "operator sets 18 and 17": (
        model(MAX, part(5, TENSOR), INPUT, OUTPUT, rest=IMPORT + part(8, number(2, 17))),
        "operator set 17 of the domain ''",
    ),
    "an operator set twice": (
        model(MAX, part(5, TENSOR), INPUT, OUTPUT, rest=IMPORT + IMPORT),
        "operator set 18 of the default domain, once",
    ),
    "no operator set": (model(MAX, part(5, TENSOR), INPUT, OUTPUT, rest=b""), "does not import operator set 18"),
    # another file, or none
    "onnxruntime's own format": (b"\x18\0\0\0ORTM" + bytes(20), "onnxruntime's own format"),
    "a program that says ORTM where that format does": (
        model(MAX, part(5, TENSOR), INPUT, OUTPUT, producer="ORTMine"),
        "onnxruntime's own format",
    ),
    "nothing": (b"", "no graph"),
    "text": (b"<html>", "Model"),
    "IR version 11": (number(1, 11) + largest(RAW)[2:], "IR version 11; expected 8 to 10"),
    "no IR version": (largest(RAW)[2:], "IR version None; expected 8 to 10"),
    "settings of a session in metadata": (
        largest(RAW) + entry(14, "ort_config", '{"session_options": {}}'),
        "metadata (Model.metadata_props",
    ),
    "metadata of a tensor": (largest(RAW, entry(16, "a", "b")), "metadata (Tensor.metadata_props"),
    "a comment": (largest(RAW) + part(6, "made by hand"), "an unknown field (number 6 of Model"),
    # not a protobuf that everybody reads alike
    "cut within a number": (largest(RAW) + b"\x28", "it ends within a number"),
    "cut within text": (largest(RAW) + b"\x22\x05ab", "Model.domain is longer than what holds it"),
    "a number of 65 bits": (largest(RAW) + number(5, 2**64), "or than 64 bits"),
    "a number of eleven bytes": (largest(RAW) + b"\x28" + b"\xff" * 10 + b"\x01", "or than 64 bits"),
    "a number in too many bytes": (largest(RAW) + varint(5 << 3) + varint(1, longer=3), "longer than it need be"),
    "a length in too many bytes": (largest(RAW) + varint(4 << 3 | LEN) + varint(1, longer=1) + b"a", "longer than it"),
    "eight bytes for a number": (largest(RAW) + varint(5 << 3 | 1) + bytes(8), "wire type 1 for Model.model_version"),
    "a group": (largest(RAW) + varint(7 << 3 | 3) + varint(7 << 3 | 4), "wire type 3 for Model.graph, expected 2"),
    "field 0": (largest(RAW) + b"\0\0", "an unknown field (number 0 of Model"),
    "a name that is not UTF-8": (largest(RAW) + part(4, b"\xff"), "Model.domain is not UTF-8"),
    "half a character": (largest(RAW) + part(4, b"\xed\xa0\x80"), "Model.domain is not UTF-8"),
    "a name twice": (largest(RAW, part(8, "w")), "Tensor.name twice"),
    "graphs in graphs, without end": (nested(14), "messages more than 40 deep"),
    "dims as a row": (
        model(MAX, part(5, part(1, varint(16)), number(2, FLOAT), part(8, "w"), RAW), INPUT, OUTPUT),
        "wire type 2 for Tensor.dims, expected 0",
    ),
    # tensors
    "text in a tensor": (largest(part(6, "a"), dims=(1,), kind=STRING), "an unknown field (number 6 of Tensor"),
    "a tensor of a type that is not a number": (largest(kind=STRING, dims=(0,)), "tensor 'w' of type 8"),
    "a tensor of a type beyond 32 bits": (largest(RAW, kind=2**32 + 1), "tensor 'w' of type 4294967297"),
    "an input of a type that is not a number": (
        model(MAX, part(5, TENSOR), value(11, "x", STRING), OUTPUT),
        "a value of type 8",
    ),
    "an output of complex numbers": (model(MAX, part(5, TENSOR), INPUT, value(12, "y", COMPLEX)), "a value of type 14"),
    "an optional input": (
        model(MAX, part(5, TENSOR), part(11, part(1, "x"), part(2, part(9, part(1)))), OUTPUT),
        "an optional value (Type.optional_type",
    ),
    "an input that is a map": (
        model(MAX, part(5, TENSOR), part(11, part(1, "x"), part(2, part(5, number(1, 7)))), OUTPUT),
        "a map (Type.map_type",
    ),
    "an input of two types": (
        model(MAX, part(5, TENSOR), part(11, part(2, part(1, number(1, 1)), part(4))), OUTPUT),
        "both tensor_type and sequence_type",
    ),
    "a dimension of two sizes": (
        model(MAX, part(5, TENSOR), value(11, "x", FLOAT, number(1, 16) + part(2, "batch")), OUTPUT),
        "both dim_value and dim_param",
    ),
    "a tensor with fewer values than its shape": (largest(RAW, dims=(2**40,)), "does not hold the values of its shape"),
    "a tensor of a negative shape": (largest(RAW, dims=(-1, -16)), "does not hold the values of its shape"),
    "a tensor without values": (largest(), "does not hold the values of its shape"),
    "a tensor with two kinds of values": (largest(RAW, part(4, bytes(64))), "does not hold the values of its shape"),
    "a tensor with two kinds of no values": (
        largest(part(9), part(4, bytes(4)), dims=(0,)),
        "does not hold the values of its shape",
    ),
    "a tensor with a row of no values": (largest(part(4), dims=(0,)), "does not hold the values of its shape"),
    "a tensor with values of another kind": (largest(part(7, bytes(16))), "does not hold the values of its shape"),
    "a tensor of 17 dimensions": (largest(part(9, bytes(4)), dims=(1,) * 17), "does not hold the values of its shape"),
    "int64 in too many bytes": (largest(part(7, b"\x81\x00"), dims=(1,), kind=7), "does not hold the values"),
    "int64 of 65 bits": (largest(part(7, b"\xff" * 9 + b"\x02"), dims=(1,), kind=7), "does not hold the values"),
    "int64 cut": (largest(part(7, b"\x01\x80"), dims=(1,), kind=7), "does not hold the values"),
    "int32 in more than a byte": (largest(part(5, b"\x80\x01"), dims=(1,), kind=6), "does not hold the values"),
    "more than 4 MiB of constants, said only": (
        number(1, 9) + part(7, varint(5 << 3 | LEN) + varint(2**22 + 1)),
        "Graph.initializer is longer than what holds it",
    ),
    # attributes
    "an attribute without a type": (with_attribute(part(4, "a")), "attribute 'alpha' of type 0"),
    "an attribute of another type": (with_attribute(number(3, 1), number(20, 1)), "attribute 'alpha' of type 1"),
    "an attribute of a list with one value": (with_attribute(number(3, 1), number(20, 7)), "'alpha' of type 7"),
    "an attribute with two values": (
        with_attribute(number(3, 1), varint(2 << 3 | 5), bytes(4), number(20, 1)),
        "attribute 'alpha' of type 1",
    ),
    "an attribute without a value": (with_attribute(number(20, 3)), "attribute 'alpha' of type 3"),
    "an attribute that is a type": (with_attribute(part(14), number(20, 13)), "unknown field (number 14 of Attribute"),
    "an attribute of tensors": (
        with_attribute(part(10, TENSOR), number(20, 9)),
        "unknown field (number 10 of Attribut",
    ),
    "an attribute of a function": (with_attribute(part(21, "a"), number(20, 1)), "an attribute of a function"),
    # another engine's
    "the optimizer of onnxruntime-training": (
        model(node("SGDOptimizerV2", "r p g", "done", FOREIGN), rest=IMPORT + MICROSOFT),
        "operator 'SGDOptimizerV2' of the domain 'com.microsoft'",
    ),
}

REFUSED_FOR_TRAINING = {
    "external data": (largest(EXTERNAL), "external data"),
    "another operator of that domain": (
        model(node("Gelu", "x", "y", FOREIGN), INPUT, OUTPUT, rest=IMPORT + MICROSOFT),
        "operator 'Gelu', which is not among those",
    ),
    "that domain's operator in the default domain": (
        model(node("SGDOptimizerV2", "r p g", "done"), rest=IMPORT + MICROSOFT),
        "operator 'SGDOptimizerV2', which is not among those",
    ),
    "only that domain": (model(rest=MICROSOFT), "does not import operator set 18"),
}

ACCEPTED = {
    "an initializer": largest(RAW),
    "float_data": largest(part(4, bytes(64))),
    "int64_data": largest(part(7, *map(varint, (0, -1, 2**63 - 1, 300))), dims=(2, 2), kind=7),
    "int32_data of bools": largest(part(5, bytes([0, 1, 1, 0])), dims=(4,), kind=9),
    "a scalar": largest(part(9, bytes(4)), dims=()),
    "no values for an empty shape": largest(dims=(0, 3)),
    "a Constant": constant(attribute("value", 4, part(5, tensor("", RAW)))),
    "a branch": branching(part(5, tensor("w", RAW))),
    "numbers and text in attributes": model(
        node("LeakyRelu", "x", "z", attribute("alpha", 1, varint(2 << 3 | 5), bytes(4))),
        node("Reshape", "z s", "v", attribute("allowzero", 2, number(3, 0))),
        node("Transpose", "v", "y", attribute("perm", 7, number(8, 1, 0))),
        node("LSTM", "a b c", "d", attribute("activations", 8, part(9, "Tanh"), part(9, "Tanh"))),
        node("LSTM", "a b c", "e", attribute("direction", 3, part(4, "forward")), attribute("activation_alpha", 6)),
        INPUT,
        value(12, "y", FLOAT, part(2, "batch"), number(1, 4), b""),
    ),
    "lists of tensors": model(
        node("SplitToSequence", "x", "parts"),
        node("ConcatFromSequence", "parts", "y", attribute("axis", 2, number(3, 0))),
        part(13, part(1, "parts"), part(2, part(4, part(1, part(1, number(1, FLOAT)))))),
        INPUT,
        OUTPUT,
    ),
    "another alphabet": model(MAX, part(5, TENSOR), INPUT, OUTPUT, producer="п\u20ac\U0001f600"),
    "graphs in graphs": nested(12),
}

ACCEPTED_FOR_TRAINING = {
    "an initializer": largest(RAW),
    "its optimizer": model(
        node("SGDOptimizerV2", "r p g", "done", FOREIGN),
        part(11, part(1, "p"), part(2, part(4, part(1, part(1, number(1, FLOAT)))))),
        rest=IMPORT + MICROSOFT,
    ),
    "its accumulator": model(node("InPlaceAccumulatorV2", "b v r", "done", FOREIGN), rest=MICROSOFT + IMPORT),
}

PORTABLE, TRAINING = "portable", "onnxruntime-training"


def rules() -> dict[str, Any]:
    """What another language must have alike."""
    bounds = ("OPSET", "LARGEST_BYTES", "LARGEST_CONSTANTS_BYTES", "MOST_NODES", "MOST_FIELDS", "MOST_DIMENSIONS")
    return {
        "table": [list(row) for row in onnx_walk.TABLE],
        "operators": sorted(onnx_walk.OPERATORS),
        "types": [[kind, list(how)] for kind, how in onnx_walk.TYPES.items()],
        "attributes": [list(pair) for pair in onnx_walk.ATTRIBUTES.items()],
        **{name: getattr(onnx_walk, name) for name in (*bounds, "DEEPEST")},
    }


def vectors() -> dict[str, Any]:
    """What walk.json holds."""

    def encoded(data: bytes) -> str:
        return base64.b64encode(data).decode()

    return {
        "rules": rules(),
        "accepted": [
            {"name": name, "engine": engine, "file": encoded(data)}
            for engine, files in ((PORTABLE, ACCEPTED), (TRAINING, ACCEPTED_FOR_TRAINING))
            for name, data in files.items()
        ],
        "refused": [
            {"name": name, "engine": engine, "file": encoded(data), "why": why}
            for engine, files in ((PORTABLE, REFUSED), (TRAINING, REFUSED_FOR_TRAINING))
            for name, (data, why) in files.items()
        ],
    }


def written() -> str:
    """The text of walk.json: a line for each file."""
    made = vectors()

    def lines(entries: list[Any]) -> str:
        return "[\n  " + ",\n  ".join(json.dumps(entry) for entry in entries) + "\n ]"

    lists = ", ".join(f'\n "{name}": {lines(made[name])}' for name in ("accepted", "refused"))
    return f'{{\n "rules": {json.dumps(made["rules"])},{lists}\n}}\n'


if __name__ == "__main__":
    PATH.write_text(written())
