"""The same bundles compute the same in other runtimes, versions and processors: their golden inputs, replayed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import runtimes
from runtimes import Missing, Runtime

from edgefl.bundle import Bundle

RUNTIMES: dict[str, Callable[[], Runtime]] = {
    "onnxruntime": runtimes.current,
    **{f"onnxruntime-{v}": partial(runtimes.onnxruntime_version, v) for v in runtimes.OLDER},
    "web": runtimes.web,
    "arm64": runtimes.arm64,
}


@pytest.fixture(params=RUNTIMES)
def runtime(request: pytest.FixtureRequest) -> Runtime:
    try:
        return RUNTIMES[request.param]()
    except Missing as reason:
        pytest.skip(str(reason))


def test_it_computes_what_pytorch_computed(runtime: Runtime, bundles: list[Bundle]) -> None:
    answers = runtime.replay([bundle.path for bundle in bundles])
    assert [answer.failed for answer in answers] == ["", ""]
    for bundle, answer in zip(bundles, answers, strict=True):
        assert set(answer.errors) == set(bundle.manifest.programs)
        assert answer.worst < 1e-4


def test_a_wrong_result_is_told(runtime: Runtime, wrong: Bundle) -> None:
    (answer,) = runtime.replay([wrong.path])
    assert not answer.errors
    assert "predict" in answer.failed and "logits" in answer.failed and "differs from PyTorch by 0.5" in answer.failed
