"""Sources: the documents of each split, fingerprints, datasets on the hub, URLs, errors."""

import os
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import datasets
import fsspec
import numpy as np
import pytest
from conftest import joined, write_jsonl
from hypothesis import given
from hypothesis import strategies as st

from lit_lm.data import filesystem, readers, sources
from lit_lm.data.readers import BadDocuments
from lit_lm.data.sources import IdSource, Source, Split, StoreSource, TextSource, absolute, open_sources


def opened(source: object, val_source: object = None, **options: Any) -> dict[Split, Source]:
    defaults: dict[str, Any] = {"val_fraction": 0.25, "text_field": "text", "bin_dtype": "uint16"}
    return open_sources(str(source), None if val_source is None else str(val_source), **{**defaults, **options})


def contents(source: Source, bad: BadDocuments | None = None) -> list[Any]:
    """The documents of a text source, or the ids of an id source."""
    if isinstance(source, TextSource):
        return joined(part for shard in source.shards for part in shard(bad or BadDocuments()))
    assert isinstance(source, IdSource)
    return [int(token) for shard in source.shards for block in shard.blocks() for token in block]


def parts(*args: Any, **options: Any) -> tuple[list[Any], list[Any]]:
    """The contents of the train and validation sources."""
    both = opened(*args, **options)
    return contents(both["train"]), contents(both["validation"])


