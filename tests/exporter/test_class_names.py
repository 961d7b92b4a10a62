"""Names of classes, as a list or in a file as people's editors write it."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgefl.errors import InputError
from edgefl_exporter.class_names import read_class_names


def test_a_list_in_text_or_in_python() -> None:
    assert read_class_names(("cat", "hot dog")) == read_class_names("cat, hot dog") == ("cat", "hot dog")
    assert read_class_names(()) == read_class_names("") == ()
    assert read_class_names("owl") == ("owl",)


def test_a_file_has_a_name_on_each_line(tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    path.write_bytes("\ufeffcafe\u0301\r\n\r\n  Katze, klein \r\n日本\r\n\n".encode())  # a BOM, blanks, commas, NFD
    assert read_class_names(path) == read_class_names((str(path),)) == ("café", "Katze, klein", "日本")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"cat\ndog\ncat\n", "two classes are called 'cat'"),
        (b"\n \n", "names no classes"),
        (b"\xff\xfe\x00", "is not UTF-8 text"),
        (b"a\tb\n", "class name"),
    ],
)
def test_a_file_that_cannot_be_meant(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=said) as caught:
        read_class_names(str(path))
    assert caught.value.message.startswith(str(path))


def test_a_file_that_is_not_there_is_no_name() -> None:
    with pytest.raises(InputError, match=r"no/such\.txt"):
        read_class_names("no/such.txt")
    with pytest.raises(InputError, match="--classes: two classes are called 'a'"):
        read_class_names("a,b,a")
