// Whether a program may be given to a runtime: its bytes are walked before any session is made of them. The rules and
// the table are edgefl/trust/onnx_walk.py's, whose comments say why; both are held to tests/vectors/walk.json.

import { BundleError } from "./errors.mjs";

export const OPSET = 18;
const IR_VERSIONS = [8, 10]; // least and most

export const LARGEST_BYTES = 32 * 2 ** 20;
export const LARGEST_CONSTANTS_BYTES = 4 * 2 ** 20;
export const MOST_NODES = 100_000;
export const MOST_FIELDS = 1_000_000;
export const MOST_DIMENSIONS = 16;
export const DEEPEST = 40;

const [VARINT, BYTES, I32] = [0, 2, 5];
const [ONE, MANY, NEVER] = ["one", "many", "never"];

// message, number, name, wire type, kind, how often
// prettier-ignore
export const TABLE = [
  ["Model", 1, "ir_version", VARINT, "number", ONE],
  ["Model", 2, "producer_name", BYTES, "text", ONE],
  ["Model", 3, "producer_version", BYTES, "text", ONE],
  ["Model", 4, "domain", BYTES, "text", ONE],
  ["Model", 5, "model_version", VARINT, "number", ONE],
  ["Model", 7, "graph", BYTES, "Graph", ONE],
  ["Model", 8, "opset_import", BYTES, "OperatorSet", MANY],
  ["Model", 14, "metadata_props", BYTES, "metadata", NEVER],
  ["Model", 20, "training_info", BYTES, "training info", NEVER],
  ["Model", 25, "functions", BYTES, "functions", NEVER],
  ["OperatorSet", 1, "domain", BYTES, "text", ONE],
  ["OperatorSet", 2, "version", VARINT, "number", ONE],
  ["Graph", 1, "node", BYTES, "Node", MANY],
  ["Graph", 2, "name", BYTES, "text", ONE],
  ["Graph", 5, "initializer", BYTES, "Tensor", MANY],
  ["Graph", 11, "input", BYTES, "ValueInfo", MANY],
  ["Graph", 12, "output", BYTES, "ValueInfo", MANY],
  ["Graph", 13, "value_info", BYTES, "ValueInfo", MANY],
  ["Graph", 15, "sparse_initializer", BYTES, "a sparse tensor", NEVER],
  ["Graph", 16, "metadata_props", BYTES, "metadata", NEVER],
  ["Node", 1, "input", BYTES, "text", MANY],
  ["Node", 2, "output", BYTES, "text", MANY],
  ["Node", 3, "name", BYTES, "text", ONE],
  ["Node", 4, "op_type", BYTES, "text", ONE],
  ["Node", 5, "attribute", BYTES, "Attribute", MANY],
  ["Node", 7, "domain", BYTES, "text", ONE],
  ["Node", 9, "metadata_props", BYTES, "metadata", NEVER],
  ["Attribute", 1, "name", BYTES, "text", ONE],
  ["Attribute", 2, "f", I32, "float", ONE],
  ["Attribute", 3, "i", VARINT, "number", ONE],
  ["Attribute", 4, "s", BYTES, "text", ONE],
  ["Attribute", 5, "t", BYTES, "Tensor", ONE],
  ["Attribute", 6, "g", BYTES, "Graph", ONE],
  ["Attribute", 7, "floats", I32, "float", MANY],
  ["Attribute", 8, "ints", VARINT, "number", MANY],
  ["Attribute", 9, "strings", BYTES, "text", MANY],
  ["Attribute", 20, "type", VARINT, "number", ONE],
  ["Attribute", 21, "ref_attr_name", BYTES, "an attribute of a function", NEVER],
  ["Attribute", 22, "sparse_tensor", BYTES, "a sparse tensor", NEVER],
  ["Attribute", 23, "sparse_tensors", BYTES, "a sparse tensor", NEVER],
  ["Tensor", 1, "dims", VARINT, "number", MANY],
  ["Tensor", 2, "data_type", VARINT, "number", ONE],
  ["Tensor", 4, "float_data", BYTES, "data", ONE],
  ["Tensor", 5, "int32_data", BYTES, "data", ONE],
  ["Tensor", 7, "int64_data", BYTES, "data", ONE],
  ["Tensor", 8, "name", BYTES, "text", ONE],
  ["Tensor", 9, "raw_data", BYTES, "data", ONE],
  ["Tensor", 13, "external_data", BYTES, "external data", NEVER],
  ["Tensor", 14, "data_location", VARINT, "external data", NEVER],
  ["Tensor", 16, "metadata_props", BYTES, "metadata", NEVER],
  ["ValueInfo", 1, "name", BYTES, "text", ONE],
  ["ValueInfo", 2, "type", BYTES, "Type", ONE],
  ["ValueInfo", 4, "metadata_props", BYTES, "metadata", NEVER],
  ["Type", 1, "tensor_type", BYTES, "TensorType", ONE],
  ["Type", 4, "sequence_type", BYTES, "SequenceType", ONE],
  ["Type", 5, "map_type", BYTES, "a map", NEVER],
  ["Type", 8, "sparse_tensor_type", BYTES, "a sparse tensor", NEVER],
  ["Type", 9, "optional_type", BYTES, "an optional value", NEVER],
  ["TensorType", 1, "elem_type", VARINT, "number", ONE],
  ["TensorType", 2, "shape", BYTES, "Shape", ONE],
  ["SequenceType", 1, "elem_type", BYTES, "Type", ONE],
  ["Shape", 1, "dim", BYTES, "Dimension", MANY],
  ["Dimension", 1, "dim_value", VARINT, "number", ONE],
  ["Dimension", 2, "dim_param", BYTES, "text", ONE],
];

