"""Documents are read completely and once for any division of their files; bad ones are reported or counted."""

import gzip
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from itertools import chain
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from conftest import joined, write_jsonl, write_parquet
from helpers.web import web_server
from hypothesis import given
from hypothesis import strategies as st

from lit_lm.data import filesystem, readers
from lit_lm.data.filesystem import find_files, split_into_shards
from lit_lm.data.readers import CUTS, BadDocument, BadDocuments, TextPart, read
from lit_lm.tokenizer.tokenizer import Tokenizer
from lit_lm.tokenizer.train import END_OF_TEXT

SCRAPS = ["<|endoftext", "|>", "<|", " ", "\n", "\r\n", "a b", "One.\nTwo", "🦊", "从前\n有", "。\n", "\u3000", "\x00"]
DOCUMENTS = st.lists(st.lists(st.sampled_from(SCRAPS) | st.text(max_size=8), max_size=6).map("".join), max_size=8)
SIZES = st.integers(1, 60)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all examples of a property, each of which overwrites its file."""
    return tmp_path_factory.mktemp("property")


@contextmanager
def sizes(*, shard: int = 2**30, block: int = 2**20, part: int = 2**22, line: int = 2**27) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(filesystem, "SHARD_BYTES", shard)
        patch.setattr(readers, "BLOCK_BYTES", block)
        patch.setattr(readers, "PART_BYTES", part)
        patch.setattr(readers, "MAX_LINE_BYTES", line)
        yield


def parts_of(path: object, bad: BadDocuments | None = None, text_field: str = "text") -> list[TextPart]:
    ranges = chain.from_iterable(split_into_shards(find_files(str(path))))
    return [text_part for part in ranges for text_part in read(part, text_field, bad or BadDocuments())]


def documents_of(path: object, bad: BadDocuments | None = None, text_field: str = "text") -> list[str]:
    return joined(parts_of(path, bad, text_field))


class TestTxt:
    def test_a_file_without_separators_is_one_unchanged_document(self, tmp_path: Path) -> None:
        text = "\n  One\r\n\r\ndocument. \x00 Grüße 🦊\n\n"
        (tmp_path / "a.txt").write_bytes(text.encode())
        assert documents_of(tmp_path / "a.txt") == [text]

    def test_documents_are_split_at_separators_stripped_and_not_blank(self, tmp_path: Path) -> None:
        text = "<|endoftext|>One.\n<|endoftext|>\n  Two\nlines. <|endoftext|><|endoftext|>\n \n<|endoftext|> Three"
        (tmp_path / "a.txt").write_text(text)
        assert documents_of(tmp_path / "a.txt") == ["One.", "Two\nlines.", "Three"]

    @given(DOCUMENTS.filter(lambda documents: len(documents) > 1), SIZES, SIZES)
    def test_documents_equal_those_of_str_split_for_any_shards_and_blocks(
        self, folder: Path, documents: list[str], shard: int, block: int
    ) -> None:
        text = END_OF_TEXT.join(documents)
        (folder / "a.txt").write_bytes(text.encode())
        with sizes(shard=shard, block=block):
            assert documents_of(folder / "a.txt") == [d.strip() for d in text.split(END_OF_TEXT) if d.strip()]

    @given(DOCUMENTS, SIZES, SIZES, st.integers(8, 40))
    def test_parts_join_to_the_documents(
        self, folder: Path, documents: list[str], shard: int, block: int, part: int
    ) -> None:
        text = END_OF_TEXT.join(
            ["", *documents]
        )  # a leading separator: without one, white space at the start may be kept
        (folder / "a.txt").write_bytes(text.encode())
        with sizes(shard=shard, block=block, part=part):
            assert documents_of(folder / "a.txt") == [d.strip() for d in text.split(END_OF_TEXT) if d.strip()]

    @given(st.lists(st.sampled_from(SCRAPS) | st.text(max_size=8), max_size=20), SIZES, SIZES, st.integers(8, 40))
    def test_parts_of_a_file_without_separators_join_to_the_file(
        self, folder: Path, scraps: list[str], shard: int, block: int, part: int
    ) -> None:
        text = "".join(scraps).replace(END_OF_TEXT, "")
        (folder / "a.txt").write_bytes(text.encode())
        with sizes(shard=shard, block=block, part=part):
            assert documents_of(folder / "a.txt") == ([text] if text.strip() else [])

    def test_a_long_document_is_read_in_several_parts(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_text("a word " * 100)
        with sizes(part=64, block=50):
            parts = parts_of(tmp_path / "a.txt")
        assert len(parts) > 8
        assert all(0 < len(text) <= 64 + 50 + len(END_OF_TEXT) for text, _ in parts)

    def test_a_glob_reads_its_files_in_the_order_of_their_names(self, tmp_path: Path) -> None:
        (tmp_path / "sub").mkdir()
        (tmp_path / "c.TXT").write_text("c")
        write_jsonl(tmp_path / "b.jsonl", {"text": "b1"}, {"text": "b2"})
        write_parquet(tmp_path / "a.parquet", text=["a"])
        (tmp_path / "sub" / "d.txt").write_text("d")
        assert documents_of(tmp_path / "*.*") == ["a", "b1", "b2", "c"]
        assert documents_of(tmp_path / "**" / "*.*") == ["a", "b1", "b2", "c", "d"]


class TestJsonl:
    def test_blank_lines_and_blank_documents_are_skipped(self, tmp_path: Path) -> None:
        (tmp_path / "a.jsonl").write_text('{"text": "One."}\n\n{"text": " "}\r\n  \n{"text": "Two."}')
        assert documents_of(tmp_path / "a.jsonl") == ["One.", "Two."]

    @given(DOCUMENTS, st.sampled_from(["\n", "\r\n", "\n\n \n"]), st.booleans(), SIZES, st.integers(8, 40))
    def test_every_line_is_read_once_for_any_shards(
        self, folder: Path, documents: list[str], line_end: str, letters: bool, shard: int, part: int
    ) -> None:
        lines = [json.dumps({"text": document}, ensure_ascii=not letters) for document in documents]
        (folder / "a.jsonl").write_bytes(line_end.join(lines).encode())
        with sizes(shard=shard, part=part):
            assert documents_of(folder / "a.jsonl") == [d for d in documents if d.strip()]

    def test_the_separator_is_ordinary_text(self, tmp_path: Path) -> None:
        texts = ["One.", "  Zwei\n Zeilen 🦊 ", "<|endoftext|> is text here"]
        write_jsonl(tmp_path / "a.jsonl", *({"id": i, "story": text} for i, text in enumerate(texts)))
        assert documents_of(tmp_path / "a.jsonl", text_field="story") == texts


class TestEncodings:
    TEXT = "The cat ran home. It was late.\n"

    @pytest.mark.parametrize("shard", [1, 2, 3, 4, 5, 20, 2**20])
    @pytest.mark.parametrize("between", ["\n", END_OF_TEXT])
    def test_a_byte_order_mark_is_no_text(self, tmp_path: Path, shard: int, between: str) -> None:
        (tmp_path / "a.txt").write_text(f"One.{between}Two.", encoding="utf-8-sig")
        (tmp_path / "a.jsonl").write_text('{"text": "One."}\n{"text": "\ufeffTwo."}', encoding="utf-8-sig")
        (tmp_path / "b.jsonl").write_text('\n{"text": "One."}\n', encoding="utf-8-sig")
        (tmp_path / "b.txt").write_text("", encoding="utf-8-sig")
        with sizes(shard=shard):
            assert documents_of(tmp_path / "a.txt") == (["One.\nTwo."] if between == "\n" else ["One.", "Two."])
            assert documents_of(tmp_path / "a.jsonl") == ["One.", "\ufeffTwo."]
            assert documents_of(tmp_path / "b.jsonl") == ["One."]
            assert documents_of(tmp_path / "b.txt") == []

    def test_the_place_of_a_bad_byte_counts_the_mark(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfab\xff")
        with pytest.raises(ValueError, match="line 1: not UTF-8: byte 5 of the file is 0xff"):
            documents_of(tmp_path / "a.txt")

    @pytest.mark.parametrize("encoding", [f"utf-{bits}{end}" for bits in (16, 32) for end in ("", "-le", "-be")])
    @pytest.mark.parametrize("text", [TEXT, "Жили-были старик со старухой у моря. 5\n", "Ο γάτος έτρεξε σπίτι. 5\n"])
    @pytest.mark.parametrize("kind", ["txt", "jsonl", "txt.gz"])
    def test_utf16_and_utf32_are_refused(self, tmp_path: Path, encoding: str, text: str, kind: str) -> None:
        content = (json.dumps({"text": text}, ensure_ascii=False) + "\n" if kind == "jsonl" else text).encode(encoding)
        (tmp_path / f"a.{kind}").write_bytes(gzip.compress(content) if kind == "txt.gz" else content)
        with pytest.raises(ValueError, match=rf"a\.{kind} is not UTF-8, but UTF-16, UTF-32 or no text; convert it"):
            documents_of(tmp_path / f"a.{kind}", BadDocuments(skip=True))

    def test_another_shard_of_utf16_is_refused_too(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_bytes((self.TEXT * 10).encode("utf-16-le"))
        with sizes(shard=200):
            divided = split_into_shards(find_files(str(tmp_path / "a.txt")))
        with pytest.raises(ValueError, match="is not UTF-8"):
            list(read(divided[1][0], "text", BadDocuments()))

    @pytest.mark.parametrize("text", ["a\nb\n" * 20, "a\x00b" * 20, "\x00" + "One two three. " * 3, "\x00" * 9])
    def test_single_characters_per_line_and_nul_bytes_are_text(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "a.txt").write_text(text, newline="")
        assert documents_of(tmp_path / "a.txt") == [text]

    def test_nothing_but_nul_bytes_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_bytes(bytes(100_000))
        with pytest.raises(ValueError, match="is not UTF-8, but"):
            documents_of(tmp_path / "a.txt")


class TestJson:
    @pytest.mark.parametrize("suffix", ["ndjson", "json", "json.gz", "ndjson.zst"])
    def test_lines_of_objects_are_read(self, tmp_path: Path, suffix: str) -> None:
        content = b'{"text": "One."}\n{"text": "Two."}\n'
        packed = content if suffix.endswith("json") else compressed(content, f".{suffix.rpartition('.')[2]}")
        (tmp_path / f"a.{suffix}").write_bytes(packed)
        assert documents_of(tmp_path / f"a.{suffix}") == ["One.", "Two."]

    @pytest.mark.parametrize("content", ['[{"text": "One."}]', ' \n[\n{"text": "One."}\n]', '{\n "text": "One."\n}'])
    @pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
    def test_other_json_is_refused_with_a_remedy(self, tmp_path: Path, content: str, encoding: str) -> None:
        (tmp_path / "a.json").write_text(content, encoding=encoding)
        with pytest.raises(
            ValueError, match=r"a\.json does not have one JSON object per line; convert it, for .* jq -c"
        ):
            documents_of(tmp_path / "a.json", BadDocuments(skip=True))


class TestParquet:
    @given(DOCUMENTS, st.integers(1, 4), st.integers(1, 400))
    def test_every_row_is_read_once_for_any_shards(
        self, folder: Path, documents: list[str], rows_per_group: int, shard: int
    ) -> None:
        write_parquet(folder / "a.parquet", rows_per_group, id=list(range(len(documents))), text=documents)
        with sizes(shard=shard):
            assert documents_of(folder / "a.parquet") == [d for d in documents if d.strip()]

    def test_row_groups_are_divided_among_the_shards(self, tmp_path: Path) -> None:
        write_parquet(tmp_path / "a.parquet", 10, text=[f"{i} {i * i}" for i in range(200)])
        with sizes(shard=500):
            divided = split_into_shards(find_files(str(tmp_path / "a.parquet")))
            shares = [sum(1 for part in shard for _ in read(part, "text", BadDocuments())) for shard in divided]
        assert sum(shares) == 200
        assert len([share for share in shares if share]) > 3


def compressed(data: bytes, suffix: str) -> bytes:
    return gzip.compress(data) if suffix == ".gz" else zstandard.ZstdCompressor().compress(data)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
class TestCompressed:
    @pytest.mark.parametrize("kind", ["txt", "jsonl"])
    def test_documents_equal_those_of_the_uncompressed_file(self, tmp_path: Path, kind: str, suffix: str) -> None:
        texts = [f"Story number {i}." for i in range(300)]
        path = tmp_path / f"a.{kind}"
        if kind == "txt":
            path.write_text(END_OF_TEXT.join(texts))
        else:
            write_jsonl(path, *({"text": text} for text in texts))
        packed = tmp_path / f"b.{kind}{suffix}"
        packed.write_bytes(compressed(path.read_bytes(), suffix))
        with sizes(shard=100):
            assert len(split_into_shards(find_files(str(packed)))) > 3
            assert documents_of(packed) == texts

    def test_concatenated_compressed_files_are_read_completely(self, tmp_path: Path, suffix: str) -> None:
        parts = [compressed(b'{"text": "One."}\n', suffix), compressed(b'{"text": "Two."}\n', suffix)]
        (tmp_path / f"a.jsonl{suffix}").write_bytes(b"".join(parts))
        assert documents_of(tmp_path / f"a.jsonl{suffix}") == ["One.", "Two."]

    @pytest.mark.parametrize("kind", ["txt", "jsonl"])
    def test_content_that_expands_too_much_is_refused(
        self, tmp_path: Path, suffix: str, kind: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(filesystem, "FREE_EXPANSION", 2**16)
        (tmp_path / f"a.{kind}{suffix}").write_bytes(compressed(b"a " * 2**22, suffix))
        with pytest.raises(
            OSError, match=r"cannot be read: its content has more than 100 times .*; if this is intended"
        ):
            documents_of(tmp_path / f"a.{kind}{suffix}")

    def test_parquet_is_refused(self, tmp_path: Path, suffix: str) -> None:
        (tmp_path / f"a.parquet{suffix}").write_bytes(compressed(b"junk", suffix))
        with pytest.raises(ValueError, match=rf"a.parquet{suffix} is compressed; decompress it"):
            documents_of(tmp_path / f"a.parquet{suffix}")

    @pytest.mark.parametrize("damage", ["no archive", "cut short"])
    def test_a_damaged_file_is_reported(self, tmp_path: Path, suffix: str, damage: str) -> None:
        content = compressed(b"".join(b"%d " % (i * i) for i in range(9000)), suffix)
        (tmp_path / f"a.txt{suffix}").write_bytes(b"junk" if damage == "no archive" else content[:-5000])
        with pytest.raises(OSError, match=rf"a.txt{suffix} cannot be read: "):
            documents_of(tmp_path / f"a.txt{suffix}")


def test_zeros_after_a_gz_are_skipped_and_other_bytes_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"One.") + bytes(5000))
    assert documents_of(tmp_path / "a.txt.gz") == ["One."]
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"One.") + b"junk")
    with pytest.raises(OSError, match=r"a\.txt\.gz cannot be read: "):
        documents_of(tmp_path / "a.txt.gz")


@pytest.mark.parametrize("window_log", [27, 30, 31])
def test_a_zst_with_a_long_window_or_a_skippable_frame_is_read(tmp_path: Path, window_log: int) -> None:
    options = zstandard.ZstdCompressionParameters.from_level(1, window_log=window_log, enable_ldm=True, threads=0)
    packer = zstandard.ZstdCompressor(compression_params=options).compressobj()
    frame = b"\x50\x2a\x4d\x18\x04\x00\x00\x00skip"
    (tmp_path / "a.txt.zst").write_bytes(frame + packer.compress(b"One two. " * 20) + packer.flush() + frame)
    assert documents_of(tmp_path / "a.txt.zst") == ["One two. " * 20]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """The address of a web server for the folder, which supports byte ranges."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = tmp_path / self.path.strip("/")
            if not path.is_file():
                self.send_error(404)
                return
            content = path.read_bytes()
            wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            start, stop = (int(wanted[1]), int(wanted[2] or len(content)) + 1) if wanted else (0, len(content))
            part = content[start:stop]
            self.send_response(206 if wanted else 200)
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(len(part)))
            if wanted:
                self.send_header("Content-Range", f"bytes {start}-{start + len(part) - 1}/{len(content)}")
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(part)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None: ...

    with web_server(Handler) as address:
        yield address


