// Named tensors, and safetensors: eight bytes of length, a JSON header, then the values, all little-endian.

import { BundleError } from "./errors.mjs";

// safetensors' name of a type -> onnxruntime's, and the array that holds its values
const TYPES = {
  F32: ["float32", Float32Array],
  F16: ["float16", Uint16Array], // its bits
  I64: ["int64", BigInt64Array],
  I32: ["int32", Int32Array],
  U8: ["uint8", Uint8Array],
  BOOL: ["bool", Uint8Array],
};

/** A tensor as onnxruntime-web takes it: {type, dims, data}. Scalars have no dims; int64 values are BigInts. */
export class Values {
  constructor(type, dims, data) {
    this.type = type;
    this.dims = dims;
    this.data = data;
  }

  /** The values as 64-bit floats, in order. */
  numbers() {
    if (this.type === "float16" && this.data instanceof Uint16Array) return Float64Array.from(this.data, fromHalf);
    return this.type === "int64" ? Float64Array.from(this.data, Number) : Float64Array.from(this.data);
  }

  /** This tensor's type and shape, filled with the one value of `scalar`. */
  filledWith(scalar) {
    return new Values(this.type, this.dims, this.data.slice().fill(scalar.data[0]));
  }
}

/** Safetensors bytes -> Map of name -> Values. Raises BundleError when they are damaged; `where` says whose they are. */
export function loadTensors(bytes, where) {
  const damaged = (why) => new BundleError(`${where}: not safetensors (${why})`);
  if (bytes.byteLength < 8) throw damaged("no header");
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const length = Number(view.getBigUint64(0, true));
  if (8 + length > bytes.byteLength) throw damaged("the header is cut");
  let header;
  try {
    header = JSON.parse(new TextDecoder().decode(bytes.subarray(8, 8 + length)));
  } catch (error) {
    throw damaged(error.message);
  }
  const tensors = new Map();
  for (const [name, entry] of Object.entries(header)) {
    if (name === "__metadata__") continue;
    if (!(entry.dtype in TYPES)) throw damaged(`${name} is ${entry.dtype}`);
    const [type, Kind] = TYPES[entry.dtype];
    const [start, end] = entry.data_offsets;
    const size = entry.shape.reduce((product, n) => product * n, Kind.BYTES_PER_ELEMENT);
    if (end - start !== size || 8 + length + end > bytes.byteLength) throw damaged(`${name} is cut`);
    const copy = bytes.slice(8 + length + start, 8 + length + end); // typed arrays begin at multiples of their size
    tensors.set(name, new Values(type, entry.shape, new Kind(copy.buffer)));
  }
  return tensors;
}

/** The number that 16 bits of IEEE half precision stand for. */
export function fromHalf(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 0x1f;
  const fraction = (bits & 0x3ff) / 1024;
  if (exponent === 0) return sign * fraction * 2 ** -14;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (1 + fraction) * 2 ** (exponent - 15);
}
