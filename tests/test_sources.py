"""Every kind of source from files written here: the documents, the held-out part, the fingerprints, the errors."""

import json
import os
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_lm.data import sources
from lit_lm.data.sources import IdSource, Source, Split, TextSource, absolute, open_sources
from lit_lm.text.tokenizer import END_OF_TEXT


def opened(source: object, val_source: object = None, **options: Any) -> dict[Split, Source]:
    defaults: dict[str, Any] = {"val_fraction": 0.25, "text_field": "text", "bin_dtype": "uint16"}
    return open_sources(str(source), None if val_source is None else str(val_source), **{**defaults, **options})


def contents(source: Source) -> list[Any]:
    """The documents of a text source, the ids of an id source."""
    if isinstance(source, TextSource):
        return list(source.documents())
    return [int(token) for block in source.blocks() for token in block]


def parts(*args: Any, **options: Any) -> tuple[list[Any], list[Any]]:
    """What trains and what validates."""
    both = opened(*args, **options)
    return contents(both["train"]), contents(both["validation"])


def documents_of(path: object, **options: Any) -> list[str]:
    """All documents of a source in their order: it validates as a whole where it is the validation source."""
    return contents(opened(path, path, **options)["validation"])


def write_jsonl(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_parquet(path: Path, **columns: list[Any]) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


class TestText:
    def test_txt_without_separators_is_one_document_as_it_is(self, tmp_path: Path) -> None:
        text = "\n  One\r\n\r\ndocument. \x00 Grüße 🦊\n\n"
        (tmp_path / "a.txt").write_bytes(text.encode())
        assert documents_of(tmp_path / "a.txt") == [text]

    def test_txt_is_split_at_separators_and_stripped_without_blank_documents(self, tmp_path: Path) -> None:
        text = "<|endoftext|>One.\n<|endoftext|>\n  Two\nlines. <|endoftext|><|endoftext|>\n \n<|endoftext|> Three"
        (tmp_path / "a.txt").write_text(text)
        assert documents_of(tmp_path / "a.txt") == ["One.", "Two\nlines.", "Three"]

    @given(
        st.lists(st.one_of(st.text(max_size=20), st.sampled_from(["<|endoftext", "|>", "<|", "🦊"])), min_size=2),
        st.integers(1, 40),
    )
    def test_txt_documents_come_back_whatever_the_block_size(
        self, tmp_path_factory: pytest.TempPathFactory, documents: list[str], block_bytes: int
    ) -> None:
        joined = END_OF_TEXT.join(documents)
        path = tmp_path_factory.getbasetemp() / "property.txt"
        path.write_bytes(joined.encode())
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sources, "BLOCK_BYTES", block_bytes)
            read = documents_of(path)
        assert read == [document.strip() for document in joined.split(END_OF_TEXT) if document.strip()]

    @pytest.mark.parametrize("field", ["text", "story"])
    def test_jsonl_and_parquet_give_the_text_field_of_each_row(self, tmp_path: Path, field: str) -> None:
        texts = ["One.", "  Zwei\n Zeilen 🦊 ", "<|endoftext|> is text here"]
        rows = [{"id": i, field: text} for i, text in enumerate(texts)]
        write_jsonl(tmp_path / "a.jsonl", *rows)
        write_parquet(tmp_path / "a.parquet", id=[0, 1, 2], **{field: texts})
        for name in ("a.jsonl", "a.parquet"):
            assert documents_of(tmp_path / name, text_field=field) == texts

    def test_jsonl_passes_over_blank_lines_and_blank_documents(self, tmp_path: Path) -> None:
        (tmp_path / "a.jsonl").write_text('{"text": "One."}\n\n{"text": " "}\r\n  \n{"text": "Two."}')
        assert documents_of(tmp_path / "a.jsonl") == ["One.", "Two."]

    def test_a_glob_reads_its_files_in_the_order_of_their_names(self, tmp_path: Path) -> None:
        (tmp_path / "sub").mkdir()
        (tmp_path / "c.TXT").write_text("c")
        write_jsonl(tmp_path / "b.jsonl", {"text": "b1"}, {"text": "b2"})
        write_parquet(tmp_path / "a.parquet", text=["a"])
        (tmp_path / "sub" / "d.txt").write_text("d")
        assert documents_of(tmp_path / "*") == ["a", "b1", "b2", "c"]
        assert documents_of(tmp_path / "**" / "*") == ["a", "b1", "b2", "c", "d"]

    def test_a_name_with_brackets_is_a_file_before_it_is_a_glob(self, tmp_path: Path) -> None:
        (tmp_path / "a[1].txt").write_text("One.")
        assert documents_of(tmp_path / "a[1].txt") == ["One."]

    def test_a_source_can_be_read_again_and_again(self, tmp_path: Path) -> None:
        write_jsonl(tmp_path / "a.jsonl", *({"text": str(i)} for i in range(10)))
        train = opened(tmp_path / "a.jsonl")["train"]
        assert contents(train) == contents(train) != []

    def test_a_home_folder_and_relative_paths_are_understood(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "a.txt").write_text("One.")
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.chdir(tmp_path)
        assert documents_of("~/a.txt") == documents_of("a.txt") == ["One."]
        assert absolute("a.txt") == absolute("~/a.txt") == str(tmp_path / "a.txt")

    @pytest.mark.parametrize("name", ["stories", "stories-zh", "tinystories", "hub:me/mine"])
    def test_names_that_are_no_paths_stay_as_they_are(self, name: str) -> None:
        assert absolute(name) == name


