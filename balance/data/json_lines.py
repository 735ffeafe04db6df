"""Lines of JSON objects -> the columns of a few keys, and the lines themselves, byte for byte.

Arrow's JSON reader does that for two million lines in seconds; it knows neither which line is wrong nor that a line
holds two objects, so a block that it refuses, or whose objects are not one per line, is read again line by line with
`json`, which names the line. The price: two readers of one format, held together by a test.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json

from balance.errors import UserError
from balance.records import Int64
from balance.runtime.remote import AnyPath

BLOCK_BYTES = 64 << 20
_JSON_BLANKS = " \t"  # Python's strip takes more, such as U+2028, which json.loads refuses

Bytes: TypeAlias = npt.NDArray[np.uint8]


def parse(path: AnyPath, data: Bytes, schema: pa.Schema) -> tuple[pa.Table, pa.LargeBinaryArray]:
    """(a column per key of the schema, null where an object lacks it; the lines without their line ends).

    data: the file's bytes, changed in place: its line ends (LF or CRLF) are closed up. schema: strings and lists of
    strings. UserError names the file, the line and what is wrong with it.
    """
    starts, size = _strip_line_ends(data)
    ends = np.append(starts[1:], size)
    tables = [_parse_block(path, data, starts, ends, rows, schema) for rows in _blocks(starts, size)]
    lines = pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), len(starts), [None, pa.py_buffer(np.append(starts, size)), pa.py_buffer(data[:size])]
    )
    return pa.concat_tables(tables or [schema.empty_table()]).combine_chunks(), lines


def _strip_line_ends(data: Bytes) -> tuple[Int64, int]:
    """Closes the gaps of LF and CRLF in place. Returns each line's start (n,) int64 and the total size in bytes."""
    starts: list[Int64] = []
    read = write = 0
    begin = 0  # start of the current line among the bytes written
    while read < len(data):
        block = data[read : read + BLOCK_BYTES]
        while block[-1] == 0x0D and read + len(block) < len(data):
            block = data[read : read + len(block) + 1]  # a CR stays with its LF
        newline = block == 0x0A
        drop = newline.copy()
        drop[:-1] |= (block[:-1] == 0x0D) & newline[1:]
        ends = np.flatnonzero(newline)
        kept_before = ends + 1 - np.cumsum(drop)[ends]
        starts.append(np.concatenate([[begin], write + kept_before]).astype(np.int64)[:-1])
        if len(ends):
            begin = write + int(kept_before[-1])
        kept = block[~drop]
        read += len(block)
        data[write : write + len(kept)] = kept
        write += len(kept)
    if write > begin:  # a last line without a line end
        starts.append(np.array([begin], dtype=np.int64))
    return (np.concatenate(starts) if starts else np.empty(0, dtype=np.int64)), write


def _blocks(starts: Int64, size: int) -> Iterator[range]:
    first = 0
    while first < len(starts):
        stop = int(np.searchsorted(starts, min(int(starts[first]) + BLOCK_BYTES, size)))
        stop = max(first + 1, stop)
        yield range(first, stop)
        first = stop


def _parse_block(path: AnyPath, data: Bytes, starts: Int64, ends: Int64, rows: range, schema: pa.Schema) -> pa.Table:
    """The table of these lines."""
    at, to = starts[rows.start : rows.stop], ends[rows.start : rows.stop]
    # A line with two records would go unseen if another record spread over two lines; no such record has all its
    # lines begin with { and end with }, for a } directly before a { is no JSON.
    if (at < to).all() and (data[at] == 0x7B).all() and (data[to - 1] == 0x7D).all():
        lengths = to - at
        spread = np.full(int(lengths.sum()) + len(rows), 0x0A, dtype=np.uint8)
        keep = np.ones(len(spread), dtype=np.bool_)
        keep[np.cumsum(lengths + 1) - 1] = False
        spread[keep] = data[at[0] : to[-1]]
        table = None if (spread == 0x0D).any() else _parse_fast(spread, schema)
        if table is not None and table.num_rows == len(rows):
            return table
    return _parse_line_by_line(path, [data[a:b].tobytes() for a, b in zip(at, to, strict=True)], rows.start + 1, schema)


def _parse_fast(block: Bytes, schema: pa.Schema) -> pa.Table | None:
    """Arrow's reading of a block of lines; None where it refuses it, where text is not UTF-8 or a list holds a null."""
    try:
        codecs.utf_8_decode(block.data, "strict", True)
        table = pa.json.read_json(
            pa.BufferReader(pa.py_buffer(block)),
            read_options=pa.json.ReadOptions(block_size=8 << 20),
            parse_options=pa.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
        )
        table.validate(full=True)
    except (pa.ArrowInvalid, UnicodeDecodeError):
        return None
    lists = (table.column(field.name) for field in schema if pa.types.is_list(field.type))
    return None if any(pc.list_flatten(column).null_count for column in lists) else table


def _parse_line_by_line(path: AnyPath, lines: list[bytes], first: int, schema: pa.Schema) -> pa.Table:
    columns: dict[str, list[Any]] = {name: [] for name in schema.names}
    for number, line in enumerate(lines, first):
        record = _record(f"{path} line {number}", line, schema)
        for name, values in columns.items():
            values.append(record.get(name))
    return pa.table(columns, schema=schema)


def _record(where: str, line: bytes, schema: pa.Schema) -> dict[str, Any]:
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 ({error.reason} at byte {error.start})") from None
    if "\r" in text:
        raise UserError(f"{where}: a carriage return inside the line, where readers of text see a line end")
    text = text.strip(_JSON_BLANKS)
    if not text:
        raise UserError(f"{where}: empty line; an index has one JSON object per line")
    try:
        record, end = json.JSONDecoder().raw_decode(text)
    except (json.JSONDecodeError, RecursionError) as error:
        shown = text if len(text) <= 60 else text[:57] + "..."
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deep"
        raise UserError(f"{where}: not JSON ({reason}): {shown!r}; an index has one JSON object per line") from None
    rest = text[end:].lstrip(_JSON_BLANKS)
    if rest.startswith("{"):
        raise UserError(f"{where}: two JSON objects in one line: a line end is missing between them")
    if rest:
        raise UserError(f"{where}: more than one JSON object: {rest[:40]!r} follows it")
    if not isinstance(record, dict):
        raise UserError(f"{where}: a JSON {type(record).__name__}, not an object with {', '.join(schema.names)}")
    for field in schema:
        _check_type(where, field.name, record.get(field.name), is_list=pa.types.is_list(field.type))
    return record


def _check_type(where: str, key: str, value: Any, *, is_list: bool) -> None:
    """Null counts as absent, as in the fast reading."""
    if value is None:
        return
    if is_list:
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise UserError(f"{where}: {key!r} must be a list of strings, got {json.dumps(value)[:60]}")
    elif not isinstance(value, str):
        raise UserError(f"{where}: {key!r} must be a string, got {json.dumps(value)[:60]}")
    for text in value if is_list else [value]:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise UserError(f"{where}: {key!r} holds half a surrogate pair, which is no text: {text!r}") from None
