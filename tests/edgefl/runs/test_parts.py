"""Dealt out, a data set keeps what it calls its classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgefl.data_contract import DataContract, Feature
from edgefl.runs.parts import write_parts
from edgefl_device.data import fit_to_contract
from edgefl_device.sources import read_splits

ANIMALS = "0,1,owl\n0,2,cat\n0,3,dog\n0,4,owl\n0,5,cat\n0,6,dog\n"


def test_words_become_numbers_with_their_names_beside(tmp_path: Path) -> None:
    (tmp_path / "animals.csv").write_text(ANIMALS)
    dealt = write_parts(str(tmp_path / "animals.csv"), tmp_path, ["a", "b"], "shards", 1.0, 1, seed=0)
    assert dealt.classes == ("cat", "dog", "owl")
    assert (tmp_path / "classes.txt").read_text() == "cat\ndog\nowl\n"
    assert np.sum(list(dealt.counts.values()), axis=0).tolist() == [2, 2, 2]
    other_order = DataContract((Feature((2,), "float32"),), classes=3, class_names=("owl", "dog", "cat"))
    for name in ("a", "b"):
        part = read_splits(tmp_path / f"{name}.npz").train
        meant = {1: 0, 4: 0, 3: 1, 6: 1, 2: 2, 5: 2}
        labels = fit_to_contract(part, other_order, name).labels
        assert labels.tolist() == [meant[int(x)] for x in part.features[:, 1]]


def test_numbers_stay_numbers(tmp_path: Path) -> None:
    np.savez(tmp_path / "n.npz", x=np.zeros((4, 2), np.float32), y=np.array([0, 1, 1, 2]))
    dealt = write_parts(str(tmp_path / "n.npz"), tmp_path, ["a", "b"], "iid", 1.0, 1, seed=0)
    assert dealt.classes == ("0", "1", "2") and (tmp_path / "classes.txt").read_text() == "0\n1\n2\n"
    assert read_splits(tmp_path / "a.npz").train.names is None


def test_regression_has_no_classes(tmp_path: Path) -> None:
    np.savez(tmp_path / "r.npz", x=np.zeros((4, 2), np.float32), y=np.array([0.5, 1, 1, 2], np.float32))
    dealt = write_parts(str(tmp_path / "r.npz"), tmp_path, ["a", "b"], "iid", 1.0, 1, seed=0)
    assert dealt.classes == () and dealt.counts == {"a": [2], "b": [2]}
    assert not (tmp_path / "classes.txt").exists()


def test_several_features_and_lengths_are_dealt_out_together(tmp_path: Path) -> None:
    x = np.arange(8).reshape(4, 2)
    np.savez(tmp_path / "s.npz", x=x, y=[0, 1, 0, 1], age=[10, 11, 12, 13], lengths=[1, 2, 1, 2])
    write_parts(str(tmp_path / "s.npz"), tmp_path, ["a", "b"], "iid", 1.0, 1, seed=0)
    for name in ("a", "b"):
        part = read_splits(tmp_path / f"{name}.npz").train
        rows = part.features[:, 0] // 2
        assert part.others["age"].tolist() == (10 + rows).tolist()
        assert part.lengths is not None and part.lengths.tolist() == (1 + rows % 2).tolist()


def test_what_the_reader_guessed_is_passed_on(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("size,species\n1,cat\n2,dog\n")
    dealt = write_parts(str(tmp_path / "a.csv"), tmp_path, ["a"], "iid", 1.0, 1, seed=0)
    assert dealt.notes == ("the label is the last column, 'species'",)