class TestAddresses:
    @pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.parquet", "a.jsonl.gz", "a.jsonl.zst"])
    @pytest.mark.parametrize("shard", [1000, 2**20])
    def test_documents_from_a_web_server_equal_those_of_the_file(
        self, tmp_path: Path, server: str, name: str, shard: int
    ) -> None:
        texts = [f"Story number {i}, of {i * i}." for i in range(100)]
        write_jsonl(tmp_path / "a.jsonl", *({"text": text} for text in texts))
        write_parquet(tmp_path / "a.parquet", 20, text=texts)
        (tmp_path / "a.txt").write_text(END_OF_TEXT.join(texts))
        for suffix in (".gz", ".zst"):
            (tmp_path / f"a.jsonl{suffix}").write_bytes(compressed((tmp_path / "a.jsonl").read_bytes(), suffix))
        with sizes(shard=shard):
            assert documents_of(f"{server}/{name}") == texts

    def test_a_missing_remote_file_is_reported(self, tmp_path: Path, server: str) -> None:
        (tmp_path / "a.txt").write_text("One.")
        ((part,),) = split_into_shards(find_files(f"{server}/a.txt"))
        (tmp_path / "a.txt").unlink()
        with pytest.raises(OSError, match=f"^{server}/a.txt cannot be read: "):
            list(read(part, "text", BadDocuments()))
        assert find_files(f"{server}/a.txt") == []


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    text = "One two three. It's the fox's, they'll say; 12 dogs ran\nhome. 从前有一只小狗。\n它很快乐。 Grüße! "
    return Tokenizer.train([text * 3, *SCRAPS], 400)


