"""A bundle on its way to a device's disk: what is there, what is still missing."""

from __future__ import annotations

from pathlib import Path

from edgefl import bundle as bundles
from edgefl.bundle import Bundle
from edgefl.errors import BundleError
from edgefl.files import sha256_hex, write_atomic
from edgefl.manifest import MANIFEST, File, parse_manifest
from edgefl.protocol import BlobRef


class Download:
    """One bundle, named by its manifest's SHA-256. The manifest comes first, names the other files, and is written
    last: a directory that holds one is whole. Only what the device's engine needs is downloaded."""

    def __init__(self, manifest: BlobRef, folder: Path, engine: str) -> None:
        """`folder` holds a directory per bundle."""
        self.manifest = manifest
        self._engine = engine
        self._directory = folder / manifest.sha256[:16]
        self._manifest_bytes: bytes | None = None

    def stored(self) -> Bundle | None:
        """The bundle, when it is whole. Raises BundleError when it is damaged, or another one."""
        if not (self._directory / MANIFEST).exists():
            return None
        bundle = bundles.read(self._directory, engine=self._engine)
        if bundle.sha256 != self.manifest.sha256:
            raise BundleError(f"{self._directory} holds another bundle")
        return bundle

    def take(self, sha256: str, data: bytes) -> list[BlobRef]:
        """Keep one blob, verified already; what is still missing.

        Raises BundleError for an unusable manifest, and for a file that cannot be stored.
        """
        if sha256 == self.manifest.sha256:
            self._manifest_bytes = data
        if self._manifest_bytes is None:
            return [self.manifest]
        missing: list[BlobRef] = []
        manifest = parse_manifest(self._manifest_bytes, where="the run's bundle")
        try:
            for file in manifest.files(engine=self._engine):
                path = self._directory / file.path
                if file.sha256 == sha256:
                    write_atomic(path, data)
                elif not _is_there(path, file):
                    missing.append(BlobRef(file.sha256, file.size_bytes))
            if not missing:
                write_atomic(self._directory / MANIFEST, self._manifest_bytes)
        except OSError as error:
            raise BundleError(
                f"bundle {manifest.name!r} cannot be stored in {self._directory}: {error.strerror or error}",
                hint="does the device's disk have room? Delete the folder if it is damaged",
            ) from error
        return missing


def _is_there(path: Path, file: File) -> bool:
    """Whether `path` holds the file; one of another size is not read."""
    if not path.is_file() or path.stat().st_size != file.size_bytes:
        return False
    return sha256_hex(path.read_bytes()) == file.sha256
