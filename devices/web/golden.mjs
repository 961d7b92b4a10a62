// Proving a bundle again in onnxruntime-web. The measure is edgefl/replay.py's; its comments say why it is so.

import * as ort from "onnxruntime-web";

import { BundleError, ParityError } from "./errors.mjs";
import { Values } from "./tensors.mjs";

const SMALL = 1e-2;
const MOVED = 1e-2;

ort.env.wasm.numThreads = 1;
ort.env.logLevel = "error"; // warnings about graph optimisation tell a device's user nothing

/**
 * Run every program's golden inputs: object of program -> worst relative error over its outputs.
 * Raises ParityError when an error is over the manifest's tolerance.
 */
export async function replay(bundle) {
  const weights = bundle.weights();
  const worst = {};
  for (const [name, program] of Object.entries(bundle.manifest.programs)) {
    const golden = bundle.golden(name);
    const values = goldenValues(weights, golden);
    const wanted = named(golden, "out.");
    const got = await run(bundle.programBytes(name), values, name);
    const errors = compare(program, values, got, wanted);
    worst[name] = Math.max(0, ...errors.values());
    checkErrors(errors, program.parity.tolerance, name);
  }
  return worst;
}

/** What a golden file's program is given: its inputs, and the weights; a scalar "in.NAME" fills a state tensor. */
export function goldenValues(weights, golden) {
  const values = new Map(weights);
  for (const [name, value] of named(golden, "in.")) {
    values.set(name, weights.has(name) ? weights.get(name).filledWith(value) : value);
  }
  return values;
}

/** The outputs of a program: Map of name -> Values. `values` may hold more than the program reads. */
export async function run(bytes, values, program) {
  let session;
  try {
    session = await ort.InferenceSession.create(bytes, {
      executionProviders: ["wasm"],
      logSeverityLevel: 3,
      extra: { session: { load_model_format: "ONNX" } }, // as walk.mjs read them: onnxruntime would look at the bytes
    });
  } catch (error) {
    throw new BundleError(`onnxruntime-web ${ort.env.versions.web} cannot load program '${program}': ${error.message}`);
  }
  try {
    const feeds = {};
    for (const name of session.inputNames) {
      const { type, data, dims } = values.get(name);
      feeds[name] = new ort.Tensor(type, data, dims);
    }
    const results = Object.entries(await session.run(feeds));
    return new Map(results.map(([name, t]) => [name, new Values(t.type, t.dims, t.data)]));
  } finally {
    await session.release();
  }
}

/** Map of output -> its error. Outputs that are a state tensor's next value are measured by how far it moved. */
function compare(program, values, got, wanted) {
  const before = new Map(Object.entries(program.writes).map(([name, output]) => [output, values.get(name)]));
  const error = ([name, want]) => [name, relativeError(got.get(name), want, before.get(name))];
  return new Map([...wanted].map(error));
}

/**
 * |got - want| / |want|, norms of whole tensors; with `before`, |got - want| / |want - before|.
 * Infinite when shapes differ, or when one has an infinity or a NaN where the other has not the same; the norms are of
 * the finite places.
 */
export function relativeError(got, want, before) {
  if (got.dims.length !== want.dims.length || got.dims.some((n, axis) => n !== want.dims[axis])) return Infinity;
  const [all, wanted] = [got.numbers(), want.numbers()];
  if (!wanted.every((v, i) => (Number.isFinite(v) ? Number.isFinite(all[i]) : Object.is(v, all[i])))) return Infinity;
  const finite = (values) => values.filter((_, i) => Number.isFinite(wanted[i]));
  const [a, b] = [finite(all), finite(wanted)];
  let size = norm(b);
  if (before !== undefined) {
    const start = finite(before.numbers()).map((v) => (Number.isFinite(v) ? v : 0));
    size = Math.max(norm(b.map((v, i) => v - start[i])), MOVED * size);
  }
  return norm(a.map((v, i) => v - b[i])) / Math.max(size, SMALL);
}

/** Raise ParityError for the worst tensor over the tolerance. */
export function checkErrors(errors, tolerance, program) {
  const [tensor, error] = [...errors].reduce((a, b) => (a[1] >= b[1] ? a : b), ["", 0]);
  if (!(error <= tolerance)) {
    throw new ParityError(
      `program '${program}', check 'golden': '${tensor}' differs from PyTorch by ${error.toPrecision(3)} ` +
        `(relative), over the tolerance of ${tolerance.toPrecision(3)}`,
      "this program would train wrongly; please report the model",
    );
  }
}

function named(golden, prefix) {
  const found = [...golden].filter(([key]) => key.startsWith(prefix));
  return new Map(found.map(([key, values]) => [key.slice(prefix.length), values]));
}

function norm(values) {
  return Math.sqrt(values.reduce((sum, v) => sum + v * v, 0));
}