LETTERS = st.sampled_from([*"aé 1.'!\n\r\t\u00a0\u2028\u3000\u200b\ufeff从。！ｱ🦊\x00\x85ñ", " b", "'s"])


class TestCuts:
    @given(st.lists(LETTERS, max_size=12).map("".join), st.sampled_from(["\n", " "]), st.data())
    def test_the_tokenizer_never_crosses_the_best_cuts(
        self, tokenizer: Tokenizer, before: str, between: str, data: st.DataObject
    ) -> None:
        around = st.sampled_from(list("az.!'1从。！ｱ")) | LETTERS
        left, right = data.draw(around), data.draw(around)
        text = before + left + between + right + data.draw(st.lists(LETTERS, max_size=12).map("".join))
        whole, encoded = tokenizer.encode(text), text.encode()
        for match in CUTS[0].finditer(encoded):
            before, after = encoded[: match.end()].decode(), encoded[match.end() :].decode()
            assert tokenizer.encode(before) + tokenizer.encode(after) == whole

    @pytest.mark.parametrize("letter", [chr(code) for code in range(0x10000) if chr(code).isspace()], ids=ascii)
    def test_the_best_cuts_are_never_after_white_space(self, letter: str) -> None:
        assert not CUTS[0].search(f"{letter} ".encode())
        assert not CUTS[0].search(f"{letter}\n".encode())

    @pytest.mark.parametrize("kind", ["txt", "jsonl"])
    def test_ids_of_parts_join_to_those_of_the_document(self, tokenizer: Tokenizer, tmp_path: Path, kind: str) -> None:
        text = (
            "It's the fox's home.\nThey'll say 12 dogs ran!\n从前有一只小狗。\n它很快乐。 Grüße one two\n\nthree\n" * 20
        )
        text = text.strip()
        (tmp_path / "a.txt").write_text(text, encoding="utf-8")
        write_jsonl(tmp_path / "a.jsonl", {"text": text})
        with sizes(part=150, block=70):
            parts = parts_of(tmp_path / f"a.{kind}")
        assert len(parts) > 5
        assert [i for text_part, _ in parts for i in tokenizer.encode(text_part)] == tokenizer.encode(text)

    @given(st.text(min_size=1, max_size=60), st.integers(5, 30))
    def test_text_without_white_space_is_cut_between_characters(self, folder: Path, text: str, part: int) -> None:
        write_jsonl(folder / "cut.jsonl", {"text": text})
        with sizes(part=part):
            parts = parts_of(folder / "cut.jsonl")
        assert "".join(text for text, _ in parts) == (text if text.strip() else "")
        assert [ends for _, ends in parts] == [False] * (len(parts) - 1) + [True] * bool(parts)


