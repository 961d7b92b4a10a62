"""The same bundles compute the same in other runtimes, versions and processors: their golden inputs, replayed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from runtimes import RUNTIMES, Answer, Missing, Runtime

from edgefl.bundle import Bundle
from edgefl.training_artifacts import ENGINE


# onnxruntime-training runs other files: tests/ort_training.
@pytest.fixture(params=[name for name in RUNTIMES if name != ENGINE], ids=lambda name: name.replace(" ", "-"))
def runtime(request: pytest.FixtureRequest) -> Runtime:
    try:
        return RUNTIMES[request.param]()
    except Missing as reason:
        pytest.skip(str(reason))


def test_it_computes_what_pytorch_computed(runtime: Runtime, bundles: list[Bundle]) -> None:
    answers = runtime.replay([bundle.path for bundle in bundles])
    assert [answer.failed for answer in answers] == [""] * len(bundles)
    for bundle, answer in zip(bundles, answers, strict=True):
        assert set(answer.errors) == set(bundle.manifest.programs)
        assert answer.worst < 1e-4


def test_a_wrong_result_is_told(runtime: Runtime, wrong: Bundle) -> None:
    (answer,) = runtime.replay([wrong.path])
    assert not answer.errors
    assert "predict" in answer.failed and "logits" in answer.failed and "differs from PyTorch by 0.5" in answer.failed


def test_a_bundle_that_kills_the_runtime_has_that_as_its_answer() -> None:
    script = """if True:
        import sys, json
        for path in sys.argv[1:]:
            if "deadly" in path:
                sys.exit("out of memory")
            print(json.dumps({"bundle": path, "proven": True, "errors": {"train": 1e-6}}), flush=True)
    """
    fragile = Runtime("fragile", (sys.executable, "-c", script))
    answers = fragile.replay([Path(name) for name in ("a", "deadly", "b", "deadly")])
    fine, dead = Answer({"train": 1e-6}), Answer({}, "exit code 1: out of memory")
    assert answers == [fine, dead, fine, dead]
