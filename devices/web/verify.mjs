// Repeat the parity proof in onnxruntime-web, under Node: `node verify.mjs BUNDLE... [--format json]`.
//
// As `edgefl verify`: golden inputs, against what PyTorch computed. JSON is one object per bundle and line.
// Exit codes: 0 proven, 2 wrong usage, 3 a bundle that cannot be used, 6 a proof that failed.

import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { parseArgs } from "node:util";

import { readBundle } from "./bundle.mjs";
import { BundleError, EdgeflError } from "./errors.mjs";
import { replay } from "./golden.mjs";

const USAGE = "usage: node verify.mjs BUNDLE... [--format text|json]";

/** A function that reads files of the bundle in `folder`. */
function folderReader(folder) {
  return async (path) => {
    try {
      return new Uint8Array(await readFile(join(folder, path)));
    } catch (error) {
      throw new BundleError(`no bundle at ${folder}: ${path} cannot be read (${error.code})`);
    }
  };
}

/** Prove one bundle and print the result; the exit code it deserves. */
async function verify(folder, form) {
  try {
    const bundle = await readBundle(folderReader(folder));
    const errors = await replay(bundle);
    if (form === "json") {
      console.log(JSON.stringify({ bundle: folder, proven: true, errors }));
    } else {
      for (const [name, error] of Object.entries(errors)) {
        const { tolerance } = bundle.manifest.programs[name].parity;
        console.log(`${name}: ${error.toExponential(1)} (tolerance ${tolerance.toExponential(0)})`);
      }
      console.log(`proven: every program of ${folder} computes here what PyTorch computed`);
    }
    return 0;
  } catch (error) {
    if (!(error instanceof EdgeflError)) throw error;
    if (form === "json") console.log(JSON.stringify({ bundle: folder, proven: false, error: error.message }));
    console.error(`error: ${error.message}`);
    if (error.hint) console.error(`hint: ${error.hint}`);
    return error.exitCode;
  }
}

/** The command line; the exit code is the worst of all bundles'. */
async function main() {
  let given;
  try {
    given = parseArgs({ allowPositionals: true, options: { format: { type: "string", default: "text" } } });
  } catch (error) {
    console.error(`error: ${error.message}\n${USAGE}`);
    return 2;
  }
  const { positionals: folders, values } = given;
  if (folders.length === 0 || !["text", "json"].includes(values.format)) {
    console.error(USAGE);
    return 2;
  }
  let worst = 0;
  for (const folder of folders) worst = Math.max(worst, await verify(folder, values.format));
  return worst;
}

process.exitCode = await main();
