"""What files tell of themselves, and files that do not tell or lie."""

from __future__ import annotations

import zipfile

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spiritlevel.errors import UsageError
from spiritlevel.export import Metadata, Normalization, read_metadata

TEXT = st.text(max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False),
    lambda each: st.lists(each, max_size=3) | st.dictionaries(TEXT, each, max_size=3),
    max_leaves=8,
)


@settings(max_examples=25, deadline=None)
@given(st.none() | st.lists(TEXT).map(tuple), st.dictionaries(TEXT, JSON), st.data())
def test_what_is_told_is_read(classes, recipe, data):
    numbers = st.floats(1e-3, 1e3)
    mean = tuple(data.draw(st.lists(numbers, min_size=1, max_size=4)))
    told = Metadata(classes, Normalization(mean, mean, 32, "grey"), recipe, {"torch": "2"})
    assert Metadata.from_strings(told.to_strings()) == told


@settings(max_examples=25, deadline=None)
@given(st.dictionaries(st.sampled_from(["classes", "normalization", "recipe", "versions"]), TEXT))
def test_what_others_wrote_is_left_out(found):
    told = Metadata.from_strings({f"spiritlevel.{key}": value for key, value in found.items()})
    assert told.normalization is None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("classes", "3"),
        ("classes", '["a", 3]'),
        ("normalization", '{"mean": [0.5]}'),
        ("normalization", '{"mean": [0.5], "std": [1], "more": 1}'),
        ("normalization", '{"mean": ["a"], "std": ["b"]}'),
        ("normalization", '{"mean": 3, "std": 3}'),
        ("recipe", "[" * 10**5),
        ("versions", "[]"),
    ],
)
def test_values_of_other_kinds_are_left_out(key, value):
    assert Metadata.from_strings({f"spiritlevel.{key}": value}) == Metadata()


@pytest.mark.parametrize("name", ["m.onnx", "m.pt2", "m.xml", "m.pth"])
@pytest.mark.parametrize("content", [None, b"", b"\x00\xff" * 50, b"PK\x03\x04"])
def test_what_is_no_such_file_is_told(name, content, tmp_path):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    if name == "m.onnx" and content == b"":
        assert read_metadata(path) == Metadata()  # to protobuf, nothing is a message of defaults
        return
    with pytest.raises(UsageError, match="wanted a"):
        read_metadata(path)


def test_files_of_others_tell_nothing(tmp_path):
    onnx.save(onnx.ModelProto(), tmp_path / "m.onnx")
    with zipfile.ZipFile(tmp_path / "m.pt2", "w") as archive:
        archive.writestr("archive/extra/other.txt", "x")
    (tmp_path / "m.xml").write_text("<net/>")
    for name in ("m.onnx", "m.pt2", "m.xml"):
        assert read_metadata(tmp_path / name) == Metadata()
