"""A data set in memory."""

import numpy as np

from edgefl_device.data import Dataset


def test_some_of_the_examples_keep_what_the_source_calls_their_labels() -> None:
    named = Dataset(np.zeros((3, 1)), np.array([3, 7, 3]), {3: "cat", 7: "dog"})
    some = named.take(np.array([2, 1]))
    assert (some.labels.tolist(), some.names) == ([3, 7], {3: "cat", 7: "dog"})
