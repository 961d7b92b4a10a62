"""devices/web: a bundle's proof in JavaScript, for people, and refused as `edgefl verify` refuses."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import runtimes

from edgefl.bundle import Bundle
from edgefl.errors import BundleError
from edgefl.files import sha256_hex
from edgefl.manifest import PORTABLE
from edgefl.replay import relative_error
from edgefl.trust.onnx_walk import check_graph


@pytest.fixture(scope="module", autouse=True)
def node() -> None:
    """Node with the packages of devices/web; skipped where there is none."""
    try:
        runtimes.web()
    except runtimes.Missing as reason:
        pytest.skip(str(reason))


def test_it_prints_what_edgefl_verify_prints(bundles: list[Bundle]) -> None:
    done = verify(bundles[0].path)
    assert done.returncode == 0 and not done.stderr
    *programs, last = done.stdout.splitlines()
    assert [line.split(":")[0] for line in programs] == ["train", "evaluate", "predict"]
    assert all(line.endswith("(tolerance 1e-4)") for line in programs)
    assert last.startswith("proven: ")


def test_a_failed_proof_exits_with_6_as_in_python(wrong: Bundle) -> None:
    ours = subprocess.run([sys.executable, "-m", "edgefl", "verify", wrong.path], capture_output=True, text=True)
    done = verify(wrong.path)
    assert done.returncode == ours.returncode == 6
    assert "error: program 'predict', check 'golden': 'logits' differs from PyTorch by 0.500" in done.stderr
    assert "'predict'" in ours.stderr and "'logits'" in ours.stderr


def test_a_changed_file_is_refused(bundles: list[Bundle], tmp_path: Path) -> None:
    changed = tmp_path / "changed.bundle"
    shutil.copytree(bundles[0].path, changed)
    weights = bytearray((changed / "weights.safetensors").read_bytes())
    weights[-1] ^= 1
    (changed / "weights.safetensors").write_bytes(weights)
    done = verify(changed)
    assert done.returncode == 3
    assert done.stderr.startswith("error: weights.safetensors was changed: its SHA-256 is not the manifest's\nhint: ")


@pytest.mark.parametrize("path", ["/etc/passwd", "../secret", "a/../../b", "c:x", "a\\b", ""])
def test_a_path_out_of_the_bundle_is_refused(path: str, bundles: list[Bundle], tmp_path: Path) -> None:
    manifest = json.loads(bundles[0].manifest_bytes)
    manifest["weights"]["path"] = path
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    done = verify(tmp_path)
    assert done.returncode == 3 and "unsafe path" in done.stderr


def test_a_newer_bundle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"format": 3}')
    done = verify(tmp_path)
    assert done.returncode == 3 and "bundle format 3; expected 2" in done.stderr


def test_no_bundle_is_wrong_usage() -> None:
    assert verify().returncode == 2


def test_errors_are_measured_as_in_python() -> None:
    cases = [
        ([1.0, 2.0], [1.0, 2.5], None),
        ([1e-4], [0.0], None),  # against SMALL
        ([3.0, 4.0], [3.0, 4.5], [3.0, 4.25]),  # against how far it moved
        ([1000.0], [1000.001], [1000.001]),  # against a hundredth of the tensor
        ([1.0], [1.0, 1.0], None),
        ([float("nan")], [1.0], None),
        ([float("inf")], [float("nan")], None),
        ([1.0], [float("inf")], None),
        ([float("inf")], [float("-inf")], None),
        ([float("inf"), 1.0], [float("inf"), 2.0], None),  # the finite places
        ([float("nan"), 1.0, 2.0], [float("nan"), 1.0, 4.0], [0.0, float("inf"), 3.0]),
    ]
    arrays = [[None if c is None else np.array(c, np.float32) for c in case] for case in cases]
    ours = [relative_error(*case) for case in arrays]
    # NaN and infinity have no JSON, so values travel as their bits.
    bits = [[None if c is None else c.view(np.uint32).tolist() for c in case] for case in arrays]
    theirs = evaluate(
        f"""
        import {{ relativeError }} from "./golden.mjs";
        import {{ Values }} from "./tensors.mjs";
        const values = (bits) =>
          bits === null ? undefined
            : new Values("float32", [bits.length], new Float32Array(Uint32Array.from(bits).buffer));
        const errors = {json.dumps(bits)}.map((c) => relativeError(...c.map(values)));
        console.log(JSON.stringify(errors.map((e) => e === Infinity ? "inf" : e)));
        """
    )
    assert [float(error) for error in theirs] == pytest.approx(ours, rel=1e-12)


def test_every_half_precision_number_is_read_right() -> None:
    theirs = evaluate(
        """
        import { fromHalf } from "./tensors.mjs";
        const all = Array.from({ length: 65536 }, (_, bits) => fromHalf(bits));
        console.log(JSON.stringify(all.map((v) => Number.isFinite(v) ? v : String(v))));
        """
    )
    halves = np.arange(65536, dtype=np.uint16).view(np.float16).astype(np.float64)
    assert np.array_equal(np.array([float(v) for v in theirs]), halves, equal_nan=True)


# The walk over programs: the same as in Python


WALKED = json.loads((Path(__file__).parents[1] / "vectors" / "walk.json").read_text())


def test_programs_are_walked_as_in_python() -> None:
    """None is let pass or refused otherwise; what is said of it is the same."""
    entries = [entry for entry in (*WALKED["accepted"], *WALKED["refused"]) if entry["engine"] == PORTABLE]
    said = evaluate(
        f"""
        import {{ checkGraph }} from "./walk.mjs";
        const said = (file) => {{
          try {{
            checkGraph(new Uint8Array(Buffer.from(file, "base64")));
            return "";
          }} catch (error) {{
            return error.constructor.name === "BundleError" ? error.message : `bug: ${{error.stack}}`;
          }}
        }};
        console.log(JSON.stringify({json.dumps([entry["file"] for entry in entries])}.map(said)));
        """
    )
    for entry, theirs in zip(entries, said, strict=True):
        ours = ""
        try:
            check_graph(base64.b64decode(entry["file"]))
        except BundleError as error:
            ours = error.message
        assert theirs == ours, entry["name"]
        assert ("why" in entry) == bool(theirs) and entry.get("why", "") in theirs


def test_the_rules_of_the_walk_are_those_of_python() -> None:
    theirs = evaluate(
        """
        import * as walk from "./walk.mjs";
        const { TABLE, OPERATORS, TYPES, ATTRIBUTES, checkGraph, shown, ...bounds } = walk;
        const [operators, types, attributes] = [[...OPERATORS].sort(), [...TYPES], [...ATTRIBUTES]];
        console.log(JSON.stringify({ table: TABLE, operators, types, attributes, ...bounds }));
        """
    )
    assert theirs == WALKED["rules"]


def test_a_program_with_external_data_is_refused(bundles: list[Bundle], tmp_path: Path) -> None:
    evil = tmp_path / "evil.bundle"
    shutil.copytree(bundles[0].path, evil)
    [file] = [base64.b64decode(e["file"]) for e in WALKED["refused"] if e["name"] == "external data in an initializer"]
    manifest = json.loads((evil / "manifest.json").read_text())
    entry = manifest["programs"]["train"]["file"]
    (evil / entry["path"]).write_bytes(file)
    entry |= {"sha256": sha256_hex(file), "size_bytes": len(file)}
    (evil / "manifest.json").write_text(json.dumps(manifest))
    ours = subprocess.run([sys.executable, "-m", "edgefl", "verify", evil], capture_output=True, text=True)
    done = verify(evil)
    assert done.returncode == ours.returncode == 3
    assert "error: program 'train' ('programs/train.onnx') is refused: external data" in done.stderr
    assert done.stderr.splitlines()[0] == ours.stderr.splitlines()[0]


# Random numbers: the same as in Python


RANDOM = json.loads((Path(__file__).parents[1] / "vectors" / "random.json").read_text())


def test_orders_and_seeds_are_those_of_python() -> None:
    orders, seeds, made = evaluate(
        f"""
        import {{ keyOf, orderOf, seedOf, words }} from "./random_numbers.mjs";
        const {{ keys, orders, seeds }} = {json.dumps({name: RANDOM[name] for name in ("keys", "orders", "seeds")})};
        const all = (cases, work) => Promise.all(cases.map(work));
        console.log(JSON.stringify([
          await all(orders, (c) => orderOf(c.examples, c)),
          await all(seeds, async (c) => String(await seedOf(c.seed, c.device))),
          await all(keys, async (c) => Array.from(words(await keyOf(c.text), c.words.length), String)),
        ]));
        """
    )
    assert made == [case["words"] for case in RANDOM["keys"]]
    assert orders == [case["order"] for case in RANDOM["orders"]]
    assert seeds == [case["program"] for case in RANDOM["seeds"]]


def test_noise_is_pythons_to_the_last_place() -> None:
    noise = evaluate(
        f"""
        import {{ normals }} from "./random_numbers.mjs";
        const made = {json.dumps(RANDOM["noise"])}.map((c) => normals(c.seed, c.values.length));
        console.log(JSON.stringify((await Promise.all(made)).map((values) => [...new Int32Array(values.buffer)])));
        """
    )
    for case, theirs in zip(RANDOM["noise"], noise, strict=True):
        ours = np.array([int(bits, 16) for bits in case["values"]], np.uint32).view(np.int32).astype(np.int64)
        assert len(theirs) == len(ours)
        assert np.abs(ours - theirs).max(initial=0) <= 1, case["seed"]


def test_masks_are_those_of_programs() -> None:
    masks = evaluate(
        f"""
        import {{ keys, kept, uniform }} from "./random_numbers.mjs";
        const hex = (digits) => (word) => word.toString(16).padStart(digits, "0");
        console.log(JSON.stringify({json.dumps(RANDOM["masks"])}.map((c) => {{
          const call = [c.seed, c.step, c.site];
          const bits = (p) => kept(...call, c.uniform.length, Number(p)).map(Number).join("");
          return {{
            keys: keys(...call).map(hex(8)),
            uniform: Array.from(uniform(...call, c.uniform.length), hex(6)),
            kept: Object.fromEntries(Object.keys(c.kept).map((p) => [p, bits(p)])),
          }};
        }})));
        """
    )
    assert masks == [{name: case[name] for name in ("keys", "uniform", "kept")} for case in RANDOM["masks"]]


def verify(*arguments: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["node", "verify.mjs", *arguments], cwd=runtimes.WEB, capture_output=True, text=True)


def evaluate(script: str) -> Any:
    """What a script of devices/web prints, as JSON."""
    command = ["node", "--input-type=module", "--eval", script]
    return json.loads(subprocess.check_output(command, cwd=runtimes.WEB, text=True))
