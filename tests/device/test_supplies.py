"""What a device fetches before it can work: each blob once, checked, and no longer than it is wanted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgefl import protocol
from edgefl.bundle import Bundle
from edgefl.errors import RemoteProtocolError
from edgefl.files import sha256_hex
from edgefl.protocol import BlobChunk, BlobRef, BlobRequest, ManifestRef, Outgoing
from edgefl_device.wire.actions import Prepare, Subscribe, Unfit, Unsubscribe
from edgefl_device.wire.supplies import Supplies

DATA = protocol.tensors_to_bytes({"w": np.array([1, 2], np.float32)})
REF = BlobRef(sha256_hex(DATA), len(DATA))
OTHER = BlobRef("f" * 64, 9)


@pytest.fixture
def supplies(tmp_path: Path) -> Supplies:
    return Supplies("toy", "pi-1", tmp_path / "bundles", engine="portable", log=lambda line: None)


def come(supplies: Supplies, data: bytes, ref: BlobRef | None = None) -> list[object]:
    """A blob in one chunk; `ref`: as whom it comes."""
    ref = ref or BlobRef(sha256_hex(data), len(data))
    return list(supplies.take(BlobChunk(ref.sha256, ref.size_bytes, 65024, 0), memoryview(data), 0.0))


def download(supplies: Supplies, bundle: Bundle) -> list[object]:
    supplies.want_bundle(ManifestRef(bundle.sha256, len(bundle.manifest_bytes)), 0.0)
    came = come(supplies, bundle.manifest_bytes)
    for file in bundle.manifest.files(engine="portable"):
        came = come(supplies, bundle.bytes_of(file))
    return came


def test_a_bundle_comes_in_its_parts_and_is_found_on_disk_by_the_next_process(
    supplies: Supplies, regression: Bundle, tmp_path: Path
) -> None:
    *_, ready = download(supplies, regression)
    assert isinstance(ready, Prepare) and ready.bundle.sha256 == regression.sha256
    again = Supplies("toy", "pi-1", tmp_path / "bundles", engine="portable", log=lambda line: None)
    [ready] = again.want_bundle(ManifestRef(regression.sha256, len(regression.manifest_bytes)), 0.0)
    assert isinstance(ready, Prepare)
    assert again.want_bundle(ManifestRef(regression.sha256, len(regression.manifest_bytes)), 0.0) == []


def test_a_manifest_that_is_none_makes_the_bundle_unfit(supplies: Supplies) -> None:
    supplies.want_bundle(ManifestRef(sha256_hex(b"{}"), 2), 0.0)
    unsubscribed, unfit = come(supplies, b"{}")
    assert isinstance(unsubscribed, Unsubscribe) and isinstance(unfit, Unfit)
    assert supplies.broken == unfit.error.message and supplies.bundle is None
    supplies.want_bundle(ManifestRef("a" * 64, 2), 0.0)
    assert supplies.broken == ""


def test_what_came_inside_is_checked_and_given_away_once(supplies: Supplies, regression: Bundle) -> None:
    supplies.turn_to(REF)
    with pytest.raises(RemoteProtocolError, match="announced tensors whose SHA-256 does not match"):
        supplies.give(REF, memoryview(DATA[:-1] + b"\x00"))
    assert supplies.tensors(regression, REF) is None
    supplies.give(REF, memoryview(DATA))
    tensors = supplies.tensors(regression, REF)
    assert tensors is not None and tensors["w"].tolist() == [1, 2]
    assert supplies.tensors(regression, REF) is None


def test_the_weights_of_the_bundle_need_no_fetching(supplies: Supplies, regression: Bundle) -> None:
    weights = regression.manifest.weights
    tensors = supplies.tensors(regression, BlobRef(weights.sha256, weights.size_bytes))
    assert tensors is not None and sorted(tensors) == ["count", "moment", "w"]


def test_a_blob_is_asked_for_once_and_until_something_else_is_announced(supplies: Supplies, regression: Bundle) -> None:
    download(supplies, regression)
    assert supplies.turn_to(REF) == []
    subscribe, request = supplies.fetch(REF, 0.0)
    assert subscribe == Subscribe(protocol.blob_topic("toy", REF.sha256))
    assert isinstance(request, Outgoing) and request.topic == protocol.up_topic("toy", "pi-1")
    assert protocol.decode(request.payload)[0] == BlobRequest(REF.sha256, [])
    assert supplies.fetch(REF, 0.0) == [] and supplies.turn_to(REF) == []
    assert supplies.turn_to(OTHER) == [Unsubscribe(protocol.blob_topic("toy", REF.sha256))]
    assert come(supplies, DATA) == [] and supplies.tensors(regression, REF) is None
    assert supplies.due(1000.0) == []


def test_a_blob_of_another_content_is_missing_again(supplies: Supplies, regression: Bundle) -> None:
    supplies.turn_to(REF)
    supplies.fetch(REF, 0.0)
    with pytest.raises(RemoteProtocolError, match="whose SHA-256 does not match"):
        come(supplies, DATA[:-1] + b"\x00", REF)
    assert come(supplies, DATA) == [Unsubscribe(protocol.blob_topic("toy", REF.sha256))]
    assert supplies.tensors(regression, REF) is not None