class TestIds:
    @pytest.mark.parametrize("dtype", ["int32", "uint16", "int64", ">u2"])
    @pytest.mark.parametrize("block_ids", [3, 2**20])
    def test_npy_gives_its_ids(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, block_ids: int
    ) -> None:
        monkeypatch.setattr(sources, "BLOCK_IDS", block_ids)
        np.save(tmp_path / "a.npy", np.array([5, 0, 30_000, 7], dtype=dtype))
        source = opened(tmp_path / "a.npy", tmp_path / "a.npy")["validation"]
        assert isinstance(source, IdSource)
        assert contents(source) == [5, 0, 30_000, 7]
        assert all(block.dtype == np.int64 and len(block) <= block_ids for block in source.blocks())

    @pytest.mark.parametrize(("dtype", "largest"), [("uint16", 2**16 - 1), ("int32", 2**31 - 1)])
    def test_bin_gives_its_ids_in_the_type_it_is_said_to_have(self, tmp_path: Path, dtype: str, largest: int) -> None:
        np.array([5, 0, largest, 7], dtype=dtype).tofile(tmp_path / "a.bin")
        assert documents_of(tmp_path / "a.bin", bin_dtype=dtype) == [5, 0, largest, 7]

    def test_a_glob_joins_files_of_ids(self, tmp_path: Path) -> None:
        np.array([3, 4], dtype="uint16").tofile(tmp_path / "b.bin")
        np.save(tmp_path / "a.npy", np.array([1, 2]))
        assert documents_of(tmp_path / "*") == [1, 2, 3, 4]


