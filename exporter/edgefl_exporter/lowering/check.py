"""What every program must be, checked on the finished file."""

from __future__ import annotations

import onnx

from edgefl.errors import BundleError, LoweringError
from edgefl.trust.onnx_walk import LARGEST_CONSTANTS_BYTES, check_graph
from edgefl_exporter.lowering.emit import IR_VERSION, OPSET


def check(model: onnx.ModelProto, data: bytes) -> None:
    """Raise LoweringError unless the file is plain ONNX with weights as inputs."""
    opsets = {(entry.domain, entry.version) for entry in model.opset_import}
    if opsets != {("", OPSET)} or model.ir_version > IR_VERSION or model.functions:
        raise LoweringError(f"the program needs operator sets {sorted(opsets)}; only standard {OPSET} is portable")
    foreign = sorted({node.op_type for node in model.graph.node if node.domain not in ("", "ai.onnx")})
    if foreign:
        raise LoweringError(f"the program contains non-standard operators: {', '.join(foreign)}")
    constants = sum(tensor.ByteSize() for tensor in model.graph.initializer)
    if constants > LARGEST_CONSTANTS_BYTES:
        raise LoweringError(
            f"the program has {constants:,} bytes of constants; at most {LARGEST_CONSTANTS_BYTES:,} are accepted",
            hint="make large fixed tensors buffers (register_buffer) so that they are state",
        )
    onnx.checker.check_model(data, full_check=True)
    check_as_device(data)


def check_as_device(data: bytes, *, engine: str = "portable", where: str = "the program") -> None:
    """Raise LoweringError, here and not on a device, for a file that devices would refuse."""
    try:
        check_graph(data, engine=engine, where=where)
    except BundleError as error:
        raise LoweringError(
            error.message, hint="please report the model; compute this part outside of it meanwhile"
        ) from error
