"""about.json: written at the first start of a run, and never in the way of anything."""

from __future__ import annotations

import platform
import time
from pathlib import Path

import numpy as np
import pytest

import edgefl
from edgefl.runs.about import ABOUT, read_about
from edgefl.runs.directory import run_directory
from edgefl.runs.sections import RunFile


def test_a_run_says_when_it_began_with_what_and_where(tmp_path: Path) -> None:
    before_s = time.time()
    with run_directory(RunFile(name="a", runs=str(tmp_path)), resume=False, progress=print) as (_, place):
        about = read_about(place)
    assert about is not None
    assert before_s - 0.001 <= about.started <= time.time()
    assert about.versions["edgefl"] == edgefl.__version__ and about.versions["numpy"] == np.__version__
    assert about.versions["python"] == platform.python_version()
    assert about.cores >= 1 and about.processor


def test_a_resume_keeps_what_the_first_start_said(tmp_path: Path) -> None:
    config = RunFile(name="a", runs=str(tmp_path))
    with run_directory(config, resume=False, progress=print) as (_, place):
        (place / "run.json").write_text("{}")
        (place / "run.toml").write_text('name = "a"\nmodel = "zoo:digits"\n')
        (place / ABOUT).write_text((place / ABOUT).read_text().replace('"started":', '"started":1e-3, "then":'))
    with run_directory(config, resume=True, progress=print) as (_, place):
        about = read_about(place)
    assert about is not None and about.started == 0.001


@pytest.mark.parametrize("text", ["", "{}", "[" * 100_000, '{"started": "now"}', "\ufeff\0", "1" * 100_000])
def test_what_cannot_be_read_is_as_nothing(text: str, tmp_path: Path) -> None:
    (tmp_path / ABOUT).write_text(text)
    assert read_about(tmp_path) is None
    assert read_about(tmp_path / "elsewhere") is None
