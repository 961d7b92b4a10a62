"""LSTM, GRU and RNN as loops: one ONNX Scan per layer, direction and pass, however long the sequence is.

PyTorch's own decomposition writes every time step out. Here the products with the inputs, and all the arithmetic of the
backward pass that does not depend on the step before, stay outside the loop as large tensors; what is inside is one
product with the recurrent weight and a few element-wise operators.

Shapes: T steps, N examples, H hidden units, G*H gates. Gradients: written out from the forward formulas of
torch.nn.LSTM, GRU and RNN.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import onnx_ir
import torch
from onnxscript import evaluator, opset18
from torch import Tensor

from edgefl_exporter.lowering.torch_internals import (
    OpRecorder,
    SymbolicTensor,
    add_node,
)

op: Any = opset18
Value = Any


class _Torch:
    """The arithmetic of a loop's body, in PyTorch."""

    matmul, sigmoid, tanh, relu = torch.matmul, torch.sigmoid, torch.tanh, torch.relu
    add, sub, mul = torch.add, torch.sub, torch.mul

    @staticmethod
    def cat(*parts: Tensor) -> Tensor:
        return torch.cat(parts, -1)

    @staticmethod
    def split(x: Tensor, count: int) -> Sequence[Tensor]:
        return x.chunk(count, -1)


class _Onnx:
    """The same in ONNX."""

    matmul, sigmoid, tanh, relu = op.MatMul, op.Sigmoid, op.Tanh, op.Relu
    add, sub, mul = op.Add, op.Sub, op.Mul

    @staticmethod
    def cat(*parts: Value) -> Value:
        return op.Concat(*parts, axis=-1)

    @staticmethod
    def split(x: Value, count: int) -> Sequence[Value]:
        return op.Split(x, num_outputs=count, axis=-1)  # type: ignore[no-any-return]


# A body takes the arithmetic, the states [N, H], this step of each sequence, and fixed tensors;
# it gives the next states and this step of each result.
Body = Callable[[Any, Sequence[Any], Sequence[Any], Sequence[Any]], tuple[Sequence[Any], Sequence[Any]]]


def _lstm(m: Any, states: Sequence[Any], step: Sequence[Any], fixed: Sequence[Any]) -> tuple[Any, Any]:
    (h, c), (x,), (weight,) = states, step, fixed
    i, f, g, o = m.split(m.add(x, m.matmul(h, weight)), 4)
    i, f, g, o = m.sigmoid(i), m.sigmoid(f), m.tanh(g), m.sigmoid(o)
    c = m.add(m.mul(f, c), m.mul(i, g))
    h = m.mul(o, m.tanh(c))
    return (h, c), (h, c, m.cat(i, f, g, o))


def _lstm_backward(m: Any, states: Sequence[Any], step: Sequence[Any], fixed: Sequence[Any]) -> tuple[Any, Any]:
    (gh, gc), (from_above, slopes, slope, f), (weight,) = states, step, fixed
    gh = m.add(gh, from_above)
    gc = m.add(gc, m.mul(gh, slope))
    gates = m.mul(m.cat(gc, gc, gc, gh), slopes)
    return (m.matmul(gates, weight), m.mul(gc, f)), (gates,)


def _gru(m: Any, states: Sequence[Any], step: Sequence[Any], fixed: Sequence[Any]) -> tuple[Any, Any]:
    (h,), (x,), (weight, bias) = states, step, fixed
    xr, xz, xn = m.split(x, 3)
    hr, hz, hn = m.split(m.add(m.matmul(h, weight), bias), 3)
    r, z = m.sigmoid(m.add(xr, hr)), m.sigmoid(m.add(xz, hz))
    n = m.tanh(m.add(xn, m.mul(r, hn)))
    h = m.add(n, m.mul(z, m.sub(h, n)))
    return (h,), (h, m.cat(r, z, n, hn))


def _gru_backward(m: Any, states: Sequence[Any], step: Sequence[Any], fixed: Sequence[Any]) -> tuple[Any, Any]:
    (gh,), (from_above, slopes, z), (weight,) = states, step, fixed
    gh = m.add(gh, from_above)
    gates = m.mul(m.cat(gh, gh, gh), slopes)
    return (m.add(m.mul(gh, z), m.matmul(gates, weight)),), (gates, gh)


def _rnn_tanh(m: Any, states: Sequence[Any], step: Sequence[Any], fixed: Sequence[Any]) -> tuple[Any, Any]:
    h = m.tanh(m.add(step[0], m.matmul(states[0], fixed[0])))
    return (h,), (h,)