export const TYPES = new Map([
  [1, [4, "float_data"]],
  [2, [1, "int32_data"]],
  [3, [1, "int32_data"]],
  [4, [2, "int32_data"]],
  [5, [2, "int32_data"]],
  [6, [4, "int32_data"]],
  [7, [8, "int64_data"]],
  [9, [1, "int32_data"]],
  [10, [2, "int32_data"]],
  [11, [8, ""]],
  [12, [4, ""]],
  [13, [8, ""]],
]);
const DATA = ["raw_data", "float_data", "int32_data", "int64_data"];

export const ATTRIBUTES = new Map([
  [1, "f"],
  [2, "i"],
  [3, "s"],
  [4, "t"],
  [5, "g"],
  [6, "floats"],
  [7, "ints"],
  [8, "strings"],
]);

export const OPERATORS = new Set(
  `
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
  `
    .trim()
    .split(/\s+/),
);

/** Raise BundleError, one line that begins with `where`, unless onnxruntime may be given these bytes (a Uint8Array). */
export function checkGraph(data, where = "the program") {
  try {
    if (String.fromCharCode(...data.subarray(4, 8)) === "ORTM") {
      throw new Refused("onnxruntime's own format (bytes 4 to 8 are 'ORTM'), whatever else it is");
    }
    if (data.length > LARGEST_BYTES) {
      throw new Refused(`${thousands(data.length)} bytes; at most ${thousands(LARGEST_BYTES)} are accepted`);
    }
    new Walk(data).model();
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    throw new BundleError(
      `${where} is refused: ${error.message}`,
      "programs hold standard ONNX alone; export the bundle again",
    );
  }
}

/** A name out of a file, for a message: printable, and short. */
export function shown(text) {
  const start = [...text.slice(0, 122)]; // at most two for a character
  const cut = start.length > 60 ? `${start.slice(0, 60).join("")}...` : text;
  const escaped = [...cut].map((c) => (c >= " " && c <= "~" && c !== "\\" && c !== "'" ? c : escape(c)));
  return `'${escaped.join("")}'`;
}

/** Why. */
class Refused extends Error {}

const ROWS = TABLE.map(([message, number, name, wire, kind, times]) => ({ message, number, name, wire, kind, times }));
const BY_TAG = new Map(TABLE.map(([message]) => [message, new Map()]));
for (const row of ROWS) if (row.times !== NEVER) BY_TAG.get(row.message).set(row.number * 8 + row.wire, row);
const VALUES = new Set(ATTRIBUTES.values());

