"""What a run asks of its method: a method that says nothing is answered for, one that answers is heard."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pytest

from edgefl.aggregator.classes import DeviceClass
from edgefl.bundle import Bundle
from edgefl.errors import ConfigError
from edgefl.manifest import Manifest
from edgefl.method import Ask, Model, Sheet, State
from edgefl.methods import METHODS
from edgefl.methods.fedavg import FedAvg
from edgefl.methods.scaffold import Scaffold
from edgefl.runs import questions
from edgefl.runs.evaluation import evaluator_of
from edgefl.runs.sections import EvaluateSection, RunFile
from edgefl.tensors import Tensors


class Talkative(FedAvg, frozen=True):
    """Answers every question."""

    bundle: Any = None
    length: ClassVar[str] = "epochs"

    @property
    def devices(self) -> int:
        return 3

    def check(self, manifests: list[Manifest], fraction: float) -> None:
        if fraction < 1:
            raise ConfigError(f"not {fraction} of {manifests[0].name}")

    def rehearse(self) -> tuple[Ask, ...]:
        first = self.ask(self.start())
        assert first is not None
        return (first, first)

    def models(self, tensors: Tensors) -> list[Model]:
        return [Model("doubled", self.bundle, {"w": 2 * tensors["w"]})]

    def pictures(self, state: State) -> dict[str, Sheet]:
        return {"round-1": Sheet(np.zeros((1, 1, 2, 2), np.uint8))}

    def warning(self, measured: dict[str, dict[str, float]]) -> str | None:
        return f"{len(measured)} devices"


def test_a_silent_method_is_answered_for(regression: Bundle) -> None:
    method = FedAvg(initial=regression.shared_weights(), rounds=1)
    one = DeviceClass("all", regression)
    assert questions.length_of(FedAvg) == "rounds"
    assert all(questions.length_of(kind) in kind.__struct_fields__ for kind in METHODS.values())
    assert questions.most_devices(method) is None
    questions.check(method, [regression.manifest], 0.1)
    assert questions.rehearsal(method) == (method.ask(method.start()),)
    (model,) = questions.models_of(method, [one], {"w": np.float32([1, 2])})
    assert (model.name, model.bundle) == ("all", regression) and model.state["w"].tolist() == [1, 2]
    assert questions.pictures_of(method, method.start()) == {}
    assert questions.warning_of(method, {"pi-1": {}}) is None


def test_a_method_that_answers_is_heard(regression: Bundle) -> None:
    method = Talkative(initial=regression.shared_weights(), bundle=regression)
    assert questions.length_of(Talkative) == "epochs"
    assert questions.most_devices(method) == 3
    with pytest.raises(ConfigError, match="not 0.5 of regression"):
        questions.check(method, [regression.manifest], 0.5)
    assert len(questions.rehearsal(method)) == 2
    (model,) = questions.models_of(method, [], {"w": np.float32([1, 2])})
    assert model.name == "doubled" and model.state["w"].tolist() == [2, 4]
    assert list(questions.pictures_of(method, method.start())) == ["round-1"]
    assert questions.warning_of(method, {"pi-1": {}}) == "1 devices"


def test_what_devices_keep_for_themselves_is_no_model_of_the_aggregator(regression: Bundle) -> None:
    """A method that shares nothing of what devices train leaves the whole model with them."""
    assert questions.personal_of(FedAvg(initial={}, share=()), DeviceClass("all", regression)) == ["w"]
    assert questions.models_of(FedAvg(initial={}, share=()), [DeviceClass("all", regression)], {}) == []


def test_the_models_that_a_method_names_are_what_is_evaluated(regression: Bundle, tmp_path: Any) -> None:
    """y = 2 x_1 + 4 x_2 is what w = (1, 2) gives where the method's model is twice that."""
    x = np.float32([[1, 0], [0, 1]])
    np.savez(tmp_path / "data.npz", x=x, y=np.float32([2, 4]))
    config = RunFile(name="r", bundle="r", evaluate=EvaluateSection(data=str(tmp_path / "data.npz")))
    one = DeviceClass("all", regression)
    tensors = {"w": np.float32([1, 2])}
    silent = FedAvg(initial=regression.shared_weights())
    twice = Talkative(initial=regression.shared_weights(), bundle=regression)
    for method, loss in ((silent, 2.5), (twice, 0.0)):
        evaluate = evaluator_of(config, [one], method)
        assert evaluate is not None and evaluate(tensors)["evaluate.loss"] == loss


def test_scaffold_says_how_many_devices_there_are(regression: Bundle) -> None:
    assert questions.most_devices(Scaffold(initial=regression.shared_weights(), devices=7)) == 7
