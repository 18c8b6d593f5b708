"""Sources: the documents of each split, fingerprints, datasets on the hub, URLs, errors."""

import gzip
import json
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
from lit_lm.data.sources import IdSource, Source, Split, StoreSource, TextSource, absolute, is_remote, open_sources
from lit_lm.files import digest


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


class TestHeldOutWhenStreaming:
    def test_whole_shards_are_held_out_from_many_small_ones(self, tmp_path: Path) -> None:
        for number in range(45):
            (tmp_path / f"{number:02}.txt").write_text(f"Story {number}.")
        train, validation = parts(tmp_path, streaming=True, val_fraction=0.1)
        assert validation == [f"Story {number}." for number in (9, 19, 29, 39)]
        assert sorted(train + validation) == sorted(f"Story {number}." for number in range(45))

    def test_they_are_among_the_first_shards(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for number in range(10):
            (tmp_path / f"{number}.txt").write_text(f"Story {number}.")
        monkeypatch.setattr(sources, "SHARD_BYTES", 40)  # five files
        assert parts(tmp_path, streaming=True, val_fraction=0.5)[1] == ["Story 1.", "Story 3."]

    @pytest.mark.parametrize(("number", "size"), [(3, 10), (10, 4096)])
    def test_few_or_larger_shards_hold_out_a_part_of_the_first(self, tmp_path: Path, number: int, size: int) -> None:
        for n in range(number):
            write_jsonl(tmp_path / f"{n}.jsonl", *({"text": f"{n} {i} {'x' * size}"} for i in range(4)))
        validation = parts(tmp_path, streaming=True)[1]
        assert [text.split()[:2] for text in validation] == [["0", "3"]]

    def test_the_fingerprint_of_a_part_of_the_first_shard_is_that_of_older_checkpoints(self, tmp_path: Path) -> None:
        path = write_jsonl(tmp_path / "a.jsonl", {"text": "One."}, {"text": "Two."})
        os.utime(path, (1, 1))
        stats = json.dumps([[str(path), path.stat().st_size, "1.0"]])
        whole = digest("text", stats, "text", str(filesystem.SHARD_BYTES), "True")
        train = opened(path, streaming=True)["train"]
        assert isinstance(train, TextSource)
        assert train.fingerprint == digest(whole, "train", "0.25", "True")


class TestFolder:
    def test_it_has_the_documents_of_its_files(self, tmp_path: Path) -> None:
        (tmp_path / "b").mkdir()
        (tmp_path / "a.txt").write_text("One.")
        (tmp_path / "README.md").write_text("A description.")
        (tmp_path / "info.json").write_text('{"description": 1}')
        write_jsonl(tmp_path / "b" / "a.jsonl", {"text": "Two."})
        (tmp_path / "b" / "a.ndjson.gz").write_bytes(gzip.compress(b'{"text": "Three."}'))
        assert contents(opened(tmp_path, tmp_path)["train"]) == ["One.", "Two.", "Three."]

    def test_it_may_have_token_ids(self, tmp_path: Path) -> None:
        np.save(tmp_path / "a.npy", np.arange(4))
        assert contents(opened(tmp_path, tmp_path)["train"]) == [0, 1, 2, 3]
        (tmp_path / "a.txt").write_text("One.")
        with pytest.raises(ValueError, match=r"has files of type \.npy, \.txt; a source must be text .* not both"):
            opened(tmp_path)

    def test_one_without_known_files_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "a.json").write_text("{}")
        with pytest.raises(
            ValueError, match=r"the folder .* has no files of type \.txt, .*; pass others as '.*/\*\.json'"
        ):
            opened(tmp_path)

    @pytest.mark.parametrize("folder", ["", "train"])
    def test_an_unfinished_output_or_a_single_store_is_not_read_as_ids(self, tmp_path: Path, folder: str) -> None:
        (tmp_path / "train").mkdir()
        (tmp_path / "train" / "tokens-00000.bin").write_bytes(bytes(100))
        with pytest.raises(
            ValueError, match=r"contains token stores, but no train/meta\.json, so it is not a finished"
        ):
            opened(tmp_path / folder)

    def test_no_name_is_not_the_working_directory(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "a.txt").write_text("One.")
        assert absolute("") == ""
        with pytest.raises(FileNotFoundError, match=r"^there is no file ; data\.source can be"):
            opened("")


class TestFingerprint:
    def fingerprints(self, *args: Any, **options: Any) -> set[str]:
        found = opened(*args, **options).values()
        assert not any(isinstance(source, StoreSource) for source in found)
        return {source.fingerprint + source.content for source in found}  # type: ignore[union-attr]

    @pytest.mark.parametrize("name", ["a.txt", "a.npy"])
    def test_it_changes_with_content_of_the_same_size_and_time(self, tmp_path: Path, name: str) -> None:
        seen = []
        for number in (1, 2):
            if name == "a.npy":
                np.save(tmp_path / name, np.full(40, number))
            else:
                (tmp_path / name).write_text(f"Text number {number}.")
            os.utime(tmp_path / name, ns=(0, 1_000))
            seen.append(self.fingerprints(tmp_path / name, streaming=name == "a.txt"))
        assert seen[0].isdisjoint(seen[1])

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

    def test_the_fingerprint_changes_with_files_of_the_same_size_and_time(self, hub: Path) -> None:
        seen = set()
        for number in (1, 2):
            os.utime(write_jsonl(hub / "train.jsonl", {"text": f"{number}."}), ns=(0, 10**15))
            train = opened(f"hub:{hub}")["train"]
            assert isinstance(train, TextSource)
            seen.add(train.content)
        assert len(seen) == 2

    def test_a_configuration_is_chosen_by_its_name(self, hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        configs = [
            "---", "configs:",
            "- config_name: en", "  data_files: en.jsonl",
            "- config_name: de", "  data_files: de.jsonl",
            "---",
        ]  # fmt: skip
        (hub / "README.md").write_text("\n".join(configs))
        write_jsonl(hub / "en.jsonl", {"text": "One."}, {"text": "Two."})
        write_jsonl(hub / "de.jsonl", {"text": "Eins."}, {"text": "Zwei."})
        assert parts(f"hub:{hub}:en") == (["One."], ["Two."])
        assert parts(f"hub:{hub}:de") == (["Eins."], ["Zwei."])
        for name in (f"hub:{hub}", f"hub:{hub}:fr"):
            with pytest.raises(ValueError, match=r"has the configurations en, de; choose one, as in hub:/.*/hub:en$"):
                opened(name)
        monkeypatch.chdir(hub.parent)
        assert absolute("hub:hub:en") == f"hub:{hub}:en"
        assert absolute("hub:me/mine:en") == "hub:me/mine:en"
        assert [is_remote(name) for name in ("hub:hub:en", "hub:hub", "hub:me/mine:en")] == [False, False, True]

    def test_the_name_of_a_configuration_is_passed_to_the_hub(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*args: object) -> None:
            raise ConnectionError(str(args))

        monkeypatch.setattr(datasets, "load_dataset_builder", fail)
        with pytest.raises(ConnectionError, match=r"\('me/mine', 'en'\)"):
            opened("hub:me/mine:en")
        with pytest.raises(ConnectionError, match=r"\('me/mine', None\)"):
            opened("hub:me/mine")

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
        def fail(*_: object) -> None:
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
