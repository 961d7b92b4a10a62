// Read and verify a bundle; edgefl/bundle.py and manifest.py describe it. Where its files come from is the caller's: a folder, HTTP,
// MQTT. Runs in browsers and in Node.

import { BundleError } from "./errors.mjs";
import { loadTensors } from "./tensors.mjs";
import { checkGraph, shown } from "./walk.mjs";

const FORMAT = 2; // of the manifest; others are refused

/** A bundle whose every byte was checked. Make one with `readBundle`. */
export class Bundle {
  #files;

  constructor(manifest, sha256, files) {
    this.manifest = manifest;
    this.sha256 = sha256;
    this.#files = files;
  }

  /** The initial state: Map of name -> Values. */
  weights() {
    return this.#tensors(this.manifest.weights);
  }

  /** A program's golden inputs ("in.NAME") and outputs ("out.NAME"). */
  golden(program) {
    return this.#tensors(this.manifest.programs[program].golden);
  }

  /** A program's bytes, for a runtime: they were walked. */
  programBytes(program) {
    return this.#files.get(this.manifest.programs[program].file.sha256);
  }

  #tensors(file) {
    return loadTensors(this.#files.get(file.sha256), file.path);
  }
}

/**
 * The bundle whose files `read` gives: a function of a path inside the bundle to a promise of a Uint8Array.
 * Raises BundleError for a damaged or newer bundle, and for a program that no runtime may be given.
 */
export async function readBundle(read) {
  const bytes = await read("manifest.json");
  let manifest;
  try {
    manifest = JSON.parse(new TextDecoder().decode(bytes));
  } catch (error) {
    throw new BundleError(`manifest.json: ${error.message}`);
  }
  if (manifest.format !== FORMAT) {
    const hint = manifest.format > FORMAT ? "upgrade edgefl" : "export it again";
    throw new BundleError(`manifest.json: bundle format ${manifest.format}; expected ${FORMAT}`, hint);
  }
  const programs = Object.values(manifest.programs);
  const files = new Map(); // by SHA-256, since a server may answer a path differently when it is asked again
  for (const file of [manifest.weights, ...programs.flatMap((p) => [p.file, p.golden])]) {
    const content = await read(checkedPath(file.path));
    if (content.byteLength !== file.size_bytes || (await sha256(content)) !== file.sha256) {
      throw new BundleError(
        `${file.path} was changed: its SHA-256 is not the manifest's`,
        "export or download it again",
      );
    }
    files.set(file.sha256, content);
  }
  for (const [name, { file }] of Object.entries(manifest.programs)) {
    checkGraph(files.get(file.sha256), `program ${shown(name)} (${shown(file.path)})`);
  }
  return new Bundle(manifest, await sha256(bytes), files);
}

/** The SHA-256 of bytes as 64 lower-case hexadecimal digits. */
export async function sha256(bytes) {
  // Node before 20 keeps the browsers' cryptography in a module.
  const { subtle } = globalThis.crypto ?? (await import("node:crypto")).webcrypto;
  const digest = new Uint8Array(await subtle.digest("SHA-256", bytes));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function checkedPath(path) {
  if (path === "" || path.startsWith("/") || path.split("/").includes("..") || /[\\:]/.test(path)) {
    throw new BundleError(`manifest.json: unsafe path '${path}'`);
  }
  return path;
}