def test_a_source_can_be_read_several_times(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", *({"text": str(i)} for i in range(10)))
    train = opened(tmp_path / "a.jsonl")["train"]
    assert contents(train) == contents(train) != []


@pytest.mark.parametrize("name", ["stories", "stories-zh", "tinystories", "hub:me/mine", "s3://bucket/a.txt"])
def test_names_that_are_not_paths_are_unchanged(name: str) -> None:
    assert absolute(name) == name


class TestHeldOut:
    @pytest.mark.parametrize(
        ("fraction", "number", "held_out"),
        [
            (0.25, 8, [3, 7]),
            (0.25, 10, [3, 7]),
            (0.5, 5, [1, 3]),
            (0.05, 41, [19, 39]),
            (0.05, 20, [19]),
            (0.05, 19, [18]),  # fewer than k: the last one
            (0.05, 2, [1]),
        ],
    )
    def test_every_kth_document_or_the_last_of_fewer_is_held_out(
        self, tmp_path: Path, fraction: float, number: int, held_out: list[int]
    ) -> None:
        write_jsonl(tmp_path / "a.jsonl", *({"text": str(i)} for i in range(number)))
        train, validation = parts(tmp_path / "a.jsonl", val_fraction=fraction)
        assert validation == [str(i) for i in held_out]
        assert train == [str(i) for i in range(number) if i not in held_out]

    @pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5])
    def test_the_end_of_a_single_document_is_held_out(self, tmp_path: Path, fraction: float) -> None:
        text = "".join(chr(ord("a") + i % 26) for i in range(100))
        (tmp_path / "a.txt").write_text(text)
        train, validation = parts(tmp_path / "a.txt", val_fraction=fraction)
        assert len(validation[0]) == 100 * fraction
        assert train + validation == [text[: -len(validation[0])], text[-len(validation[0]) :]]

    @pytest.mark.parametrize("part_bytes", [5, 17, 100])
    def test_the_end_of_a_single_document_in_parts_is_held_out(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part_bytes: int
    ) -> None:
        monkeypatch.setattr(readers, "PART_BYTES", part_bytes)
        monkeypatch.setattr(readers, "BLOCK_BYTES", 10)
        text = "one two\nthree 🦊 " * 10
        (tmp_path / "a.txt").write_text(text)
        train, validation = parts(tmp_path / "a.txt")
        assert train + validation == [text[: int(len(text) * 0.75)], text[int(len(text) * 0.75) :]]

    @given(st.integers(0, 30), st.integers(50, 900), st.sampled_from([0.05, 0.25, 0.5]))
    def test_every_document_is_in_one_split_for_any_shards(
        self, tmp_path_factory: pytest.TempPathFactory, number: int, shard_bytes: int, fraction: float
    ) -> None:
        texts = [f"{i} {i * i * 'a'}" for i in range(number)]
        path = write_jsonl(tmp_path_factory.getbasetemp() / "parts.jsonl", *({"text": text} for text in texts))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(filesystem, "SHARD_BYTES", shard_bytes)
            train, validation = opened(path, val_fraction=fraction).values()
        assert isinstance(train, TextSource)
        assert isinstance(validation, TextSource)
        for train_shard, validation_shard in zip(train.shards, validation.shards, strict=True):
            rest, held_out = (joined(shard(BadDocuments())) for shard in (train_shard, validation_shard))
            if len(rest) + len(held_out) == 2 and "".join(rest + held_out) in texts:
                rest, held_out = ["".join(rest + held_out)], []  # one document: its end is held out
            assert held_out == [] or len(held_out) == max(1, (len(rest) + len(held_out)) // round(1 / fraction))
            assert sorted(rest + held_out, key=texts.index) == texts[: len(rest + held_out)]
            del texts[: len(rest + held_out)]
        assert texts == []

    @pytest.mark.parametrize("number", [2, 30])
    def test_bad_documents_are_counted_in_the_train_split_only(self, tmp_path: Path, number: int) -> None:
        rows = chain.from_iterable(({"text": str(i)}, {"text": None}) for i in range(number))
        source = opened(write_jsonl(tmp_path / "a.jsonl", *rows))
        counts = {split: BadDocuments(skip=True) for split in source}
        found = [contents(source[split], counts[split]) for split in source]
        assert sorted(chain.from_iterable(found), key=int) == [str(i) for i in range(number)]
        assert {split: bad.count for split, bad in counts.items()} == {"train": number, "validation": 0}
        assert counts["train"].first.endswith("a.jsonl, line 2: text is not a string: None")

    def test_with_a_validation_source_no_documents_are_held_out(self, tmp_path: Path) -> None:
        write_jsonl(tmp_path / "a.jsonl", *({"text": str(i)} for i in range(10)))
        write_jsonl(tmp_path / "b.jsonl", {"text": "x"}, {"text": "y"})
        train, validation = parts(tmp_path / "a.jsonl", tmp_path / "b.jsonl")
        assert train == [str(i) for i in range(10)]
        assert validation == ["x", "y"]

    @pytest.mark.parametrize(("name", "opening"), [("stories", "Once upon a time"), ("stories-zh", "从前")])
    def test_the_bundled_stories_have_their_own_validation_split(
        self, name: str, opening: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sources, "STORIES_BYTES", {"train": 30_000, "validation": 10_000})
        train, validation = parts(name)
        assert 30_000 <= sum(len(story.encode()) for story in train) < 40_000
        assert 10_000 <= sum(len(story.encode()) for story in validation) < 20_000
        assert not set(train) & set(validation)
        assert any(story.startswith(opening) for story in train)

    def test_the_bundled_stories_of_two_languages_have_different_fingerprints(self) -> None:
        fingerprints = {source.fingerprint for name in sources.BUNDLED for source in opened(name).values()}
        assert len(fingerprints) == 4


class TestFingerprint:
    def fingerprints(self, *args: Any, **options: Any) -> set[str]:
        return {source.fingerprint for source in opened(*args, **options).values()}

    def test_it_is_the_same_when_nothing_changes(self, tmp_path: Path) -> None:
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

    def test_it_changes_with_the_type_of_the_ids(self, tmp_path: Path) -> None:
        np.arange(8, dtype="uint16").tofile(tmp_path / "a.bin")
        small = self.fingerprints(tmp_path / "a.bin")
        assert small.isdisjoint(self.fingerprints(tmp_path / "a.bin", bin_dtype="int32"))

    def test_that_of_training_does_not_depend_on_the_validation_source(self, tmp_path: Path) -> None:
        for name in "abc":
            (tmp_path / f"{name}.txt").write_text("One.")
        first, second = (opened(tmp_path / "a.txt", tmp_path / f"{name}.txt") for name in "bc")
        assert first["train"].fingerprint == second["train"].fingerprint
        assert first["validation"].fingerprint != second["validation"].fingerprint


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for a dataset in the layout of the hub, and a temporary cache for `datasets`."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "hub"
    (folder / "data").mkdir(parents=True)
    return folder


class TestHub:
    def test_a_validation_split_is_used(self, hub: Path) -> None:
        write_jsonl(hub / "train.jsonl", {"text": "One."}, {"text": "Two."})
        write_jsonl(hub / "validation.jsonl", {"text": "Three."})
        assert parts(f"hub:{hub}") == (["One.", "Two."], ["Three."])

    def test_without_a_validation_split_documents_are_held_out(self, hub: Path) -> None:
        write_jsonl(hub / "data" / "train-00000.jsonl", {"text": "1"}, {"text": "2"})
        write_jsonl(hub / "data" / "train-00001.jsonl", {"text": "3"}, {"text": "4"})
        assert parts(f"hub:{hub}") == (["1", "3"], ["2", "4"])  # held out from each file

    def test_a_validation_source_uses_its_validation_split(self, hub: Path, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_text("Mine.")
        write_jsonl(hub / "train.jsonl", {"story": "One."})
        write_jsonl(hub / "validation.jsonl", {"story": "Two."})
        assert parts(tmp_path / "a.txt", f"hub:{hub}", text_field="story") == (["Mine."], ["Two."])

    def test_the_fingerprint_changes_with_the_files(self, hub: Path) -> None:
        path = write_jsonl(hub / "train.jsonl", {"text": "One."})
        first = opened(f"hub:{hub}")["train"].fingerprint
        assert opened(f"hub:{hub}")["train"].fingerprint == first
        os.utime(path, ns=(0, 10**15))
        assert opened(f"hub:{hub}")["train"].fingerprint != first

    def test_a_missing_text_field_is_reported_with_the_fields(self, hub: Path) -> None:
        write_jsonl(hub / "train.jsonl", {"story": "One.", "id": 1})
        with pytest.raises(
            ValueError, match=r"row 1: no field 'text', only \['story', 'id'\]; choose one with --data.text"
        ):
            parts(f"hub:{hub}")

    def test_a_missing_train_split_is_reported_with_the_splits(self, hub: Path) -> None:
        write_jsonl(hub / "test.jsonl", {"text": "One."})
        with pytest.raises(ValueError, match=r"has no train split, only \['test'\]"):
            opened(f"hub:{hub}")

    @pytest.mark.parametrize("function", ["load_dataset_builder", "get_dataset_split_names"])
    def test_an_unreachable_hub_is_reported_in_two_lines(
        self, monkeypatch: pytest.MonkeyPatch, hub: Path, function: str
    ) -> None:
        def fail(*args: object) -> None:
            raise OSError("no route to the hub\nand much more")

        write_jsonl(hub / "train.jsonl", {"text": "One."})
        monkeypatch.setattr(datasets, function, fail)
        with pytest.raises(ConnectionError) as error:
            opened(f"hub:{hub}")
        assert str(error.value).splitlines() == [
            f"the dataset {hub} could not be loaded from the Hugging Face hub (no route to the hub)",
            "use a local file instead (--data.source FILE.txt) or the bundled stories (--data.source stories)",
        ]

    def test_tinystories_is_loaded_from_the_hub(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(name: str) -> None:
            raise ConnectionError

        monkeypatch.setattr(datasets, "load_dataset_builder", fail)
        with pytest.raises(ConnectionError, match=r"^the dataset roneneldan/TinyStories .* \(ConnectionError\)\n"):
            opened("tinystories")

    def test_a_connection_that_fails_while_reading_is_reported(
        self, monkeypatch: pytest.MonkeyPatch, hub: Path
    ) -> None:
        def failing(*_: object, **__: object) -> Iterator[dict[str, list[str]]]:
            yield {"text": ["One."]}
            raise ConnectionError("gone")

        write_jsonl(hub / "train.jsonl", {"text": "One."})
        monkeypatch.setattr(datasets.IterableDataset, "iter", failing)
        with pytest.raises(ConnectionError, match=r"could not be loaded from the Hugging Face hub \(gone\)\nuse a"):
            parts(f"hub:{hub}")


class TestAddresses:
    def test_files_at_an_address_are_read_like_local_files(self) -> None:
        fs = fsspec.filesystem("memory")
        for number in range(4):
            fs.pipe_file(f"/sources/{number}.jsonl", b'{"text": "One %d."}\n{"text": "Two."}\n' % number)
        train, validation = parts("memory://sources/*.jsonl")
        assert train + validation == [
            *("One 0.", "Two.", "One 1.", "One 2.", "Two.", "One 3."), *("Two.", "Two.")
        ]  # fmt: skip

    def test_the_fingerprint_changes_with_the_file_at_an_address(self) -> None:
        fs = fsspec.filesystem("memory")
        fingerprints = set()
        for _ in range(2):
            fs.pipe_file("/sources/a.txt", b"One.")
            fingerprints.add(opened("memory://sources/a.txt")["train"].fingerprint)
        assert len(fingerprints) == 2

    @pytest.mark.parametrize("place", ["memory://prepared", "{folder}"])
    def test_a_folder_with_token_stores_is_a_source(self, place: str, tmp_path: Path) -> None:
        place = place.format(folder=tmp_path)
        fs, path = fsspec.core.url_to_fs(place)
        for split in ("train", "validation"):
            fs.makedirs(f"{path}/{split}", exist_ok=True)
            fs.pipe_file(f"{path}/{split}/meta.json", split.encode())
        assert opened(place) == {split: StoreSource(f"{place}/{split}") for split in ("train", "validation")}


class TestErrors:
    @pytest.mark.parametrize("name", ["missing.txt", "*.jsonl", "", "storys"])
    def test_a_missing_file_is_reported_with_the_possible_sources(self, tmp_path: Path, name: str) -> None:
        known = "a path, a URL or a glob, stories, stories-zh, tinystories, or hub:NAME"
        with pytest.raises(FileNotFoundError, match=rf"there is no file .*; data.source can be {known}$"):
            opened(tmp_path / name)

    def test_a_missing_validation_source_is_reported(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_text("One.")
        with pytest.raises(FileNotFoundError, match=r"there is no file .*b.txt"):
            opened(tmp_path / "a.txt", tmp_path / "b.txt")

    def test_a_text_file_without_text_has_no_documents(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_bytes(b" \n\t\n")
        assert parts(tmp_path / "a.txt") == ([], [])

    @pytest.mark.parametrize(
        ("names", "kinds"),
        [
            (["a.txt", "b.npy"], r"\.npy, \.txt"),
            (["a.csv"], r"\.csv"),
            (["a"], r"\(no suffix\)"),
            (["a.gz"], r"\(no suffix\)"),
            (["a.txt", "b"], r"\(no suffix\), \.txt"),
        ],
    )
    def test_mixed_and_unknown_file_types_are_refused(self, tmp_path: Path, names: list[str], kinds: str) -> None:
        for name in names:
            (tmp_path / name).write_text("One.")
        with pytest.raises(ValueError, match=rf"\* has files of type {kinds}; a source must be text \(.txt, .jsonl"):
            opened(tmp_path / "*")
