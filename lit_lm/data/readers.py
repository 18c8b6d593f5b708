"""Documents from ranges of .txt, .jsonl (or .ndjson, or .json with the same content) and .parquet files.

A document belongs to the range in which it starts. A document longer than PART_BYTES is read in several parts, so that
it need not fit into memory. Parts are cut before white space, where the byte-level tokenizer cuts too; only text
without white space is cut elsewhere.
"""

import codecs
import json
import re
from collections.abc import Callable, Iterator
from functools import partial
from io import BufferedReader
from typing import IO, Any, NamedTuple

from lit_lm.data.filesystem import File, Range
from lit_lm.tokenizer.tokenizer import END_OF_TEXT

TextPart = tuple[str, bool]
"""Text, and whether it ends its document."""

JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
SUFFIXES = (".txt", *JSON_SUFFIXES, ".parquet")
BLOCK_BYTES = 2**20
HEAD_BYTES = 1024
"""Bytes from which another encoding than UTF-8 is recognized."""
PART_BYTES = 4 * 2**20
MAX_LINE_BYTES = 128 * 2**20
"""Maximum length of a .jsonl line, which is parsed as a whole; a longer one is a bad document."""

SPREAD_JSON = re.compile(rb"(\xef\xbb\xbf)?\s*(\[|\{\s*\n)")
"""Beginning of JSON that is an array, or an object of several lines."""

CUTS = (
    # between a letter or punctuation and white space: no pre-token of a byte-level tokenizer contains this boundary
    re.compile(
        rb"(?:(?<=[!-~])|(?<=[\xe4-\xe9][\x80-\xbf]{2})|(?<=\xe3\x80[\x81-\xbf])|(?<=\xef[\xbc\xbd][\x80-\xbf]))"
        rb"(?=[ \n])"
    ),
    re.compile(rb"(?=[ \n])"),
    re.compile(rb"(?=[\x00-\x7f\xc0-\xff])"),
)
"""Where a long text is cut, best first; the last pattern matches between any two characters."""


class BadDocument(ValueError):
    """A document that cannot be read; the message has its file, its line and the problem."""


class BadDocuments:
    """Skips and counts documents that cannot be read, or raises an error for the first one."""

    def __init__(self, *, skip: bool = False) -> None:
        self.skip = skip
        self.count = 0
        self.first = ""
        """Location and problem of the first bad document."""

    def add(self, location: Callable[[], str], problem: str) -> None:
        """Count a bad document. `location` is called only for the first one, since it may read the file.

        Raises:
            BadDocument: unless bad documents are skipped.
        """
        if not self.skip:
            raise BadDocument(f"{location()}: {problem}")
        self.first = self.first or f"{location()}: {problem}"
        self.count += 1


TextShard = Callable[[BadDocuments], Iterator[TextPart]]
"""Yields the documents of a shard, and reports unreadable ones; can be called again."""


def read(part: Range, text_field: str, bad: BadDocuments) -> Iterator[TextPart]:
    """The documents of a range, without blank ones.

    Args:
        part: A range of a file with one of SUFFIXES. A compressed file belongs as a whole to the range at its start.
        text_field: Name of the text field in .jsonl and .parquet.
        bad: Collects the documents that cannot be read.

    Raises:
        BadDocument: if a document cannot be read and `bad` does not skip it.
        ValueError: if the content of the file does not match its suffix.
        OSError: if the file cannot be read.
    """
    if part.file.compression is not None:  # it cannot be read from the middle
        if part.start > 0:
            return
        part = Range(part.file, 0, 2**63)
    try:
        if part.file.suffix == ".txt":
            yield from _read_txt(part, bad)
        else:
            rows = _read_jsonl if part.file.suffix in JSON_SUFFIXES else _read_parquet
            for text in rows(part, text_field, bad):
                yield from in_parts(text)
    except ValueError:
        raise
    except Exception as error:  # file systems and decompressors raise different types
        raise OSError(f"{part.file.name} cannot be read: {error or type(error).__name__}") from None