def _rnn_relu(m: Any, states: Sequence[Any], step: Sequence[Any], fixed: Sequence[Any]) -> tuple[Any, Any]:
    h = m.relu(m.add(step[0], m.matmul(states[0], fixed[0])))
    return (h,), (h,)


def _rnn_backward(m: Any, states: Sequence[Any], step: Sequence[Any], fixed: Sequence[Any]) -> tuple[Any, Any]:
    (gh,), (from_above, slope), (weight,) = states, step, fixed
    gate = m.mul(m.add(gh, from_above), slope)
    return (m.matmul(gate, weight),), (gate,)


BODIES: dict[str, Body] = {
    "lstm": _lstm,
    "lstm_backward": _lstm_backward,
    "gru": _gru,
    "gru_backward": _gru_backward,
    "rnn_tanh": _rnn_tanh,
    "rnn_relu": _rnn_relu,
    "rnn_backward": _rnn_backward,
}


@torch.library.custom_op("edgefl::scan", mutates_args=())
def scan(
    body: str, states: Sequence[Tensor], sequences: Sequence[Tensor], fixed: Sequence[Tensor], reverse: bool
) -> list[Tensor]:
    """The last states, then each result [T, ...], of a body of BODIES run over the sequences [T, ...]."""
    results = []
    order = range(len(sequences[0]))
    for t in reversed(order) if reverse else order:
        states, step = BODIES[body](_Torch, states, [sequence[t] for sequence in sequences], fixed)
        results.append(step)
    turned = reversed(results) if reverse else results
    return [*(s.clone() for s in states), *(torch.stack(steps) for steps in zip(*turned, strict=True))]


@scan.register_fake
def _(
    body: str, states: Sequence[Tensor], sequences: Sequence[Tensor], fixed: Sequence[Tensor], reverse: bool
) -> list[Tensor]:
    after, step = BODIES[body](_Torch, states, [sequence[0] for sequence in sequences], fixed)
    time = sequences[0].shape[0]
    return [*(s.new_empty(s.shape) for s in after), *(r.new_empty((time, *r.shape)) for r in step)]


def onnx_scan(
    body: str, states: Sequence[Value], sequences: Sequence[Value], fixed: Sequence[Value], reverse: bool
) -> Sequence[Value]:
    """The translation of `scan`. Fixed tensors are read from the graph around the body."""

    def inside(value: Value, first: int) -> Value:
        return SymbolicTensor(opset18, shape=onnx_ir.Shape(value.shape[first:]), type=value.type)

    before = [inside(value, 0) for value in states]
    step = [inside(value, 1) for value in sequences]
    with evaluator.default_as(recorder := OpRecorder(opset18, {})):  # type: ignore[abstract]
        after, results = BODIES[body](_Onnx, before, step, fixed)
        # A result that is also a state: the body's outputs must differ.
        outputs = [*after, *(op.Identity(r) if any(r is a for a in after) else r for r in results)]
    for value in outputs:
        value.type = states[0].type
    graph = onnx_ir.Graph([*before, *step], outputs, nodes=recorder.nodes, name=body)
    node = onnx_ir.node(
        "Scan",
        [*states, *sequences],
        attributes={
            "body": graph,
            "num_scan_inputs": len(sequences),
            "scan_input_directions": [int(reverse)] * len(sequences),
            "scan_output_directions": [int(reverse)] * len(results),
        },
        num_outputs=len(outputs),
    )
    add_node(node)
    return node.outputs


class _Lstm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, h0: Tensor, c0: Tensor, reverse: bool) -> tuple[Tensor, Tensor]:
        _, last, h, c, gates = scan("lstm", [h0, c0], [x], [weight.t()], reverse)
        ctx.save_for_backward(weight, h0, c0, h, c, gates)
        ctx.reverse = reverse
        return h, last

    @staticmethod
    def backward(ctx: Any, gh: Tensor, gc: Tensor) -> tuple[Tensor | None, ...]:
        weight, h0, c0, h, c, gates = ctx.saved_tensors
        i, f, g, o = gates.chunk(4, -1)
        bent = c.tanh()
        slopes = torch.cat(
            [
                g * i * (1 - i),
                _before(c, c0, ctx.reverse) * f * (1 - f),
                i * (1 - g * g),
                bent * o * (1 - o),
            ],
            -1,
        )
        slope = o * (1 - bent * bent)
        states = [torch.zeros_like(h0), gc]
        gh0, gc0, gx = scan("lstm_backward", states, [gh, slopes, slope, f], [weight], not ctx.reverse)
        return gx, _weight(gx, _before(h, h0, ctx.reverse)), gh0, gc0, None


