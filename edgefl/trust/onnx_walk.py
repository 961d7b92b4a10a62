"""Whether a program may be given to a runtime: its bytes are walked before any session is made of them.

onnxruntime reads more than a program needs: tensors whose bytes are in other files, functions, settings, operators of
other domains, a format of its own. An ONNX file is a protobuf, and a lenient parser (onnxruntime has one) merges what
comes twice and passes over what it does not know, so a search for what is forbidden can be led astray. Here what is not
known is refused. Nothing is needed but Python; devices/web/walk.mjs is the same in JavaScript, and both are held to
tests/vectors/walk.json.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from edgefl.errors import BundleError

OPSET = 18  # of the default domain; exporter/edgefl_exporter/lowering/emit.py writes it
IR_VERSIONS = range(8, 11)  # the exporter writes 9; onnxruntime 1.19 reads up to 10

# A train program of the zoo has at most some thousands of nodes and some hundred bytes of constants.
LARGEST_BYTES = 32 * 2**20
LARGEST_CONSTANTS_BYTES = 4 * 2**20  # of all constants together: a program this size has a weight baked in
MOST_NODES = 100_000
MOST_FIELDS = 1_000_000
MOST_DIMENSIONS = 16  # of a constant; the product of a million large numbers takes long
DEEPEST = 40  # messages inside messages; a graph in a node's attribute is three of them. Protobuf itself ends at 100

VARINT, BYTES, I32 = 0, 2, 5  # wire types of protobuf that ONNX needs; 1 is eight bytes, 3 and 4 are groups
ONE, MANY, NEVER = "one", "many", "never"


class Field(NamedTuple):
    """One row of TABLE. `kind` is a message of the table or how the value is read; where `times` is NEVER, why not."""

    message: str
    number: int
    name: str
    wire: int
    kind: str
    times: str


# onnx.proto (onnx 1.23), as exported programs are written. A field that is in no row is refused like those with NEVER,
# which are here for the message alone.
TABLE = tuple(
    Field(*row)
    for row in (
        ("Model", 1, "ir_version", VARINT, "number", ONE),
        ("Model", 2, "producer_name", BYTES, "text", ONE),
        ("Model", 3, "producer_version", BYTES, "text", ONE),
        ("Model", 4, "domain", BYTES, "text", ONE),
        ("Model", 5, "model_version", VARINT, "number", ONE),
        ("Model", 7, "graph", BYTES, "Graph", ONE),
        ("Model", 8, "opset_import", BYTES, "OperatorSet", MANY),
        ("Model", 14, "metadata_props", BYTES, "metadata", NEVER),
        ("Model", 20, "training_info", BYTES, "training info", NEVER),
        ("Model", 25, "functions", BYTES, "functions", NEVER),
        ("OperatorSet", 1, "domain", BYTES, "text", ONE),
        ("OperatorSet", 2, "version", VARINT, "number", ONE),
        ("Graph", 1, "node", BYTES, "Node", MANY),
        ("Graph", 2, "name", BYTES, "text", ONE),
        ("Graph", 5, "initializer", BYTES, "Tensor", MANY),
        ("Graph", 11, "input", BYTES, "ValueInfo", MANY),
        ("Graph", 12, "output", BYTES, "ValueInfo", MANY),
        ("Graph", 13, "value_info", BYTES, "ValueInfo", MANY),
        ("Graph", 15, "sparse_initializer", BYTES, "a sparse tensor", NEVER),
        ("Graph", 16, "metadata_props", BYTES, "metadata", NEVER),
        ("Node", 1, "input", BYTES, "text", MANY),
        ("Node", 2, "output", BYTES, "text", MANY),
        ("Node", 3, "name", BYTES, "text", ONE),
        ("Node", 4, "op_type", BYTES, "text", ONE),
        ("Node", 5, "attribute", BYTES, "Attribute", MANY),
        ("Node", 7, "domain", BYTES, "text", ONE),
        ("Node", 9, "metadata_props", BYTES, "metadata", NEVER),
        ("Attribute", 1, "name", BYTES, "text", ONE),
        ("Attribute", 2, "f", I32, "float", ONE),
        ("Attribute", 3, "i", VARINT, "number", ONE),
        ("Attribute", 4, "s", BYTES, "text", ONE),
        ("Attribute", 5, "t", BYTES, "Tensor", ONE),
        ("Attribute", 6, "g", BYTES, "Graph", ONE),
        ("Attribute", 7, "floats", I32, "float", MANY),
        ("Attribute", 8, "ints", VARINT, "number", MANY),
        ("Attribute", 9, "strings", BYTES, "text", MANY),
        ("Attribute", 20, "type", VARINT, "number", ONE),
        ("Attribute", 21, "ref_attr_name", BYTES, "an attribute of a function", NEVER),
        ("Attribute", 22, "sparse_tensor", BYTES, "a sparse tensor", NEVER),
        ("Attribute", 23, "sparse_tensors", BYTES, "a sparse tensor", NEVER),
        ("Tensor", 1, "dims", VARINT, "number", MANY),
        ("Tensor", 2, "data_type", VARINT, "number", ONE),
        ("Tensor", 4, "float_data", BYTES, "data", ONE),
        ("Tensor", 5, "int32_data", BYTES, "data", ONE),
        ("Tensor", 7, "int64_data", BYTES, "data", ONE),
        ("Tensor", 8, "name", BYTES, "text", ONE),
        ("Tensor", 9, "raw_data", BYTES, "data", ONE),
        ("Tensor", 13, "external_data", BYTES, "external data", NEVER),
        ("Tensor", 14, "data_location", VARINT, "external data", NEVER),
        ("Tensor", 16, "metadata_props", BYTES, "metadata", NEVER),
        ("ValueInfo", 1, "name", BYTES, "text", ONE),
        ("ValueInfo", 2, "type", BYTES, "Type", ONE),
        ("ValueInfo", 4, "metadata_props", BYTES, "metadata", NEVER),
        ("Type", 1, "tensor_type", BYTES, "TensorType", ONE),
        ("Type", 4, "sequence_type", BYTES, "SequenceType", ONE),
        ("Type", 5, "map_type", BYTES, "a map", NEVER),
        ("Type", 8, "sparse_tensor_type", BYTES, "a sparse tensor", NEVER),
        ("Type", 9, "optional_type", BYTES, "an optional value", NEVER),
        ("TensorType", 1, "elem_type", VARINT, "number", ONE),
        ("TensorType", 2, "shape", BYTES, "Shape", ONE),
        ("SequenceType", 1, "elem_type", BYTES, "Type", ONE),
        ("Shape", 1, "dim", BYTES, "Dimension", MANY),
        ("Dimension", 1, "dim_value", VARINT, "number", ONE),
        ("Dimension", 2, "dim_param", BYTES, "text", ONE),
    )
)

# Type of a tensor -> bytes of an element, and the field that holds its values where they are not raw. The other types
# are strings, complex numbers, and floats and integers of 8 and 4 bits that not every runtime knows.
TYPES: Mapping[int, tuple[int, str]] = {
    1: (4, "float_data"),  # float32
    2: (1, "int32_data"),  # uint8
    3: (1, "int32_data"),  # int8
    4: (2, "int32_data"),  # uint16
    5: (2, "int32_data"),  # int16
    6: (4, "int32_data"),  # int32
    7: (8, "int64_data"),
    9: (1, "int32_data"),  # bool
    10: (2, "int32_data"),  # float16
    11: (8, ""),  # float64
    12: (4, ""),  # uint32
    13: (8, ""),  # uint64
}
_DATA = ("raw_data", "float_data", "int32_data", "int64_data")

# Type of an attribute -> the field with its value. No operator of OPERATORS needs the others: types, sparse tensors,
# lists of tensors and of graphs.
ATTRIBUTES: Mapping[int, str] = {1: "f", 2: "i", 3: "s", 4: "t", 5: "g", 6: "floats", 7: "ints", 8: "strings"}

# Every operator of the default domain in opset 18 that makes numbers of numbers and, of equal numbers, equal ones; also
# those with lists of tensors, which torch.split becomes. What is left out, and why: tests/attacks/test_walk.py.
OPERATORS = frozenset(
    """
    Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization BitShift BitwiseAnd
    BitwiseNot BitwiseOr BitwiseXor BlackmanWindow Cast CastLike Ceil Celu CenterCropPad Clip Col2Im Compress Concat
    ConcatFromSequence Constant ConstantOfShape Conv ConvInteger ConvTranspose Cos Cosh CumSum DFT DepthToSpace
    DequantizeLinear Det Div DynamicQuantizeLinear Einsum Elu Equal Erf Exp Expand EyeLike Flatten Floor GRU Gather
    GatherElements GatherND Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool Greater GreaterOrEqual GridSample
    HammingWindow HannWindow HardSigmoid HardSwish Hardmax Identity If InstanceNormalization IsInf IsNaN LRN LSTM
    LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax Loop LpNormalization LpPool MatMul MatMulInteger Max
    MaxPool MaxRoiPool MaxUnpool Mean MeanVarianceNormalization MelWeightMatrix Min Mish Mod Mul Neg
    NegativeLogLikelihoodLoss NonMaxSuppression NonZero Not OneHot Or PRelu Pad Pow QLinearConv QLinearMatMul
    QuantizeLinear RNN Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin
    ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize ReverseSequence RoiAlign Round STFT Scan ScatterElements
    ScatterND Selu SequenceAt SequenceConstruct SequenceEmpty SequenceErase SequenceInsert SequenceLength SequenceMap
    Shape Shrink Sigmoid Sign Sin Sinh Size Slice Softmax SoftmaxCrossEntropyLoss Softplus Softsign SpaceToDepth Split
    SplitToSequence Sqrt Squeeze Sub Sum Tan Tanh ThresholdedRelu Tile TopK Transpose Trilu Unique Unsqueeze Where Xor
    """.split()  # noqa: SIM905
)

# Engine -> domain -> its version, and the operators that are allowed. onnxruntime-training's own files need two more:
# exporter/edgefl_exporter/targets/training_graphs.py. Beside them it reads a checkpoint, a flatbuffer of tensors, which
# is not walked: it has no operators, and no name of a file.
ENGINES: Mapping[str, Mapping[str, tuple[int, frozenset[str]]]] = {
    "portable": {"": (OPSET, OPERATORS)},
    "onnxruntime-training": {
        "": (OPSET, OPERATORS),
        "com.microsoft": (1, frozenset({"InPlaceAccumulatorV2", "SGDOptimizerV2"})),
    },
}


def check_graph(data: bytes, *, engine: str = "portable", where: str = "the program") -> None:
    """Raise BundleError, one line that begins with `where`, unless the engine may be given these bytes.

    Milliseconds for a program of some thousand nodes; the bytes of tensors are passed over. What a program computes is
    not judged, nor for how long, nor whether onnxruntime can load it.
    """
    try:
        if data[4:8] == b"ORTM":
            raise _Refused("onnxruntime's own format (bytes 4 to 8 are 'ORTM'), whatever else it is")
        if len(data) > LARGEST_BYTES:
            raise _Refused(f"{len(data):,} bytes; at most {LARGEST_BYTES:,} are accepted")
        _Walk(data, ENGINES[engine]).model()
    except _Refused as refused:
        raise BundleError(
            f"{where} is refused: {refused}", hint="programs hold standard ONNX alone; export the bundle again"
        ) from None


def shown(text: str) -> str:
    """A name out of a file, for a message: printable, and short."""
    return ascii(text if len(text) <= 60 else text[:60] + "...")


class _Refused(Exception):
    """Why."""


_ROWS = {(row.message, row.number): row for row in TABLE}
_BY_TAG: dict[str, dict[int, Field]] = {
    message: {row.number << 3 | row.wire: row for row in TABLE if row.message == message and row.times != NEVER}
    for message in {row.message for row in TABLE}
}
# In a row of numbers: one that is longer than it need be, or than 64 bits.
_OVERLONG = re.compile(rb"[\x80-\xff]\x00|[\x80-\xff]{9}[\x02-\xff]")
_CONTINUED = bytes(range(0x80, 0x100))


class _Walk:
    """One pass over the bytes. A message is a dict: name of a field -> its value, a list, or how often it was there."""

    def __init__(self, data: bytes, domains: Mapping[str, tuple[int, frozenset[str]]]) -> None:
        self._data = data
        self._domains = domains
        self._imports: list[tuple[str, int]] = []
        self._fields = self._nodes = self._constants = 0
        self._checks: Mapping[str, Any] = {
            "OperatorSet": self._operator_set,
            "Node": self._node,
            "Attribute": self._attribute,
            "Tensor": self._tensor,
            "Type": self._one_of,
            "TensorType": self._tensor_type,
            "Dimension": self._one_of,
        }

    def model(self) -> None:
        found = self._message("Model", 0, len(self._data), 1)
        if "graph" not in found:
            raise _Refused("no graph")
        if found.get("ir_version") not in IR_VERSIONS:
            raise _Refused(f"IR version {found.get('ir_version')}; expected {IR_VERSIONS[0]} to {IR_VERSIONS[-1]}")
        allowed = {(domain, version) for domain, (version, _) in self._domains.items()}
        if ("", OPSET) not in self._imports or len({*self._imports}) < len(self._imports):
            raise _Refused(f"it does not import operator set {OPSET} of the default domain, once")
        for domain, version in self._imports:
            if (domain, version) not in allowed:
                raise _Refused(f"operator set {version} of the domain {shown(domain)}")

    def _message(self, message: str, at: int, end: int, depth: int) -> dict[str, Any]:
        """The message in these bytes, checked with all that is in it."""
        if depth > DEEPEST:
            raise _Refused(f"messages more than {DEEPEST} deep")
        data, by_tag = self._data, _BY_TAG[message]
        found: dict[str, Any] = {}
        while at < end:
            start = at
            tag, at = (data[at], at + 1) if data[at] < 0x80 else self._varint(at, end)
            field = by_tag.get(tag)
            if field is None:
                raise self._unknown(message, tag, start)
            self._fields += 1
            if self._fields > MOST_FIELDS:
                raise _Refused(f"more than {MOST_FIELDS:,} fields")
            _, _, name, wire, kind, times = field
            if times == ONE and name in found:
                raise _Refused(f"{message}.{name} twice, at byte {start}")
            value: Any
            if wire == VARINT:
                value, at = self._varint(at, end)
            else:
                if wire == I32:
                    size = 4
                elif at < end and data[at] < 0x80:  # most are: a call for each would double the time
                    size, at = data[at], at + 1
                else:
                    size, at = self._varint(at, end)
                if size > end - at:
                    raise _Refused(f"{message}.{name} is longer than what holds it, at byte {start}")
                begin, at = at, at + size
                if kind == "text":
                    value = self._text(data[begin:at], message, name, start)
                elif kind == "data":
                    value = (begin, at)
                elif kind == "float":
                    value = None
                else:
                    if kind == "Tensor":
                        self._constant(size)
                    value = self._message(kind, begin, at, depth + 1)
            if times == ONE:
                found[name] = value
            elif kind == "number":
                found.setdefault(name, []).append(value)
            else:  # what is in them was checked, and a large graph need not be held
                found[name] = found.get(name, 0) + 1
        check = self._checks.get(message)
        if check is not None:
            check(found)
        return found

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        """The number that begins here, as 64 bits without a sign, and where it ends."""
        data, value = self._data, 0
        for shift in range(0, 70, 7):
            if at >= end:
                raise _Refused(f"it ends within a number, at byte {at}")
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if (byte == 0 and shift) or value >> 64:
                    break
                return value, at
        raise _Refused(f"a number that is longer than it need be, or than 64 bits, before byte {at}")

    def _text(self, value: bytes, message: str, name: str, start: int) -> str:
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise _Refused(f"{message}.{name} is not UTF-8, at byte {start}") from None

    def _unknown(self, message: str, tag: int, at: int) -> _Refused:
        """The tag is compared as it was read: a parser that keeps 32 bits of it would see another field."""
        row = _ROWS.get((message, tag >> 3))
        if row is None:
            return _Refused(f"an unknown field (number {tag >> 3} of {message}, at byte {at})")
        if row.times == NEVER:
            return _Refused(f"{row.kind} ({message}.{row.name}, at byte {at})")
        return _Refused(f"wire type {tag & 7} for {message}.{row.name}, expected {row.wire}, at byte {at}")

    def _operator_set(self, found: Mapping[str, Any]) -> None:
        self._imports.append((found.get("domain", ""), found.get("version", 0)))

    def _node(self, found: Mapping[str, Any]) -> None:
        self._nodes += 1
        if self._nodes > MOST_NODES:
            raise _Refused(f"more than {MOST_NODES:,} nodes")
        domain, operator = found.get("domain", ""), found.get("op_type", "")
        if domain not in self._domains:
            raise _Refused(f"operator {shown(operator)} of the domain {shown(domain)}")
        if operator not in self._domains[domain][1]:
            raise _Refused(f"operator {shown(operator)}, which is not among those that are allowed")

    def _attribute(self, found: Mapping[str, Any]) -> None:
        """Of one type, with a value of this type and no other. Without values it is an empty list."""
        wanted = ATTRIBUTES.get(found.get("type", 0))
        given = found.keys() & ATTRIBUTES.values()
        if wanted is None or (given != {wanted} and (given or not wanted.endswith("s") or wanted == "s")):
            raise _Refused(f"attribute {shown(found.get('name', ''))} of type {found.get('type', 0)}")
        self._constant(4 * found.get("floats", 0) + 8 * len(found.get("ints", ())))

    def _tensor(self, found: Mapping[str, Any]) -> None:
        """Of a type that is known, with as many values as its shape says, in one field."""
        name, kind = shown(found.get("name", "")), found.get("data_type", 0)
        if kind not in TYPES:
            raise _Refused(f"tensor {name} of type {kind}")
        size, typed = TYPES[kind]
        dims = found.get("dims", ())
        elements = math.prod(dims) if len(dims) <= MOST_DIMENSIONS else math.nan
        held = [field for field in _DATA if field in found]
        if held == ["raw_data"]:
            begin, end = found["raw_data"]
            count = (end - begin) / size
        elif held == [typed]:
            count = self._values(typed, *found[typed])
        else:
            count = math.nan if held else 0  # which equals nothing
        if count != elements:
            raise _Refused(f"tensor {name} does not hold the values of its shape")

    def _values(self, field: str, begin: int, end: int) -> float:
        """How many numbers a tensor's typed field holds."""
        values = self._data[begin:end]
        if not values:
            return math.nan  # nobody writes this, and not every parser keeps it
        if field == "float_data":
            return len(values) / 4
        if field == "int32_data":
            return len(values) if values.isascii() else math.nan  # each below 128, as bool is; others are raw
        whole = values[-1] < 0x80
        return len(values.translate(None, _CONTINUED)) if whole and not _OVERLONG.search(values) else math.nan

    def _tensor_type(self, found: Mapping[str, Any]) -> None:
        if found.get("elem_type", 0) not in TYPES:
            raise _Refused(f"a value of type {found.get('elem_type', 0)}")

    def _one_of(self, found: Mapping[str, Any]) -> None:
        if len(found) > 1:
            raise _Refused(f"both {' and '.join(found)}")

    def _constant(self, size: int) -> None:
        self._constants += size
        if self._constants > LARGEST_CONSTANTS_BYTES:
            raise _Refused(f"more than {LARGEST_CONSTANTS_BYTES:,} bytes of constants")
