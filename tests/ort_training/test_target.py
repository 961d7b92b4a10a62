"""Files for onnxruntime-training: what an application and our engine compute with them, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from hard_net import hard_net
from torch import nn

from edgefl import bundle as bundles
from edgefl.bundle import Bundle
from edgefl.errors import InputError, LoweringError
from edgefl.tensors import load_tensors
from edgefl.training_artifacts import ENGINE, FILES

InTraining = Callable[..., str]


def test_the_bundle_holds_the_four_files_and_their_proof(hard_bundle: Bundle) -> None:
    target = hard_bundle.manifest.target(ENGINE)
    assert [file.path for file in target.files] == [f"{ENGINE}/{name}" for name in FILES]
    assert target.parity.keys() == {"train", "evaluate", "predict"}
    for name, parity in target.parity.items():
        assert parity.runtime == "onnxruntime-training 1.19.2"
        # The same checks as the portable program's, to the same tolerance.
        assert parity.checks.keys() == hard_bundle.manifest.program(name).parity.checks.keys()
        assert parity.worst <= parity.tolerance == 1e-4


def test_a_device_downloads_only_what_its_engine_needs(hard_bundle: Bundle, adam_bundle: Bundle) -> None:
    files = {engine: {f.path for f in hard_bundle.manifest.files(engine=engine)} for engine in ("portable", ENGINE)}
    assert files["portable"] == {"weights.safetensors"} | {
        f"programs/{name}.onnx" for name in ("train", "evaluate", "predict")
    }
    assert files[ENGINE] == {"weights.safetensors"} | {f"{ENGINE}/{name}" for name in FILES}
    everything = {f.path for f in adam_bundle.manifest.files(engine=ENGINE)}
    assert everything == files[ENGINE] | {"programs/anchor.onnx"}  # which these files do not have


def test_an_application_trains_with_three_calls_as_torch_does(
    hard_bundle: Bundle, in_training: InTraining, tmp_path: Path
) -> None:
    """Momentum, weight decay and BatchNorm's statistics too, and it can write out a model to predict with."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(6, 8, 1, 8, 8, generator=generator)
    y = torch.randint(0, 10, (6, 8), generator=generator)
    np.savez(tmp_path / "batches.npz", x=x.numpy(), y=y.numpy())
    made = tmp_path / "out.npz", tmp_path / "model.onnx"
    in_training("app.py", hard_bundle.path / ENGINE, tmp_path / "batches.npz", 0.02, *made)

    net = hard_net().train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9, weight_decay=1e-3)
    for batch, labels in zip(x, y, strict=True):
        optimizer.zero_grad()
        F.cross_entropy(net(batch), labels).backward()
        optimizer.step()
    with np.load(made[0]) as reached:
        for name, want in net.state_dict().items():
            np.testing.assert_allclose(reached[name], want.numpy(), rtol=0, atol=1e-5, err_msg=name)
        assert reached["1.num_batches_tracked"] == 6
    session = onnxruntime.InferenceSession(made[1], providers=["CPUExecutionProvider"])
    with torch.no_grad():
        want = net.eval()(x[0]).numpy()
    fed = {i.name: {"x": x[0].numpy(), "y": y[0].numpy()}[i.name] for i in session.get_inputs()}
    np.testing.assert_allclose(session.run(["logits"], fed)[0], want, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["hard_bundle", "adam_bundle"])