class TestHeldOut:
    @pytest.mark.parametrize(
        ("fraction", "number", "held_out"),
        [
            (0.25, 8, [3, 7]),
            (0.25, 10, [3, 7]),
            (0.5, 5, [1, 3]),
            (0.05, 41, [19, 39]),
            (0.05, 20, [19]),
            (0.05, 19, [18]),  # too few for a whole share: the last one
            (0.05, 2, [1]),
        ],
    )
    def test_every_kth_document_or_else_the_last_validates_and_the_others_train(
        self, tmp_path: Path, fraction: float, number: int, held_out: list[int]
    ) -> None:
        write_jsonl(tmp_path / "a.jsonl", *({"text": str(i)} for i in range(number)))
        train, validation = parts(tmp_path / "a.jsonl", val_fraction=fraction)
        assert validation == [str(i) for i in held_out]
        assert train == [str(i) for i in range(number) if i not in held_out]

    @pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5])
    def test_the_tail_of_a_single_document_validates(self, tmp_path: Path, fraction: float) -> None:
        text = "".join(chr(ord("a") + i % 26) for i in range(100))
        (tmp_path / "a.txt").write_text(text)
        train, validation = parts(tmp_path / "a.txt", val_fraction=fraction)
        assert len(validation[0]) == 100 * fraction
        assert train + validation == [text[: -len(validation[0])], text[-len(validation[0]) :]]

    @pytest.mark.parametrize("block_ids", [1, 7, 100, 2**20])
    @pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5])
    def test_the_tail_of_ids_validates(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_ids: int, fraction: float
    ) -> None:
        monkeypatch.setattr(sources, "BLOCK_IDS", block_ids)
        np.save(tmp_path / "a.npy", np.arange(60))
        np.save(tmp_path / "b.npy", np.arange(60, 100))
        train, validation = parts(tmp_path / "*.npy", val_fraction=fraction)
        assert len(validation) == 100 * fraction
        assert train + validation == list(range(100))

    def test_a_validation_source_validates_whole_and_leaves_all_else_to_training(self, tmp_path: Path) -> None:
        write_jsonl(tmp_path / "a.jsonl", *({"text": str(i)} for i in range(10)))
        write_jsonl(tmp_path / "b.jsonl", {"text": "x"}, {"text": "y"})
        train, validation = parts(tmp_path / "a.jsonl", tmp_path / "b.jsonl")
        assert train == [str(i) for i in range(10)]
        assert validation == ["x", "y"]

    @pytest.mark.parametrize(("name", "opening"), [("stories", "Once upon a time"), ("stories-zh", "从前")])
    def test_the_bundled_stories_have_a_validation_split_of_their_own(
        self, name: str, opening: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sources, "STORIES_BYTES", {"train": 30_000, "validation": 10_000})
        train, validation = parts(name)
        assert 30_000 <= sum(len(story.encode()) for story in train) < 40_000
        assert 10_000 <= sum(len(story.encode()) for story in validation) < 20_000
        assert not set(train) & set(validation)
        assert any(story.startswith(opening) for story in train)

    def test_the_bundled_stories_of_two_languages_are_two_sources(self) -> None:
        fingerprints = {source.fingerprint for name in sources.BUNDLED for source in opened(name).values()}
        assert len(fingerprints) == 4


