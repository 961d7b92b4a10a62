"""Device classes: conditions, who gets which bundle, and bundles that disagree."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from toy import write_regression

from edgefl.aggregator.classes import (
    DeviceClass,
    check_classes,
    class_of,
    in_state,
    initial,
    parse_condition,
    stated,
)
from edgefl.bundle import Bundle
from edgefl.errors import ConfigError
from edgefl.method import Model
from edgefl.protocol import Presence
from edgefl.runs.outcome import whole

PI = Presence("pi-1", 1, "up", cores=4, memory_mb=2000, runtime="onnxruntime 1.31.1", engine="portable")


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("memory_mb >= 2000", True),
        ("memory_mb > 2000", False),
        ("memory_mb<=2000 and cores==4", True),
        ("memory_mb >= 2000 and cores < 4", False),
        ("cores != 4", False),
        ("train_examples == 0", True),
        ("engine == portable", True),
        ("engine == 'onnxruntime-training'", False),
        ('runtime != "onnxruntime 1.20.0"', True),
    ],
)
def test_a_condition_on_what_a_device_states(text: str, holds: bool) -> None:
    assert parse_condition(text).holds(PI) is holds


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "''"),
        ("memory >= 2", "'memory >= 2'"),
        ("memory_mb => 2", "'memory_mb => 2'"),
        ("memory_mb >= two", "'memory_mb >= two'"),
        ("memory_mb >= -1", "'memory_mb >= -1'"),
        ("engine >= portable", "'engine >= portable'"),
        ("cores >= 2 and", "''"),
        ("cores >= 2 or cores == 1", "'cores >= 2 or cores == 1'"),
    ],
)
def test_what_is_no_condition_is_refused_with_an_example(text: str, part: str) -> None:
    with pytest.raises(ConfigError, match="cannot read") as error:
        parse_condition(text)
    assert error.value.message == f'for = "{text}": cannot read {part}'
    assert "memory_mb >= 2000 and cores >= 4" in (error.value.hint or "")


MakeClass = Callable[..., DeviceClass]


@pytest.fixture
def make_class(tmp_path: Path) -> MakeClass:
    def make(name: str, width: int = 2, group: str = "", **options: object) -> DeviceClass:
        return DeviceClass(name, write_regression(tmp_path / name, width, name=name, group=group), **options)  # type: ignore[arg-type]

    return make


def test_the_first_class_that_suits_a_device_is_its(make_class: MakeClass) -> None:
    large = make_class("large", condition=parse_condition("memory_mb >= 4000"))
    named = make_class("named", devices=("pi-?", "phone-*"))
    both = make_class("both", condition=parse_condition("cores >= 4"), devices=("board",))
    rest = make_class("rest")
    classes = [large, named, both, rest]

    def given(device: str, memory_mb: int, cores: int = 4) -> DeviceClass | None:
        return class_of(Presence(device, 1, "up", memory_mb=memory_mb, cores=cores), classes)

    assert given("pi-1", 4000) is large
    assert given("pi-1", 3999) is named
    assert given("board", 100) is both
    assert given("board", 100, cores=1) is rest
    assert class_of(PI, [large]) is None
    assert stated(PI).startswith("memory_mb 2000, cores 4, train_examples 0") and "engine portable" in stated(PI)


def test_bundles_that_disagree_about_what_they_share_are_refused(make_class: MakeClass) -> None:
    check_classes([make_class("a"), make_class("b"), make_class("c", 3, group="another")])
    with pytest.raises(ConfigError) as error:
        check_classes([make_class("two"), make_class("three", 3)])
    assert error.value.message == (
        "device class 'three': shared tensor 'w' is float32 [3]; expected float32 [2], as in device class 'two'"
    )
    with pytest.raises(ConfigError, match="device class 'd' sets 'max_steps', but no program of its bundle") as unknown:
        check_classes([make_class("d", settings={"max_steps": 4})])
    assert unknown.value.hint == "there is: learning_rate, momentum"


def test_a_run_begins_with_the_first_bundles_values_and_a_model_is_made_of_the_fused(make_class: MakeClass) -> None:
    classes = [make_class("a"), make_class("b", group="head"), make_class("c", group="head")]
    assert sorted(initial(classes)) == ["head", "w"]
    fused = {"w": np.array([1, 2], np.float32), "head": np.array([3, 4], np.float32), "m.w": np.zeros(2, np.float32)}
    assert [in_state(one.bundle.manifest, fused)["w"].tolist() for one in classes] == [[1, 2], [3, 4], [3, 4]]
    bundle: Bundle = classes[1].bundle
    all_of = whole(Model("all", bundle, in_state(bundle.manifest, fused)))
    assert all_of["w"].tolist() == [3, 4] and sorted(all_of) == ["count", "moment", "w"]
    assert whole(Model("all", bundle, {}))["w"].tolist() == [0, 0]


def test_bundles_of_a_run_call_the_same_classes_by_the_same_names(make_class: MakeClass) -> None:
    def named(name: str, *names: str) -> DeviceClass:
        one = make_class(name)
        data = msgspec.structs.replace(one.bundle.manifest.data, classes=2, class_names=names)
        manifest = msgspec.structs.replace(one.bundle.manifest, data=data)
        return DeviceClass(name, Bundle(one.bundle.path, manifest, b""))

    check_classes([make_class("numbers"), named("a", "cat", "dog"), named("b", "cat", "dog")])
    with pytest.raises(ConfigError, match="device classes 'c' and 'd' do not call the same classes by the same names"):
        check_classes([named("c", "cat", "dog"), named("d", "dog", "cat")])
