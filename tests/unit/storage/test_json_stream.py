"""A JSON object in pieces: the same as json.loads, in any chunk size, and errors that say where."""

import io
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskmill.storage import json_stream
from maskmill.storage.json_stream import JsonError, stream_object

leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
values = st.recursive(
    leaves, lambda v: st.lists(v, max_size=4) | st.dictionaries(st.text(), v, max_size=3), max_leaves=8
)
WHOLE = '{"info": {"a": [1, {"x": "é\\u00e9"}]}, "n": -12.5e3, "e": [], "images": [{"id": 1}, 33.5, null], "t": true}\n'


def gathered(text: bytes) -> dict[str, Any]:
    """What the pieces put together are."""
    out: dict[str, Any] = {}
    lists: set[str] = set()
    for key, value in stream_object(io.BytesIO(text)):
        if key in lists:
            out[key].append(value)
        else:
            out[key] = value
            lists |= {key} if value == [] else set()
    return out


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.text(), values, max_size=4), st.integers(1, 40), st.sampled_from([None, 2]))
def test_the_same_as_json_loads(tree: dict[str, Any], chunk: int, indent: int | None) -> None:
    before, json_stream._CHUNK = json_stream._CHUNK, chunk
    try:
        assert gathered(json.dumps(tree, indent=indent, ensure_ascii=False).encode()) == tree
    finally:
        json_stream._CHUNK = before


@pytest.mark.parametrize("chunk", [1, 2, 7, 1 << 20])
def test_cut_anywhere_it_says_cut_short(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_stream, "_CHUNK", chunk)
    data = WHOLE.encode()
    for end in range(1, len(data) - 2):
        with pytest.raises(JsonError, match=f"cut short: its {end} bytes"):
            list(stream_object(io.BytesIO(data[:end])))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "it is empty"),
        ("[1]", "begins with '\\['"),
        ('{"a": 1,}', "near byte 8: expected a key"),
        ('{"a" 1}', "expected ':'"),
        ('{"a": [1,]}', "expected an element"),
        ('{"a": [1 2]}', "near byte 9: expected ','"),
        ("{1: 2}", "expected a key"),
        ('{"a": x}', "near byte 6: expected a value, found 'x}'"),
        ('{"a":1} x', "expected its end"),
        ('{"a": ' + "[" * 100_000, "nested less deeply"),
        ('{"a": "\xff"}', "not UTF-8"),
    ],
)
def test_what_is_broken_is_named(text: str, words: str) -> None:
    with pytest.raises(JsonError, match=words):
        list(stream_object(io.BytesIO(text.encode("latin1"))))


def test_only_what_is_in_work_is_held() -> None:
    """A file of 40 MB through a buffer of a few."""

    class Endless(io.RawIOBase):
        """{"annotations": [...]} with 40,000 elements, made as it is read."""

        def __init__(self) -> None:
            self.pieces = iter([b'{"annotations": [0', *[b', "' + b"x" * 1000 + b'"'] * 40_000, b"]}"])
            self.rest = b""

        def read(self, size: int = -1) -> bytes:
            while len(self.rest) < size and (piece := next(self.pieces, None)) is not None:
                self.rest += piece
            out, self.rest = self.rest[:size], self.rest[size:]
            return out

    import tracemalloc

    tracemalloc.start()
    count = sum(1 for _ in stream_object(Endless()))  # type: ignore[arg-type]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 40_002 and peak < 12 << 20, peak