/** One pass over the bytes. A message is a Map: name of a field -> its value, a list, or how often it was there. */
class Walk {
  #data;
  #at = 0;
  #imports = [];
  #fields = 0;
  #nodes = 0;
  #constants = 0;
  #utf8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
  #checks = {
    OperatorSet: (found) => this.#imports.push([found.get("domain") ?? "", found.get("version") ?? 0]),
    Node: (found) => this.#node(found),
    Attribute: (found) => this.#attribute(found),
    Tensor: (found) => this.#tensor(found),
    Type: (found) => oneOf(found),
    TensorType: (found) => this.#tensorType(found),
    Dimension: (found) => oneOf(found),
  };

  constructor(data) {
    this.#data = data;
  }

  model() {
    const found = this.#message("Model", this.#data.length, 1);
    if (!found.has("graph")) throw new Refused("no graph");
    const version = found.get("ir_version");
    if (!(version >= IR_VERSIONS[0] && version <= IR_VERSIONS[1])) {
      throw new Refused(`IR version ${version ?? "None"}; expected ${IR_VERSIONS[0]} to ${IR_VERSIONS[1]}`);
    }
    const keys = this.#imports.map(([domain, set]) => JSON.stringify([domain, set]));
    if (!keys.includes(JSON.stringify(["", OPSET])) || new Set(keys).size < keys.length) {
      throw new Refused(`it does not import operator set ${OPSET} of the default domain, once`);
    }
    for (const [domain, set] of this.#imports) {
      if (domain !== "" || set !== OPSET) throw new Refused(`operator set ${set} of the domain ${shown(domain)}`);
    }
  }

  /** The message in the bytes up to `end`, checked with all that is in it. */
  #message(message, end, depth) {
    if (depth > DEEPEST) throw new Refused(`messages more than ${DEEPEST} deep`);
    const byTag = BY_TAG.get(message);
    const found = new Map();
    while (this.#at < end) {
      const start = this.#at;
      const tag = this.#varint(end);
      const field = byTag.get(tag);
      if (field === undefined) throw unknown(message, tag, start);
      if (++this.#fields > MOST_FIELDS) throw new Refused(`more than ${thousands(MOST_FIELDS)} fields`);
      const { name, wire, kind, times } = field;
      if (times === ONE && found.has(name)) throw new Refused(`${message}.${name} twice, at byte ${start}`);
      const value = wire === VARINT ? this.#varint(end) : this.#bytes(field, end, start, depth);
      if (times === ONE) found.set(name, value);
      else if (kind !== "number") found.set(name, (found.get(name) ?? 0) + 1);
      else if (found.has(name)) found.get(name).push(value);
      else found.set(name, [value]);
    }
    this.#checks[message]?.(found);
    return found;
  }

  /** The value of a field with a length. */
  #bytes({ message, name, wire, kind }, end, start, depth) {
    const size = wire === I32 ? 4 : this.#varint(end);
    const begin = this.#at;
    if (size > end - begin) throw new Refused(`${message}.${name} is longer than what holds it, at byte ${start}`);
    if (kind !== "text" && kind !== "data" && kind !== "float") {
      if (kind === "Tensor") this.#constant(size);
      return this.#message(kind, begin + size, depth + 1);
    }
    this.#at += size;
    if (kind !== "text") return [begin, this.#at];
    try {
      return this.#utf8.decode(this.#data.subarray(begin, this.#at));
    } catch {
      throw new Refused(`${message}.${name} is not UTF-8, at byte ${start}`);
    }
  }

  /** The number that begins here. From 2^53 on it is rounded; nothing here is compared with such a number. */
  #varint(end) {
    let value = 0;
    let weight = 1;
    for (let count = 0; count < 10; count++) {
      if (this.#at >= end) throw new Refused(`it ends within a number, at byte ${this.#at}`);
      const byte = this.#data[this.#at++];
      value += (byte & 0x7f) * weight;
      weight *= 128;
      if (byte < 0x80) {
        if ((byte === 0 && count > 0) || (count === 9 && byte > 1)) break;
        return value;
      }
    }
    throw new Refused(`a number that is longer than it need be, or than 64 bits, before byte ${this.#at}`);
  }

  #node(found) {
    if (++this.#nodes > MOST_NODES) throw new Refused(`more than ${thousands(MOST_NODES)} nodes`);
    const [domain, operator] = [found.get("domain") ?? "", found.get("op_type") ?? ""];
    if (domain !== "") throw new Refused(`operator ${shown(operator)} of the domain ${shown(domain)}`);
    if (!OPERATORS.has(operator)) {
      throw new Refused(`operator ${shown(operator)}, which is not among those that are allowed`);
    }
  }

  /** Of one type, with a value of this type and no other. Without values it is an empty list. */
  #attribute(found) {
    const type = found.get("type") ?? 0;
    const wanted = ATTRIBUTES.get(type);
    const given = [...found.keys()].filter((name) => VALUES.has(name));
    const empty = given.length === 0 && ["floats", "ints", "strings"].includes(wanted);
    if (wanted === undefined || !(empty || (given.length === 1 && given[0] === wanted))) {
      throw new Refused(`attribute ${shown(found.get("name") ?? "")} of type ${type}`);
    }
    this.#constant(4 * (found.get("floats") ?? 0) + 8 * (found.get("ints")?.length ?? 0));
  }

  /** Of a type that is known, with as many values as its shape says, in one field. */
  #tensor(found) {
    const [name, type] = [shown(found.get("name") ?? ""), found.get("data_type") ?? 0];
    if (!TYPES.has(type)) throw new Refused(`tensor ${name} of type ${type}`);
    const [size, typed] = TYPES.get(type);
    const dims = found.get("dims") ?? [];
    const elements = dims.length <= MOST_DIMENSIONS ? dims.reduce((product, n) => product * n, 1) : NaN;
    const held = DATA.filter((field) => found.has(field));
    let count = held.length === 0 ? 0 : NaN;
    if (held.length === 1) {
      const [begin, end] = found.get(held[0]);
      if (held[0] === "raw_data") count = (end - begin) / size;
      else if (held[0] === typed) count = this.#values(typed, begin, end);
    }
    if (count !== elements) throw new Refused(`tensor ${name} does not hold the values of its shape`);
  }

  /** How many numbers a tensor's typed field holds. */
  #values(field, begin, end) {
    const values = this.#data.subarray(begin, end);
    if (values.length === 0) return NaN;
    if (field === "float_data") return values.length / 4;
    if (field === "int32_data") return values.every((byte) => byte < 0x80) ? values.length : NaN;
    let [count, run] = [0, 0]; // `run`: bytes of a number before this one
    for (const byte of values) {
      if ((byte === 0 && run > 0) || (run === 9 && byte > 1)) return NaN;
      run = byte < 0x80 ? 0 : run + 1;
      if (run === 0) count++;
    }
    return run === 0 ? count : NaN;
  }

  #tensorType(found) {
    const type = found.get("elem_type") ?? 0;
    if (!TYPES.has(type)) throw new Refused(`a value of type ${type}`);
  }

  #constant(size) {
    this.#constants += size;
    if (this.#constants > LARGEST_CONSTANTS_BYTES) {
      throw new Refused(`more than ${thousands(LARGEST_CONSTANTS_BYTES)} bytes of constants`);
    }
  }
}

function oneOf(found) {
  if (found.size > 1) throw new Refused(`both ${[...found.keys()].join(" and ")}`);
}

function unknown(message, tag, at) {
  const [number, wire] = [Math.floor(tag / 8), tag % 8];
  const row = ROWS.find((one) => one.message === message && one.number === number);
  if (row === undefined) return new Refused(`an unknown field (number ${number} of ${message}, at byte ${at})`);
  if (row.times === NEVER) return new Refused(`${row.kind} (${message}.${row.name}, at byte ${at})`);
  return new Refused(`wire type ${wire} for ${message}.${row.name}, expected ${row.wire}, at byte ${at}`);
}

function escape(character) {
  if (character === "'" || character === "\\") return `\\${character}`;
  return `\\u{${character.codePointAt(0).toString(16)}}`;
}

function thousands(number) {
  return number.toLocaleString("en-US");
}