class TestFingerprint:
    def fingerprints(self, *args: Any, **options: Any) -> set[str]:
        return {source.fingerprint for source in opened(*args, **options).values()}

    def test_it_stays_when_nothing_changes(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_text("One.")
        first = self.fingerprints(tmp_path / "a.txt")
        assert self.fingerprints(tmp_path / "a.txt") == first
        assert len(first) == 2

    def test_it_changes_with_the_content_the_time_the_fraction_and_the_field(self, tmp_path: Path) -> None:
        path = write_jsonl(tmp_path / "a.jsonl", {"text": "One."})
        os.utime(path, ns=(0, 1_000))
        seen = [self.fingerprints(path), self.fingerprints(path, val_fraction=0.5)]
        seen.append(self.fingerprints(path, text_field="story"))
        os.utime(path, ns=(0, 2_000))
        seen.append(self.fingerprints(path))
        write_jsonl(path, {"text": "One more."})
        os.utime(path, ns=(0, 2_000))
        seen.append(self.fingerprints(path))
        write_jsonl(tmp_path / "b.jsonl", {"text": "Two."})
        seen.append(self.fingerprints(tmp_path / "*.jsonl"))
        assert len(set(chain.from_iterable(seen))) == 2 * len(seen)

    def test_that_of_ids_changes_with_their_type(self, tmp_path: Path) -> None:
        np.arange(8, dtype="uint16").tofile(tmp_path / "a.bin")
        small = self.fingerprints(tmp_path / "a.bin")
        assert small.isdisjoint(self.fingerprints(tmp_path / "a.bin", bin_dtype="int32"))

    def test_training_data_keep_theirs_when_the_validation_source_changes(self, tmp_path: Path) -> None:
        for name in "abc":
            (tmp_path / f"{name}.txt").write_text("One.")
        first, second = (opened(tmp_path / "a.txt", tmp_path / f"{name}.txt") for name in "bc")
        assert first["train"].fingerprint == second["train"].fingerprint
        assert first["validation"].fingerprint != second["validation"].fingerprint


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to lay out as a data set of the hub, and a cache of its own for `datasets`."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "hub"
    (folder / "data").mkdir(parents=True)
    return folder


class TestHub:
    def test_a_data_set_with_a_validation_split_uses_it(self, hub: Path) -> None:
        write_jsonl(hub / "train.jsonl", {"text": "One."}, {"text": "Two."})
        write_jsonl(hub / "validation.jsonl", {"text": "Three."})
        assert parts(f"hub:{hub}") == (["One.", "Two."], ["Three."])

    def test_a_data_set_without_one_has_a_part_held_out(self, hub: Path) -> None:
        write_jsonl(hub / "data" / "train-00000.jsonl", {"text": "1"}, {"text": "2"})
        write_jsonl(hub / "data" / "train-00001.jsonl", {"text": "3"}, {"text": "4"})
        assert parts(f"hub:{hub}") == (["1", "2", "3"], ["4"])

    def test_as_the_validation_source_it_gives_its_validation_split(self, hub: Path, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_text("Mine.")
        write_jsonl(hub / "train.jsonl", {"story": "One."})
        write_jsonl(hub / "validation.jsonl", {"story": "Two."})
        assert parts(tmp_path / "a.txt", f"hub:{hub}", text_field="story") == (["Mine."], ["Two."])

    def test_its_fingerprint_changes_with_its_files(self, hub: Path) -> None:
        path = write_jsonl(hub / "train.jsonl", {"text": "One."})
        first = opened(f"hub:{hub}")["train"].fingerprint
        assert opened(f"hub:{hub}")["train"].fingerprint == first
        os.utime(path, ns=(0, 10**15))
        assert opened(f"hub:{hub}")["train"].fingerprint != first

    def test_a_missing_text_field_names_the_fields_that_there_are(self, hub: Path) -> None:
        write_jsonl(hub / "train.jsonl", {"story": "One.", "id": 1})
        with pytest.raises(ValueError, match=r"has no field 'text', only \['story', 'id'\]; choose one by --data.text"):
            parts(f"hub:{hub}")

    def test_a_data_set_without_a_training_split_says_which_it_has(self, hub: Path) -> None:
        write_jsonl(hub / "test.jsonl", {"text": "One."})
        with pytest.raises(ValueError, match=r"has no split train, only \['test'\]"):
            opened(f"hub:{hub}")

    @pytest.mark.parametrize("function", ["load_dataset_builder", "get_dataset_split_names"])
    def test_an_unreachable_hub_is_told_in_two_lines(
        self, monkeypatch: pytest.MonkeyPatch, hub: Path, function: str
    ) -> None:
        def fail(*args: object) -> None:
            raise OSError("no route to the hub\nand much more")

        write_jsonl(hub / "train.jsonl", {"text": "One."})
        monkeypatch.setattr(datasets, function, fail)
        with pytest.raises(ConnectionError) as error:
            opened(f"hub:{hub}")
        assert str(error.value).splitlines() == [
            f"the data set {hub} could not be loaded from the Hugging Face hub (no route to the hub)",
            "use a local file instead (--data.source FILE.txt) or the bundled stories (--data.source stories)",
        ]

    def test_tinystories_is_a_data_set_of_the_hub(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(name: str) -> None:
            raise ConnectionError

        monkeypatch.setattr(datasets, "load_dataset_builder", fail)
        with pytest.raises(ConnectionError, match=r"^the data set roneneldan/TinyStories .* \(ConnectionError\)\n"):
            opened("tinystories")

    def test_a_connection_that_breaks_while_reading_is_told_in_the_same_way(
        self, monkeypatch: pytest.MonkeyPatch, hub: Path
    ) -> None:
        def breaking(*args: object, **options: object) -> Iterator[dict[str, str]]:
            yield {"text": "One."}
            raise ConnectionError("gone")

        write_jsonl(hub / "train.jsonl", {"text": "One."})
        monkeypatch.setattr(datasets.DatasetBuilder, "as_streaming_dataset", breaking)
        with pytest.raises(ConnectionError, match=r"could not be loaded from the Hugging Face hub \(gone\)\nuse a"):
            parts(f"hub:{hub}")


class TestErrors:
    @pytest.mark.parametrize("name", ["missing.txt", "*.jsonl", "", "storys"])
    def test_a_missing_file_is_named_with_what_a_source_can_be(self, tmp_path: Path, name: str) -> None:
        expected = (
            r"there is no file .*; "
            r"data.source can be a path, an address or a glob, stories, stories-zh, tinystories, or hub:NAME$"
        )
        with pytest.raises(FileNotFoundError, match=expected):
            opened(tmp_path / name)

    def test_a_missing_validation_source_is_missed_too(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_text("One.")
        with pytest.raises(FileNotFoundError, match=r"there is no file .*b.txt"):
            opened(tmp_path / "a.txt", tmp_path / "b.txt")

    @pytest.mark.parametrize("content", [b"", b" \n\t\n", b"<|endoftext|>\n<|endoftext|>"])
    def test_a_text_file_without_text_has_no_documents(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "a.txt").write_bytes(content)
        assert parts(tmp_path / "a.txt") == ([], [])

    @pytest.mark.parametrize(
        ("content", "at", "byte"),
        [
            (b"abc\xff", 3, "ff"),
            (b"<|endoftext|>" * 3 + b"ab\xc3(", 41, "c3"),
            (("🦊" * 10 + END_OF_TEXT).encode() + b"\x80 <|endoftext|>", 53, "80"),
            (b"abc\xf0\x9f", 3, "f0"),
        ],
    )
    @pytest.mark.parametrize("block_bytes", [5, 2**20])
    def test_text_that_is_not_utf8_is_refused_by_its_byte(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, at: int, byte: str, block_bytes: int
    ) -> None:
        monkeypatch.setattr(sources, "BLOCK_BYTES", block_bytes)
        (tmp_path / "a.txt").write_bytes(content)
        assert content[at] == int(byte, 16)
        with pytest.raises(ValueError, match=rf"a.txt is not UTF-8: byte {at} is 0x{byte}$"):
            parts(tmp_path / "a.txt")

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            (b"{oops}", r"a.jsonl, line 3 is not JSON: Expecting property name"),
            (b"\xff\xfe\xfd", r"a.jsonl, line 3 is not JSON: "),
            (b'["One."]', r"a.jsonl, line 3 is not a JSON object$"),
            (b'{"story": "One.", "id": 1}', r"a.jsonl, line 3 has no field 'text', only \['story', 'id'\]; choose one"),
            (b'{"text": null}', r"a.jsonl, line 3: text is None, not a text$"),
            (b'{"text": 5}', r"a.jsonl, line 3: text is 5, not a text$"),
            (b'{"text": "a \\ud800 b"}', r"a.jsonl, line 3: text is not Unicode text: surrogates not allowed$"),
        ],
        ids=ascii,
    )
    def test_a_bad_line_of_jsonl_is_named(self, tmp_path: Path, line: bytes, message: str) -> None:
        (tmp_path / "a.jsonl").write_bytes(b'{"text": "One."}\n\n' + line + b"\n")
        with pytest.raises(ValueError, match=message):
            parts(tmp_path / "a.jsonl")

    @pytest.mark.parametrize("content", [b"", b"junk", b"PAR1" * 10])
    def test_a_file_that_is_no_parquet_is_named(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "a.parquet").write_bytes(content)
        with pytest.raises(ValueError, match=r"a.parquet is not a parquet file: "):
            parts(tmp_path / "a.parquet")

    def test_parquet_without_the_text_field_names_its_fields(self, tmp_path: Path) -> None:
        write_parquet(tmp_path / "a.parquet", story=["One."], id=[1])
        with pytest.raises(ValueError, match=r"a.parquet has no field 'text', only \['story', 'id'\]; choose one"):
            parts(tmp_path / "a.parquet")

    def test_parquet_with_an_empty_text_is_refused(self, tmp_path: Path) -> None:
        write_parquet(tmp_path / "a.parquet", text=["One.", None])
        with pytest.raises(ValueError, match=r"a.parquet: text is None, not a text$"):
            parts(tmp_path / "a.parquet")

    @pytest.mark.parametrize(
        ("names", "kinds"),
        [
            (["a.txt", "b.npy"], r"\.npy, \.txt"),
            (["a.csv"], r"\.csv"),
            (["a"], r"\(no suffix\)"),
            (["a.txt", "b"], r"\(no suffix\), \.txt"),
        ],
    )
    def test_mixed_and_unknown_kinds_of_file_are_refused(self, tmp_path: Path, names: list[str], kinds: str) -> None:
        for name in names:
            (tmp_path / name).write_text("One.")
        with pytest.raises(ValueError, match=rf"\* has files of kind {kinds}; a source is of text \(.txt, .jsonl"):
            opened(tmp_path / "*")

    def test_a_pickle_in_npy_is_refused_unopened(self, tmp_path: Path) -> None:
        class Trap:
            def __reduce__(self) -> tuple[Any, ...]:
                return (tmp_path / "sprung").touch, ()

        np.save(tmp_path / "a.npy", np.array([Trap()], dtype=object), allow_pickle=True)
        with pytest.raises(ValueError, match=r"a.npy is not a file of token ids: .*Python objects"):
            parts(tmp_path / "a.npy")
        assert not (tmp_path / "sprung").exists()

    @pytest.mark.parametrize("name", ["a.npy", "a.bin"])
    def test_an_empty_file_of_ids_is_refused(self, tmp_path: Path, name: str) -> None:
        (tmp_path / name).touch()
        with pytest.raises(ValueError, match=rf"{name} is empty$"):
            parts(tmp_path / name)

    @pytest.mark.parametrize(
        ("name", "content"),
        [("a.npy", b"junk"), ("a.npy", b"PK\x03\x04 an .npz under the wrong name"), ("a.bin", b"odd")],
        ids=ascii,
    )
    def test_a_file_that_holds_no_ids_is_named(self, tmp_path: Path, name: str, content: bytes) -> None:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name} is not a file of token ids: "):
            parts(tmp_path / name)

    @pytest.mark.parametrize(
        ("array", "told"),
        [
            (np.array([0.5]), r"float64 of shape \(1,\)"),
            (np.zeros((2, 3), dtype=int), r"int64 of shape \(2, 3\)"),
            (np.array(["a"]), r"<U1 of shape \(1,\)"),
            (np.array([True]), r"bool of shape \(1,\)"),
        ],
        ids=["floats", "a matrix", "letters", "truths"],
    )
    def test_npy_that_is_no_row_of_integers_is_refused(self, tmp_path: Path, array: Any, told: str) -> None:
        np.save(tmp_path / "a.npy", array)
        with pytest.raises(ValueError, match=rf"a.npy holds {told}; token ids are a row of integers$"):
            parts(tmp_path / "a.npy")