BAD_LINES = [
    (b"{oops}", r": not JSON: Expecting property name"),
    (b"\xff\xfe\xfd", r": not JSON: "),
    (b'{"text": "caf\xe9"}', r": not JSON: 'utf-8' codec can't decode byte 0xe9"),
    (b"[" * 100_000, r": not JSON: "),
    (b'["One."]', r": not a JSON object$"),
    (b'{"story": "One.", "id": 1}', r": no field 'text', only \['story', 'id'\]; choose one with --data.text_field$"),
    (b'{"text": null}', r": text is not a string: None$"),
    (b'{"text": 5}', r": text is not a string: 5$"),
    (b'{"text": "a \\ud800 b"}', r": text is not Unicode text: surrogates not allowed$"),
    (b'{"text": "a \xed\xa0\x80 b"}', r": text is not Unicode text: surrogates not allowed$"),
    (b'{"text": "' + b"a" * 150_000 + b'"}', r": the line has 150013 bytes; a .jsonl line can have at most 120000$"),
]


class TestBad:
    @pytest.mark.parametrize(("line", "message"), BAD_LINES, ids=lambda value: ascii(value)[:30])
    @pytest.mark.parametrize("suffix", ["", ".gz"])
    def test_a_bad_line_of_jsonl_is_reported_or_counted(
        self, tmp_path: Path, line: bytes, message: str, suffix: str
    ) -> None:
        content = b'{"text": "One."}\n\n' + line + b'\n{"text": "Two."}\n' + line + b'\r\n{"text": "Three."}'
        path = tmp_path / f"a.jsonl{suffix}"
        path.write_bytes(gzip.compress(content) if suffix else content)
        first = f"^{re.escape(str(path))}, line 3{message}"
        with sizes(line=120_000), pytest.raises(ValueError, match=re.compile(first, re.MULTILINE)) as error:
            documents_of(path)
        assert isinstance(error.value, BadDocument)
        for shard in (10**6, 40_000):
            bad = BadDocuments(skip=True)
            with sizes(line=120_000, shard=shard):
                assert documents_of(path, bad) == ["One.", "Two.", "Three."]
            assert bad.count == 2
            assert re.search(first, bad.first)

    @pytest.mark.parametrize(
        ("content", "line", "at", "byte"),
        [
            (b"ab\nc\xff", 2, 4, "ff"),
            (b"<|endoftext|>\n\n" * 3 + b"ab\xc3(", 7, 47, "c3"),
            (("🦊" * 10 + END_OF_TEXT).encode() + b"\x80 <|endoftext|>", 1, 53, "80"),
            (b"abc\xf0\x9f", 1, 3, "f0"),
        ],
    )
    @pytest.mark.parametrize("block", [5, 2**20])
    @pytest.mark.parametrize("shard", [7, 2**20])
    def test_text_that_is_not_utf8_is_reported_with_line_and_byte(
        self, tmp_path: Path, content: bytes, line: int, at: int, byte: str, block: int, shard: int
    ) -> None:
        (tmp_path / "a.txt").write_bytes(content)
        assert content[at] == int(byte, 16)
        message = rf"a.txt, line {line}: not UTF-8: byte {at} of the file is 0x{byte}$"
        with sizes(block=block, shard=shard), pytest.raises(ValueError, match=message):
            documents_of(tmp_path / "a.txt")

    @given(st.lists(st.tuples(st.text("ab\n", min_size=1, max_size=9), st.booleans()), max_size=9), SIZES, SIZES)
    def test_all_good_documents_of_a_txt_are_read(
        self, folder: Path, documents: list[tuple[str, bool]], shard: int, block: int
    ) -> None:
        content = END_OF_TEXT.encode().join(text.encode() + b"\xff" * damaged for text, damaged in documents)
        (folder / "bad.txt").write_bytes(content + END_OF_TEXT.encode())
        bad = BadDocuments(skip=True)
        with sizes(shard=shard, block=block):
            read = documents_of(folder / "bad.txt", bad)
        assert read == [text.strip() for text, damaged in documents if text.strip() and not damaged]
        assert bad.count == sum(damaged for _, damaged in documents)

    def test_a_bad_row_of_parquet_is_reported_or_counted(self, tmp_path: Path) -> None:
        write_parquet(tmp_path / "a.parquet", 2, text=["One.", "Two.", "Three.", None, "Five."])
        with pytest.raises(ValueError, match=r"a.parquet, row 4: text is not a string: None$"):
            documents_of(tmp_path / "a.parquet")
        bad = BadDocuments(skip=True)
        with sizes(shard=100):
            assert documents_of(tmp_path / "a.parquet", bad) == ["One.", "Two.", "Three.", "Five."]
        assert bad.count == 1

    def test_text_of_parquet_that_is_not_utf8_is_reported_or_counted(self, tmp_path: Path) -> None:
        column = pa.array([b"One.", b"caf\xe9", b"Two."]).view(pa.string())
        pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
        with pytest.raises(ValueError, match=r"a.parquet, row 2: not UTF-8: "):
            documents_of(tmp_path / "a.parquet")
        bad = BadDocuments(skip=True)
        assert documents_of(tmp_path / "a.parquet", bad) == ["One.", "Two."]
        assert bad.count == 1

    def test_a_parquet_file_without_the_text_field_is_reported_with_its_fields(self, tmp_path: Path) -> None:
        write_parquet(tmp_path / "a.parquet", story=["One."], id=[1])
        with pytest.raises(ValueError, match=r"a.parquet: no field 'text', only \['story', 'id'\]; choose one with"):
            documents_of(tmp_path / "a.parquet")

    @pytest.mark.parametrize("content", [b"", b"junk", b"PAR1" * 10])
    def test_a_file_that_is_not_parquet_is_reported(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "a.parquet").write_bytes(content)
        with pytest.raises(ValueError, match=r"a.parquet is not a parquet file: "):
            documents_of(tmp_path / "a.parquet")

    @pytest.mark.parametrize("content", [b"", b" \n\t\n", b"<|endoftext|>\n<|endoftext|>"])
    def test_a_text_file_without_text_has_no_documents(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "a.txt").write_bytes(content)
        assert documents_of(tmp_path / "a.txt") == []

    def test_a_missing_file_is_reported(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_text("One.")
        ((part,),) = split_into_shards(find_files(str(tmp_path / "a.txt")))
        (tmp_path / "a.txt").unlink()
        with pytest.raises(OSError, match=r"a\.txt cannot be read: .*No such file"):
            list(read(part, "text", BadDocuments()))
