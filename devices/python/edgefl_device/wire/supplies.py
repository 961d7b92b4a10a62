"""What a device needs before it can work and fetches where it lacks it: its bundle, and what is announced."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from edgefl import protocol
from edgefl.bundle import Bundle
from edgefl.errors import BundleError, RemoteProtocolError
from edgefl.files import sha256_hex
from edgefl.protocol import BlobChunk, BlobRef, BlobRequest, Outgoing
from edgefl.tensors import Array
from edgefl_device.wire.actions import Action, Prepare, Subscribe, Unfit, Unsubscribe
from edgefl_device.wire.download import Download
from edgefl_device.wire.fetch import Fetches


class Supplies:
    """The bundle that was assigned, the tensors that are announced, and the blobs under way.

    `bundle`: where it is here and whole. `broken`: why it cannot be used, "" where it can.
    """

    def __init__(self, run: str, device: str, folder: Path, *, engine: str, log: Callable[[str], None]) -> None:
        """`folder` holds a directory per bundle."""
        self.bundle: Bundle | None = None
        self.broken = ""
        self._run = run
        self._up_topic = protocol.up_topic(run, device)
        self._folder = folder
        self._engine = engine
        self._log = log
        self._download: Download | None = None
        self._announced: BlobRef | None = None
        self._tensors: tuple[str, bytes] | None = None  # SHA-256, safetensors
        self._fetches = Fetches()

    # --- the bundle -------------------------------------------------------------------------------------------

    def want_bundle(self, manifest: BlobRef, now_s: float) -> list[Action]:
        """Use this bundle from now on; nothing where it is the one that is wanted already."""
        if self._download is not None and self._download.manifest.sha256 == manifest.sha256:
            return []
        self.bundle, self.broken = None, ""
        self._download = Download(manifest, self._folder, self._engine)
        try:
            stored = self._download.stored()
        except BundleError as error:
            self._log(f"downloading the bundle again: {error.message}")
            stored = None
        return self.fetch(manifest, now_s) if stored is None else self._use(stored)

    def _use(self, bundle: Bundle) -> list[Action]:
        self.bundle = bundle
        return [Prepare(bundle)]

    def _take_part(self, download: Download, sha256: str, data: bytes, now_s: float) -> list[Action]:
        try:
            missing = download.take(sha256, data)
            stored = None if missing else download.stored()
        except BundleError as error:
            self.broken = error.message
            return [Unfit(error)]
        if stored is not None:
            return self._use(stored)
        return [action for ref in missing for action in self.fetch(ref, now_s)]

    # --- what is announced ------------------------------------------------------------------------------------

    def turn_to(self, tensors: BlobRef) -> list[Action]:
        """These are announced now; what was announced before is wanted no more."""
        before, self._announced = self._announced, tensors
        # Without a bundle the blob may be a part of it.
        if before is None or before == tensors or self.bundle is None or not self._fetches.drop(before.sha256):
            return []
        return [Unsubscribe(protocol.blob_topic(self._run, before.sha256))]

    def give(self, tensors: BlobRef, body: memoryview) -> None:
        """What is announced came with its announcement. Raises RemoteProtocolError when it is something else."""
        data = bytes(body)
        if sha256_hex(data) != tensors.sha256:
            raise RemoteProtocolError("announced tensors whose SHA-256 does not match")
        self._tensors = (tensors.sha256, data)

    def tensors(self, bundle: Bundle, ref: BlobRef) -> dict[str, Array] | None:
        """What is announced, given away: a board should not hold it twice. None where it has to be fetched.

        Raises RemoteProtocolError when it is no safetensors.
        """
        if bundle.manifest.weights.sha256 == ref.sha256:
            self._tensors = (ref.sha256, bundle.bytes_of(bundle.manifest.weights))
        if self._tensors is None or self._tensors[0] != ref.sha256:
            return None
        tensors = protocol.bytes_to_tensors(self._tensors[1], "the announced tensors")
        self._tensors = None
        return tensors

    # --- blobs ------------------------------------------------------------------------------------------------

    def fetch(self, ref: BlobRef, now_s: float) -> list[Action]:
        """Want a blob, and ask for it at once; nothing where it is under way."""
        if ref.sha256 in self._fetches:
            return []
        self._fetches.add(ref.sha256, ref.size_bytes, now_s)
        return [Subscribe(protocol.blob_topic(self._run, ref.sha256)), *self.due(now_s)]

    def take(self, chunk: BlobChunk, body: memoryview, now_s: float) -> list[Action]:
        """Take one chunk; nothing to do unless a blob is whole with it. Raises RemoteProtocolError for a chunk that
        does not fit."""
        data = self._fetches.take(chunk, body, now_s)
        if data is None:
            return []
        actions: list[Action] = [Unsubscribe(protocol.blob_topic(self._run, chunk.sha256))]
        # One blob can be both: the first round announces what the bundle calls its weights.
        if self._announced is not None and chunk.sha256 == self._announced.sha256:
            self._tensors = (chunk.sha256, data)
        if self.bundle is None and self._download is not None:
            actions += self._take_part(self._download, chunk.sha256, data, now_s)
        return actions

    def due(self, now_s: float) -> list[Outgoing]:
        """Requests to be said (again) now."""
        requests = (BlobRequest(sha256, missing) for sha256, missing in self._fetches.due(now_s))
        return [Outgoing(self._up_topic, protocol.encode(request)) for request in requests]

    def progress(self) -> tuple[int, int]:
        """Bytes that have come, and bytes that are wanted."""
        return self._fetches.progress()

    def repeat_now(self, now_s: float) -> None:
        """After a reconnect: ask for everything that is missing."""
        self._fetches.repeat_now(now_s)

    def times(self) -> list[float]:
        """When `due` has something to say."""
        return self._fetches.times()
