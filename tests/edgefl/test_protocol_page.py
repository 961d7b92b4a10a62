"""docs/protocol.md says of every message and every field what edgefl/protocol.py, method.py and manifest.py say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from msgspec import inspect

from edgefl import data_contract, feeds, manifest, method, protocol
from edgefl_device.wire import fetch, offering, presence, session

PAGE = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()
MESSAGES = {kind.__struct_config__.tag: kind for kind in protocol.Message.__args__}
OTHERS = {
    "BlobRef": protocol.BlobRef,
    "ManifestRef": protocol.ManifestRef,
    "Task": method.Task,
    "Keep": method.Keep,
    "Manifest": manifest.Manifest,
    "DataContract": data_contract.DataContract,
    "Feature": data_contract.Feature,
    "Normalisation": data_contract.Normalisation,
    "StateTensor": manifest.StateTensor,
    "Program": manifest.Program,
    "Memory": manifest.Memory,
    "Input": manifest.Input,
    "Output": manifest.Output,
    "File": manifest.File,
    "Parity": manifest.Parity,
    "Target": manifest.Target,
}
KINDS = {**MESSAGES, **OTHERS}
PATTERNS = {
    protocol.NAME: "name",
    r"^[0-9a-f]{64}\Z": "SHA-256",
    r"^[0-9a-f]{16}\Z": "nonce",
    r"^([0-9a-f]{16})?\Z": "nonce or empty",
    r"^(train|test|announced|noise|kept:.*)\Z": "feed",
}


def spelled(kind: Any) -> str:
    """A type with its bounds, as the page spells it."""
    match kind:
        case inspect.Metadata():
            return spelled(kind.type)
        case inspect.StrType(pattern=str() as pattern):
            return PATTERNS[pattern]
        case inspect.StrType(max_length=int() as most):
            return f"text, at most {most}"
        case inspect.StrType():
            return "text"
        case inspect.IntType(ge=int() as least, le=int() as most):
            return f"{least} to {number(most)}"
        case inspect.IntType():
            return "integer"
        case inspect.FloatType(ge=least):
            return "number" if least is None else f"number, {least} or more"
        case inspect.BoolType():
            return "true or false"
        case inspect.NoneType():
            return "null"
        case inspect.LiteralType() if set(kind.values) == set(get_args(data_contract.Dtype)):
            return "dtype"
        case inspect.LiteralType():
            return " or ".join(f'"{value}"' for value in sorted(kind.values))
        case inspect.UnionType():
            return " or ".join(
                spelled(one) for one in sorted(kind.types, key=lambda t: isinstance(t, inspect.NoneType))
            )
        case inspect.TupleType():
            return f"[{', '.join(spelled(one) for one in kind.item_types)}]"
        case inspect.ListType(max_length=int() as most):
            return f"list of at most {most:,}: {spelled(kind.item_type)}"
        case inspect.ListType() | inspect.VarTupleType():
            return f"list: {spelled(kind.item_type)}"
        case inspect.DictType(max_length=most):
            bound = "" if most is None else f" of at most {most}"
            return f"object{bound}: {spelled(kind.key_type)} -> {spelled(kind.value_type)}"
        case inspect.StructType():
            return kind.cls.__name__
    raise AssertionError(kind)


def number(value: int) -> str:
    power = value.bit_length() - 1
    return f"2^{power}" if value == 2**power and power > 20 else f"{value:,}"


def default(field: inspect.Field) -> str:
    """How the page spells what a field is that is left out."""
    if field.required:
        return "required"
    value = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
    if isinstance(value, msgspec.Struct):
        return "{}"
    return msgspec.json.encode(value).decode()


def fields_of(kind: type[msgspec.Struct]) -> list[list[str]]:
    """[field, type, default] of each, in order."""
    described = inspect.type_info(kind)
    assert isinstance(described, inspect.StructType)
    return [[f"`{field.name}`", spelled(field.type), default(field)] for field in described.fields]


@pytest.mark.parametrize("name", KINDS)
def test_each_field_stands_in_the_page_with_its_type_and_default(name: str) -> None:
    [section] = re.findall(rf"^#### `{name}`[^\n]*\n(.*?)(?=^#|\Z)", PAGE, re.DOTALL | re.MULTILINE)
    rows = [re.split(r" *(?<!\\)\| *", line.strip("| ")) for line in section.splitlines() if line.startswith("| `")]
    assert [row[:3] for row in rows] == fields_of(KINDS[name])
    assert all(len(row) == 4 and len(row[3]) > 3 for row in rows), "every field has a meaning"


def test_limits_and_times_are_those_of_the_code() -> None:
    for value in (
        f"{protocol.MAX_FRAME_BYTES:,} bytes",
        f"{protocol.MAX_HEADER_BYTES:,} bytes",
        f"{protocol.CHUNK_BYTES:,} bytes",
        f"{protocol.MIN_CHUNK_BYTES:,} bytes",
        f"{protocol.INLINE_BYTES:,} bytes",
        f"{manifest.MAX_MANIFEST_BYTES:,} bytes",
        f"every {protocol.STATUS_AGAIN_S:g} s",
        f"{protocol.STATUS_COUNTS_S:g} s",
        f"after {presence.AGAIN_S:g} s, doubling up to {presence.AGAIN_MOST_S:g} s",
        f"after {fetch.AGAIN_S:g} s without a chunk, doubling up to {fetch.AGAIN_MOST_S:g} s",
        f"after {offering.AGAIN_S:g} s, doubling up to {offering.AGAIN_MOST_S:g} s",
        f"{session.FINISHED_S:g} s",
        f"`{feeds.BUFFER.pattern}`",
        f"Version {protocol.VERSION}",
        f"format {manifest.FORMAT}",
    ):
        assert value in PAGE, value


def test_every_topic_stands_in_the_page() -> None:
    topics = [
        protocol.round_topic("RUN"),
        protocol.aggregator_topic("RUN"),
        protocol.device_topic("RUN", "DEVICE"),
        protocol.up_topic("RUN", "DEVICE"),
        protocol.down_topic("RUN", "DEVICE"),
        protocol.blob_topic("RUN", "PREFIX"),
    ]
    for topic in topics:
        assert f"`{topic}`" in PAGE, topic


if __name__ == "__main__":  # what the tables begin with
    for name, kind in KINDS.items():
        print(f"#### `{name}`\n\n| field | type | default | meaning |\n|---|---|---|---|")
        for row in fields_of(kind):
            print("| " + " | ".join(row) + " | |")
        print()