def test_the_engine_carries_out_tasks_as_the_portable_one_does(
    name: str, in_training: InTraining, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Dropout drops the same; `anchor` of the second bundle runs as the portable program, on the same state."""
    bundle: Bundle = request.getfixturevalue(name)
    rng = np.random.default_rng(7)
    np.savez(tmp_path / "data.npz", x=rng.normal(size=(50, 1, 8, 8)).astype("f4"), y=rng.integers(0, 10, 50))
    told, reached = {}, {}
    for engine in ("portable", ENGINE):
        arguments = [engine, bundle.path, tmp_path / "data.npz", tmp_path / engine]
        if engine == ENGINE:
            out = in_training("carry_out.py", *arguments)
        else:
            script = Path(__file__).parent / "carry_out.py"
            out = subprocess.run(
                [sys.executable, script, *arguments], capture_output=True, text=True, check=True
            ).stdout
        told[engine] = json.loads(out)
        reached[engine] = load_tensors((tmp_path / engine).read_bytes(), engine)
    assert told[ENGINE] == pytest.approx(told["portable"], abs=1e-4)
    assert told[ENGINE]["train.examples"] == 50
    assert reached[ENGINE].keys() == reached["portable"].keys()
    for tensor, want in reached["portable"].items():
        got = reached[ENGINE][tensor]
        assert got.dtype == want.dtype
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-4, err_msg=tensor)
    if name == "hard_bundle":
        assert reached[ENGINE]["state.1.num_batches_tracked"] == 6
    else:
        initial = bundle.weights()
        assert reached[ENGINE]["state.optimizer.step"] == 3  # of six batches, two per step
        assert np.abs(reached[ENGINE]["state.1.weight"] - initial["1.weight"]).max() > 0.01
        for tensor in ("1.weight", "3.bias"):
            np.testing.assert_array_equal(reached[ENGINE][f"state.anchor.{tensor}"], reached[ENGINE][f"state.{tensor}"])


def test_verify_repeats_the_proof_there_and_says_where_it_cannot(hard_bundle: Bundle, training_python: Path) -> None:
    here, there = (verify(python, hard_bundle.path) for python in (sys.executable, training_python))
    assert here.returncode == there.returncode == 0
    assert f"{ENGINE}: its files are whole; this environment cannot run them" in here.stdout
    for program in ("train", "evaluate", "predict"):
        assert f"{ENGINE}, {program}: " in there.stdout


def test_wrong_files_fail_the_proof(hard_bundle: Bundle, training_python: Path, tmp_path: Path) -> None:
    """Gradients half as large, in a bundle whose hashes are right: exit code 6."""
    manifest = hard_bundle.manifest
    contents = {Path(f.path).name: hard_bundle.bytes_of(f) for f in manifest.target(ENGINE).files}
    model = onnx.load_from_string(contents["training_model.onnx"])
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(0.5, "f4"), "half"))
    nodes = list(model.graph.node)
    for i in reversed(range(len(nodes))):
        if nodes[i].op_type == "InPlaceAccumulatorV2" and nodes[i].input[2] == "lazy_reset_grad":
            gradient = nodes[i].input[1]
            model.graph.node[i].input[1] = f"half.{i}"
            model.graph.node.insert(i, onnx.helper.make_node("Mul", [gradient, "half"], [f"half.{i}"]))
    contents["training_model.onnx"] = model.SerializeToString()
    wrong = bundles.write(
        tmp_path / "wrong.bundle",
        manifest,
        weights=hard_bundle.weights(),
        programs={name: hard_bundle.bytes_of(p.file) for name, p in manifest.programs.items()},
        golden={name: hard_bundle.golden(name) for name in manifest.programs},
        targets={ENGINE: contents},
    )
    done = verify(training_python, wrong.path)
    assert done.returncode == 6
    assert "program 'train', check 'golden'" in done.stderr


class ReadElsewhere(nn.Module):
    """Reads a buffer after it was replaced, and its old value too."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.register_buffer("middle", torch.zeros(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shifted = self.linear(x - self.middle)
        if self.training:
            self.middle.copy_(x.detach().mean(0))
        return shifted


def test_what_cannot_be_is_refused_by_name(training_python: Path, tmp_path: Path) -> None:
    from edgefl_exporter import export

    def refused(error: type[InputError], model: nn.Module, **options: object) -> InputError:
        with pytest.raises(error) as caught:
            export(model, torch.zeros(1, 4), out=tmp_path / "b", name="b", target=ENGINE, **options)
        assert not (tmp_path / "b").exists()
        return caught.value

    linear = nn.Linear(4, 3)
    missing = refused(InputError, linear)
    assert "the target onnxruntime-training needs an environment of its own" in missing.message
    assert missing.hint is not None and "pip install onnxruntime-training-cpu==1.19.2" in missing.hint
    plain = refused(InputError, linear, training_python=Path(sys.executable))
    assert plain.message.endswith("here is not the training build") and plain.hint == missing.hint
    absent = refused(InputError, linear, training_python=tmp_path / "python")
    assert absent.message == f"{tmp_path / 'python'} cannot be used: No such file or directory"
    portable = "leave out --target: the portable programs run on every current onnxruntime"
    few = refused(LoweringError, linear, training_python=training_python, programs=("train",))
    assert (few.message, few.hint) == ("the target onnxruntime-training needs the program 'evaluate'", portable)
    apart = refused(LoweringError, ReadElsewhere(), training_python=training_python)
    assert "state tensor 'middle' apart from changing it" in apart.message and apart.hint == portable


def verify(python: Path | str, path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([python, "-m", "edgefl", "verify", path], capture_output=True, text=True)
