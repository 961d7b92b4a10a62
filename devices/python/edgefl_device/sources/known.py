"""What a device reads, in words: for the hint of an error."""

from __future__ import annotations

FORMATS = "an .npz file, IDX files, a .csv file, a folder with one folder of images per class, or the name 'digits'"