class _Gru(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, h0: Tensor, reverse: bool) -> Tensor:
        _, h, gates = scan("gru", [h0], [x], [weight.t(), bias], reverse)
        ctx.save_for_backward(weight, h0, h, gates)
        ctx.reverse = reverse
        return h  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, gh: Tensor) -> tuple[Tensor | None, ...]:
        weight, h0, h, gates = ctx.saved_tensors
        r, z, n, hn = gates.chunk(4, -1)
        earlier = _before(h, h0, ctx.reverse)
        to_n = (1 - z) * (1 - n * n)
        slopes = torch.cat([to_n * hn * r * (1 - r), (earlier - n) * z * (1 - z), to_n * r], -1)
        nothing = torch.zeros_like(h0)
        gh0, gates, every = scan("gru_backward", [nothing], [gh, slopes, z], [weight], not ctx.reverse)
        gx = torch.cat([gates[..., : 2 * h.shape[-1]], every * to_n], -1)
        return gx, _weight(gates, earlier), gates.sum((0, 1)), gh0, None


class _Rnn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, body: str, x: Tensor, weight: Tensor, h0: Tensor, reverse: bool) -> Tensor:
        _, h = scan(body, [h0], [x], [weight.t()], reverse)
        ctx.save_for_backward(weight, h0, h)
        ctx.body, ctx.reverse = body, reverse
        return h  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, gh: Tensor) -> tuple[Tensor | None, ...]:
        weight, h0, h = ctx.saved_tensors
        slope = 1 - h * h if ctx.body == "rnn_tanh" else (h > 0).to(h.dtype)
        gh0, gx = scan("rnn_backward", [torch.zeros_like(h0)], [gh, slope], [weight], not ctx.reverse)
        return None, gx, _weight(gx, _before(h, h0, ctx.reverse)), gh0, None


def _before(h: Tensor, h0: Tensor, reverse: bool) -> Tensor:
    """The state that each step began with."""
    return torch.cat([h[1:], h0.unsqueeze(0)]) if reverse else torch.cat([h0.unsqueeze(0), h[:-1]])


def _weight(gates: Tensor, h: Tensor) -> Tensor:
    return gates.flatten(0, 1).t() @ h.flatten(0, 1)


def recurrent(kind: str, default: Callable[..., Any], *args: Any) -> Any:
    """torch.lstm, gru, rnn_tanh or rnn_relu. Packed sequences and projections are left to `default`."""
    if not isinstance(args[3], bool):  # packed: (data, batch_sizes, hx, params, ...)
        return default(*args)
    x, given, params, biases, layers, dropout, train, both, batch_first = args
    initial: list[Tensor] = list(given) if kind == "lstm" else [given]
    directions = 2 if both else 1
    each = 4 if biases else 2
    if len(params) != each * layers * directions:  # LSTM with proj_size
        return default(*args)
    x = x.transpose(0, 1) if batch_first else x
    last: list[list[Tensor]] = []
    for layer in range(layers):
        results = []
        for direction in range(directions):
            number = layer * directions + direction
            weights = params[number * each : (number + 1) * each]
            h, final = _layer(kind, x, [state[number] for state in initial], weights, bool(direction))
            results.append(h)
            last.append(final)
        x = torch.cat(results, -1) if both else results[0]
        if dropout and train and layer < layers - 1:
            x = torch.dropout(x, dropout, True)
    y = x.transpose(0, 1) if batch_first else x
    return y, *(torch.stack(states) for states in zip(*last, strict=True))


def _layer(
    kind: str, x: Tensor, initial: Sequence[Tensor], weights: Sequence[Tensor], reverse: bool
) -> tuple[Tensor, list[Tensor]]:
    """All hidden states [T, N, H] of one layer in one direction, and its last states."""
    inner, weight, *biases = weights
    apply: Any
    if kind == "gru":
        products = torch.nn.functional.linear(x, inner, biases[0] if biases else None)
        bias = biases[1] if biases else x.new_zeros(len(inner))
        apply = _Gru.apply
        h = apply(products, weight, bias, initial[0], reverse)
        return h, [h[0] if reverse else h[-1]]
    products = torch.nn.functional.linear(x, inner, biases[0] + biases[1] if biases else None)
    if kind == "lstm":
        apply = _Lstm.apply
        h, c = apply(products, weight, *initial, reverse)
        return h, [h[0] if reverse else h[-1], c]
    apply = _Rnn.apply
    h = apply(kind, products, weight, initial[0], reverse)
    return h, [h[0] if reverse else h[-1]]