def _read_txt(part: Range, bad: BadDocuments) -> Iterator[TextPart]:
    begun = broken = False  # whether a part of the current document has been yielded, whether one is not UTF-8
    held = ""  # white space that is dropped if the document ends after it
    for piece in _separated(part):
        try:
            text = held + ("" if broken else piece.data.decode("utf-8"))
        except UnicodeDecodeError as error:
            offset, byte = piece.offset + error.start, piece.data[error.start]
            bad.add(partial(_location, part.file, offset), f"not UTF-8: byte {offset} of the file is 0x{byte:02x}")
            text, broken = "", True
        if piece.separated and not begun:
            text = text.lstrip()
        size = len(text.rstrip())
        if piece.ends:
            if begun or size:
                yield text[:size] if piece.separated else text, True
            begun, broken, held = False, False, ""
        else:
            held = text[size:]
            if size:
                yield text[:size], False
                begun = True


class _Bytes(NamedTuple):
    """A piece of a document of a .txt file."""

    offset: int
    """Byte offset in the file."""
    data: bytes
    ends: bool
    """Whether it ends its document."""
    separated: bool
    """Whether a separator has been found: documents are then stripped. A file without separators is kept as it is."""


def _separated(part: Range) -> Iterator[_Bytes]:
    separator = END_OF_TEXT.encode()
    start = at = max(0, part.start - len(separator))  # offsets of the current document, and of `pending`
    ours = part.start == 0  # whether the current document belongs to this range
    separated = not ours
    pending = b""
    with part.file.open() as file:
        if at:  # compressed content cannot seek
            file.seek(at)
        if _head(part.file, file, at).startswith(codecs.BOM_UTF8) and not at:
            at += len(file.read(len(codecs.BOM_UTF8)))
        while block := file.read(BLOCK_BYTES):
            *ended, pending = (pending + block).split(separator)
            for data in ended:
                if ours and start < part.stop:
                    yield _Bytes(at, data, True, True)
                at += len(data) + len(separator)
                start, ours, separated = at, True, True
            if start >= part.stop:
                return
            size = len(pending) - len(separator) + 1  # bytes that cannot begin a separator
            if not ours and size > 0:
                start, at, pending = start + size, at + size, pending[size:]
            while ours and len(pending) > PART_BYTES + len(separator):
                size = _cut(pending[:PART_BYTES])
                yield _Bytes(at, pending[:size], False, separated)
                at, pending = at + size, pending[size:]
    if ours and start < part.stop:
        yield _Bytes(at, pending, True, separated)


def _head(file: File, content: IO[bytes], at: int) -> bytes:
    """The next bytes of the content, which stays at offset `at`.

    In UTF-16 and UTF-32, most scripts have a byte below 0x20 at every other place, which NUL bytes tell from lines of
    one character. UTF-8 text that merely contains NUL bytes is accepted.

    Raises:
        ValueError: if they are UTF-16 or UTF-32, or NUL bytes.
    """
    assert isinstance(content, BufferedReader)
    head = content.peek(HEAD_BYTES)[:HEAD_BYTES]
    controls = [sum(byte < 0x20 for byte in half) / max(8, len(half)) for half in (head[::2], head[1::2])]
    marked = not at and head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE))
    if marked or (0 in head and max(controls) > 0.9):
        raise ValueError(
            f"{file.name} is not UTF-8, but UTF-16, UTF-32 or no text; convert it, for example with iconv -f UTF-16"
        )
    return head


def _location(file: File, offset: int) -> str:
    return f"{file.name}, line {file.line_at(offset)}"


def _cut(data: bytes) -> int:
    """Where to cut a text that continues after `data`, preferably near the end of `data`."""
    for pattern in CUTS:
        for within in (2**16, len(data)):
            start = max(1, len(data) - within)
            if found := [match.end() for match in pattern.finditer(data, start)]:
                return found[-1]
    return len(data)


