"""What a device reads, in words, and how parts are called."""

from __future__ import annotations

FORMATS = (
    "an .npz, .csv or .parquet file, IDX files, a folder with one folder of images or WAV files per class, "
    "a folder that Hugging Face's datasets saved, or the name 'digits'"
)
TEST_PARTS = ("test", "val", "valid", "validation")  # of folders and files: the first that is there
