"""An edgefl command of which we know what a power cut would leave: `python unsynced.py SHADOW COMMAND ARGUMENT...`.

A disk keeps what was synced, and nothing else need be there: a file's content as of its last fsync, a directory's names
as of the directory's. Both are copied into the folder SHADOW when they are synced, by inode, as a disk has them.
`after_power_cut` makes of a folder what SHADOW has of it. That is the worst that POSIX allows, and no file system is
quite so bad.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import sys
from pathlib import Path

HELD = "held"  # hard links: an inode that we know is not given to another file


class Shadow:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        (folder / HELD).mkdir(parents=True, exist_ok=True)

    def fsync(self, descriptor: int) -> None:
        """Instead of os.fsync: what a power cut leaves of it is this, from now on."""
        about = os.fstat(descriptor)
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if stat.S_ISDIR(about.st_mode):
            names = {entry.name: (entry.inode(), entry.is_dir()) for entry in os.scandir(path)}
            self._keep(about.st_ino, json.dumps(names).encode())
            return
        held = self._folder / HELD / str(about.st_ino)
        if not held.exists():
            os.link(path, held)
        self._keep(about.st_ino, path.read_bytes())

    def _keep(self, inode: int, content: bytes) -> None:
        """Whole or not at all: a kill may come in between."""
        new = self._folder / f"{inode}.{os.getpid()}"
        new.write_bytes(content)
        new.rename(self._folder / str(inode))

    def _kept(self, inode: int) -> bytes | None:
        path = self._folder / str(inode)
        return path.read_bytes() if path.exists() else None

    def after_power_cut(self, folder: Path) -> None:
        """Leave in `folder`, which is there itself, only what was synced."""
        new = folder.with_name(f"{folder.name}.new")
        self._restore(folder.stat().st_ino, new)
        shutil.rmtree(folder)
        new.rename(folder)
        for place, _, files in os.walk(folder, topdown=False):  # what is there now is on the disk, as it is
            for path in [*(Path(place, name) for name in files), Path(place)]:
                descriptor = os.open(path, os.O_RDONLY)
                self.fsync(descriptor)
                os.close(descriptor)

    def _restore(self, inode: int, new: Path) -> None:
        new.mkdir()
        for name, (inside, is_folder) in json.loads(self._kept(inode) or b"{}").items():
            if is_folder:
                self._restore(inside, new / name)
            else:
                (new / name).write_bytes(self._kept(inside) or b"")


if __name__ == "__main__":
    os.fsync = Shadow(Path(sys.argv.pop(1))).fsync  # type: ignore[assignment]
    from edgefl.cli import main

    main(prog_name="edgefl")