def in_parts(text: str) -> Iterator[TextPart]:
    """The parts of a document; none if it is blank."""
    if not text or text.isspace():
        return
    if len(text) <= PART_BYTES:
        yield text, True
        return
    data, at = text.encode(), 0
    while len(data) - at > PART_BYTES:
        size = _cut(data[at : at + PART_BYTES])
        yield data[at : at + size].decode(), False
        at += size
    yield data[at:].decode(), True


def _read_jsonl(part: Range, text_field: str, bad: BadDocuments) -> Iterator[str]:
    with part.file.open() as file:
        at = max(0, part.start - 1)
        if part.start > 0:
            file.seek(at)
            at += _rest_of_line(file)  # this line belongs to the previous range
        head = _head(part.file, file, at)
        if not at and part.file.suffix == ".json" and SPREAD_JSON.match(head):
            raise ValueError(
                f"{part.file.name} does not have one JSON object per line; convert it, for example with "
                "jq -c '.[]' for an array or jq -c . for objects"
            )
        readline = file.readline
        while at < part.stop and (line := readline(MAX_LINE_BYTES)):
            size = len(line)
            try:
                if size == MAX_LINE_BYTES and not line.endswith(b"\n"):
                    size += _rest_of_line(file)
                    raise ValueError(f"the line has {size} bytes; a .jsonl line can have at most {MAX_LINE_BYTES}")
                if not at:
                    line = line.removeprefix(codecs.BOM_UTF8)
                if line.strip():
                    yield _text_of(line, text_field)
            except ValueError as error:
                bad.add(partial(_location, part.file, at), str(error))
            at += size


def _rest_of_line(file: IO[bytes]) -> int:
    """Skip the rest of a line and return its size in bytes."""
    size = 0
    while piece := file.readline(BLOCK_BYTES):
        size += len(piece)
        if piece.endswith(b"\n"):
            break
    return size


def _text_of(line: bytes, text_field: str) -> str:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(row, dict):
        raise ValueError("not a JSON object")
    return text_in(row, text_field)


def _read_parquet(part: Range, text_field: str, bad: BadDocuments) -> Iterator[str]:
    import pyarrow as pa  # slow to import
    import pyarrow.parquet as pq

    if part.file.compression is not None:
        raise ValueError(f"{part.file.name} is compressed; decompress it: parquet is compressed internally")
    with part.file.open() as content:
        try:
            file = pq.ParquetFile(content, pre_buffer=False)
        except pa.ArrowException as error:
            raise ValueError(f"{part.file.name} is not a parquet file: {error}") from None
        if text_field not in file.schema_arrow.names:
            raise ValueError(f"{part.file.name}: {_no_text(file.schema_arrow.names, text_field)}")
        row = 0
        for number in range(file.num_row_groups):
            group = file.metadata.row_group(number)
            if part.start <= _offset(group) < part.stop:
                for batch in file.iter_batches(batch_size=64, row_groups=[number], columns=[text_field]):
                    for number_of_row, value in enumerate(batch.column(0), start=row + 1):
                        try:
                            yield text_in({text_field: value.as_py()}, text_field)
                        except ValueError as error:
                            bad.add(partial("{}, row {}".format, part.file.name, number_of_row), _reason(error))
                    row += batch.num_rows
            else:
                row += group.num_rows


def _offset(row_group: Any) -> int:
    """Byte offset of a row group in its file."""
    column = row_group.column(0)
    return int(column.dictionary_page_offset or column.data_page_offset)


def _reason(error: ValueError) -> str:
    return f"not UTF-8: {error}" if isinstance(error, UnicodeDecodeError) else str(error)


def text_in(row: dict[str, Any], text_field: str) -> str:
    """The text of a row.

    Raises:
        ValueError: if `text_field` is missing or not valid text.
    """
    if text_field not in row:
        raise ValueError(_no_text(list(row), text_field))
    text = row[text_field]
    if not isinstance(text, str):
        raise ValueError(f"{text_field} is not a string: {str(text)[:80]}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{text_field} is not Unicode text: {error.reason}") from None
    return text


def _no_text(fields: list[str], text_field: str) -> str:
    return f"no field {text_field!r}, only {fields}; choose one with --data.text_field"
