"""Replays the golden inputs of bundles in the onnxruntime of the Python that runs this: one JSON object per line.

Runs in environments that have little more than onnxruntime, and on other processors; `runtimes.py` starts it.
"""

from __future__ import annotations

import argparse
import json

from edgefl.bundle import read
from edgefl.errors import EdgeflError
from edgefl.manifest import PORTABLE
from edgefl.replay import replay


def main() -> None:
    """As `edgefl verify --format json` for each bundle; a failed proof is a line too, with the reason."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--engine", default=PORTABLE)
    parser.add_argument("bundles", nargs="*")
    given = parser.parse_args()
    for path in given.bundles:
        try:
            result = {"bundle": path, "proven": True, "errors": replay(read(path), given.engine)}
        except EdgeflError as error:
            result = {"bundle": path, "proven": False, "error": error.message}
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
