"""Tokenizers in other formats, loaded with the ids of their own libraries for every text.

tokenizer.json                  the format of the library `tokenizers`
vocab.json and merges.txt       GPT-2's format
NAME.tiktoken                   tiktoken's ranks: on each line, a token in base64 and its rank. The file contains
                                neither the pre-tokenization pattern nor the special tokens; ENCODINGS has those of
                                the known names, and other names are read with GPT-2's pattern if it suits their tokens
tokenizer.model                 of Llama 3 and 4: also ranks
NAME.model                      SentencePiece; encoded by the package sentencepiece itself, because `tokenizers` can
                                reproduce neither its normalization nor its order of merges with equal scores
NAME.pkl                        nanoGPT's meta.pkl: the id of each character

All others are converted to `tokenizers`.
"""

import base64
import binascii
import json
import pickle
import pickletools
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from lit_lm.tokenizer.train import END_OF_TEXT

IN_A_FOLDER = ("tokenizer.json", "vocab.json", "tokenizer.model")
SENTENCEPIECE = "sentencepiece"
"""Key of the JSON in which a checkpoint contains a SentencePiece model, in base64."""
UNREACHABLE = -1e4
"""Earlier versions added this to the lowest score, for pieces that text must not be encoded to."""
GPT2_CLASSES = ("GPT2Tokenizer", "RobertaTokenizer", "PreTrainedTokenizer", "TokenizersBackend")
"""Values of tokenizer_class, possibly followed by Fast, that do not imply another format than GPT-2's."""

CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
CL100K = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s+\z|\s*[\r\n]|\s+(?!\S)|\s"
)
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+" + CONTRACTIONS + "?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*" + CONTRACTIONS + "?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3 = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN = LLAMA3.replace("{1,3}", "")


class Encoding(NamedTuple):
    """What a file of ranks does not contain."""

    pattern: str | None = None
    """Pre-tokenization pattern; None: GPT-2's."""
    end_id: int | None = None
    """Id of END_OF_TEXT; None: the one after the last rank."""
    nfc: bool = False
    """Whether text is normalized to NFC."""


ENCODINGS = {
    "gpt2": Encoding(),
    "multilingual": Encoding(),  # Whisper's
    "r50k_base": Encoding(),
    "p50k_base": Encoding(end_id=50256),
    "p50k_edit": Encoding(end_id=50256),
    "cl100k_base": Encoding(CL100K, 100257),
    "o200k_base": Encoding(O200K, 199999),
    "o200k_harmony": Encoding(O200K, 199999),
    "qwen": Encoding(QWEN, 151643, nfc=True),
}
PLAIN_OPCODES = {
    "PROTO", "FRAME", "STOP", "MARK", "EMPTY_DICT", "DICT", "SETITEM", "SETITEMS", "MEMOIZE", "BINPUT", "BINGET",
    "BININT", "BININT1", "BININT2", "SHORT_BINUNICODE", "BINUNICODE",
}  # fmt: skip
"""Instructions of a pickle that make dictionaries of words and numbers; others run code or reserve memory."""
LLAMA4_RANKS = 200_000
"""Number of ranks from which on a tokenizer.model is Llama 4's. (Llama 3's has 128,000.)"""


def read(path: Path, merges: Path | None = None) -> tokenizers.Tokenizer | bytes:
    """Read the tokenizer in a file or folder, in one of the formats above.

    Args:
        path: The file or folder.
        merges: File of merges; `path` is then GPT-2's vocab.json. The two may have any names.

    Returns:
        A tokenizer of the library `tokenizers`, or the content of a SentencePiece model.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it cannot be read, or not be reproduced exactly.
    """
    if merges is not None:
        if missing := [file for file in (path, merges) if not file.is_file()]:
            raise FileNotFoundError(f"there is no file {missing[0]}; a vocab.json and a merges.txt are needed")
        return _checked(path, partial(_gpt2, merges=merges))
    if path.is_dir():
        found = [path / name for name in IN_A_FOLDER if (path / name).is_file()] or sorted(path.glob("*.tiktoken"))
        path = found[0] if found else path
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no tokenizer at {path}; pass the path of a tokenizer.json, a folder with vocab.json and "
            "merges.txt, a SentencePiece .model, a .tiktoken file or nanoGPT's meta.pkl"
        )
    reader: Callable[[Path], tokenizers.Tokenizer | bytes]
    reader = {".tiktoken": _tiktoken, ".pkl": _characters}.get(path.suffix, _json)
    if ".model" in path.suffixes:  # Mistral's end with .model.v3
        reader = _model
    elif path.name == "vocab.json":
        reader = _gpt2
    return _checked(path, reader)


def _checked(path: Path, reader: Callable[[Path], tokenizers.Tokenizer | bytes]) -> tokenizers.Tokenizer | bytes:
    try:
        return reader(path)
    except ValueError as error:
        raise ValueError(f"{path} cannot be used as a tokenizer: {error}") from None


def parse(text: str) -> tokenizers.Tokenizer | bytes:
    """Read the text of a tokenizer.json, or of what stands for a SentencePiece model in a checkpoint; as `read`.

    Raises:
        ValueError: if the text is invalid.
    """
    try:
        content = json.loads(text)
        if SENTENCEPIECE in content:
            return base64.b64decode(content[SENTENCEPIECE], validate=True)
        added = {token["content"]: token for token in content["added_tokens"]}
        backend = tokenizers.Tokenizer.from_str(text)
        if content["model"]["type"] == "Unigram":
            _cut_names(backend, content, {name for name, token in added.items() if token["special"]})
    except Exception as error:  # the library raises nothing more precise
        raise ValueError(f"not a valid tokenizer.json ({error})") from None
    for name, token in added.items():
        if (number := backend.token_to_id(name)) != token["id"]:
            raise ValueError(
                f"its added token {name} has the id {token['id']}, but the library tokenizers gives it {number}, "
                "the size of its vocabulary; correct the file"
            )
    return backend


def _json(path: Path) -> tokenizers.Tokenizer | bytes:
    try:
        return parse(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise ValueError("it is not text; pass the tokenizer.json or tokenizer.model that it was made from") from None


def _gpt2(path: Path, merges: Path | None = None) -> tokenizers.Tokenizer:
    merges = merges or path.with_name("merges.txt")
    if not merges.is_file():
        raise ValueError("there is no merges.txt in its folder")
    try:
        model = models.BPE.from_file(str(path), str(merges))
        vocab = json.loads(path.read_text(encoding="utf-8"))
    except Exception as error:  # the library raises nothing more precise
        raise ValueError(f"not in GPT-2's format ({error})") from None
    if missing := [letter for letter in byte_letters().values() if letter not in vocab]:
        raise ValueError(
            f"not in GPT-2's format (there is no token for the byte {missing[0]!r}); export a tokenizer.json"
        )
    if any(token.endswith("</w>") for token in vocab):  # as in GPT-1 and CLIP, which mark the end of a word
        raise ValueError("its tokens end with </w>, which is not GPT-2's format; export a tokenizer.json")
    options = _optional(path.with_name("tokenizer_config.json"))
    name = str(options.get("tokenizer_class") or GPT2_CLASSES[0])
    if name.removesuffix("Fast") not in GPT2_CLASSES:
        raise ValueError(f"its tokenizer_class is {name}, which is not GPT-2's format; export a tokenizer.json")
    backend = _byte_level(model, None, add_prefix_space=bool(options.get("add_prefix_space", False)))
    merged = {"".join(line.split()) for line in merges.read_text(encoding="utf-8").splitlines()}
    bytes_ = {letter: byte for byte, letter in byte_letters().items()}
    _check_words(
        [bytes(map(bytes_.__getitem__, token)) for token in merged & vocab.keys() if bytes_.keys() >= {*token}]
    )
    _add_tokens(backend, path)
    return backend


def _optional(path: Path) -> dict[str, Any]:
    """Mapping in a JSON file; empty if there is none."""
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} is not a mapping")
    return content


def _add_tokens(backend: tokenizers.Tokenizer, path: Path) -> None:
    """Add the tokens in added_tokens.json and tokenizer_config.json, which are beside `path`."""
    added: dict[str, tuple[int, bool]] = {}
    try:
        for name, number in _optional(path.with_name("added_tokens.json")).items():
            added[name] = int(number), bool(re.fullmatch(r"<.*>|\[.*\]", name))
        for number, token in _optional(path.with_name("tokenizer_config.json")).get("added_tokens_decoder", {}).items():
            added[str(token["content"])] = int(number), bool(token["special"])
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"its added tokens are not in GPT-2's format ({error!r})") from None
    for name, (number, special) in sorted(added.items(), key=lambda item: item[1]):
        backend.add_tokens([AddedToken(name, special=special, normalized=False)])
        if backend.token_to_id(name) != number:
            raise ValueError(f"its added token {name} has the id {number}, which does not follow the vocabulary")


def _check_words(tokens: list[bytes]) -> None:
    """Check that the tokens can result from GPT-2's pre-tokenization pattern: each is within a word.

    Raises:
        ValueError: otherwise.
    """
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    for token in tokens:
        text = token.decode(errors="ignore")
        if text.encode() == token and len(words.pre_tokenize_str(text)) > 1:
            raise ValueError(
                f"its token {text!r} is not a word of GPT-2's pattern, so it is for another; export a tokenizer.json"
                f", or name it as its library does, if that is one of {', '.join(ENCODINGS)} (.tiktoken)"
            )


def _byte_level(model: models.BPE, pattern: str | None, *, add_prefix_space: bool = False) -> tokenizers.Tokenizer:
    """A byte-level tokenizer with this pre-tokenization pattern; None: GPT-2's pattern."""
    backend = tokenizers.Tokenizer(model)
    letters = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space, use_regex=pattern is None)
    words = [pre_tokenizers.Split(Regex(pattern), "isolated")] if pattern else []
    backend.pre_tokenizer = pre_tokenizers.Sequence([*words, letters])
    backend.decoder = decoders.ByteLevel()
    return backend


def _model(path: Path) -> tokenizers.Tokenizer | bytes:
    content = path.read_bytes()
    if not re.match(rb"[A-Za-z0-9+/]+=* \d+\r?\n", content):
        return content
    ranks = _ranks(content)
    pattern = O200K if len(ranks) >= LLAMA4_RANKS else LLAMA3
    return _from_ranks(ranks, Encoding(pattern), ["<|begin_of_text|>", "<|end_of_text|>"])


def _tiktoken(path: Path) -> tokenizers.Tokenizer:
    ranks = _ranks(path.read_bytes())
    encoding = ENCODINGS.get(path.stem.lower())
    if encoding is None:
        _check_words(list(ranks))
        encoding = Encoding()
    return _from_ranks(ranks, encoding, [END_OF_TEXT])


def _characters(path: Path) -> tokenizers.Tokenizer:
    content = path.read_bytes()
    try:
        plain = all(opcode.name in PLAIN_OPCODES for opcode, *_ in pickletools.genops(content))
        ids = pickle.loads(content)["stoi"] if plain else {}
    except Exception:  # pickle raises whatever a damaged file leads to
        ids = {}
    if not ids or not all(isinstance(name, str) and len(name) == 1 for name in ids):
        raise ValueError("it must be a pickle of dictionaries alone, with the id of each character as stoi")
    if not all(type(number) is int for number in ids.values()) or sorted(ids.values()) != list(range(len(ids))):
        raise ValueError("its ids must count from 0")
    backend = tokenizers.Tokenizer(models.WordLevel(ids, "<unk>"))  # refuses other characters; BPE omits them
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    return backend


def _from_ranks(ranks: Mapping[bytes, int], encoding: Encoding, special: list[str]) -> tokenizers.Tokenizer:
    letters = byte_letters()
    if missing := [byte for byte in range(256) if bytes([byte]) not in ranks]:
        raise ValueError(f"it has no token for the byte {missing[0]}")

    def written(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    pairs = [_parts(token, ranks) for token in sorted(ranks, key=ranks.__getitem__) if len(token) > 1]
    vocab = {written(token) or f"unused {rank}": rank for token, rank in ranks.items()}
    used = set(vocab.values())
    end_id = max(used) + 1 if encoding.end_id is None else encoding.end_id
    if end_id in used:
        raise ValueError(f"its rank {end_id} is the id of {END_OF_TEXT} in the encoding of this name")
    # a hole below the last rank may be the end token; the space in the other names keeps text from matching them
    holes = [rank for rank in range(max(end_id, max(used))) if rank not in used]
    vocab |= {END_OF_TEXT if rank == end_id else f"unused {rank}": rank for rank in holes}
    merges = [(written(left), written(right)) for left, right in filter(None, pairs)]
    # tiktoken looks up the whole word before it merges
    backend = _byte_level(models.BPE(vocab, merges, ignore_merges=True), encoding.pattern)
    if encoding.nfc:
        backend.normalizer = normalizers.NFC()
    backend.add_special_tokens(special)
    return backend


def _ranks(content: bytes) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(content.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            token, rank = line.split()
            # "=" is Whisper's empty token, to which no text is encoded
            ranks[b"" if token == b"=" else base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise ValueError(f"line {number} is not a token in base64 and its rank") from None
    if len(set(ranks.values())) < len(ranks) or not ranks or min(ranks.values()) < 0:
        raise ValueError("its ranks are not distinct numbers >= 0")
    if max(ranks.values()) > 2 * len(ranks) + 1000:
        raise ValueError(f"the rank {max(ranks.values())} is far beyond its {len(ranks)} tokens")
    return ranks


def _parts(token: bytes, ranks: Mapping[bytes, int]) -> tuple[bytes, bytes] | None:
    """The two tokens that merge to this one: those left after all merges of lower rank; None if more are left."""
    parts = [token[i : i + 1] for i in range(len(token))]
    limit = ranks[token]
    while len(parts) > 2:
        rank, i = min((ranks.get(parts[i] + parts[i + 1], limit), i) for i in range(len(parts) - 1))
        if rank >= limit:
            return None  # found only as a whole word
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts[0], parts[1]


def byte_letters() -> dict[int, str]:
    """GPT-2's letter for each byte: the character itself if printable, else one from U+0100 on."""
    printing = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printing]
    return {byte: chr(byte) for byte in printing} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def _cut_names(backend: tokenizers.Tokenizer, content: Any, special: set[str]) -> None:
    """Add a step to the pre-tokenizer of a Unigram tokenizer.json, which cuts the names of special tokens.

    Then no text is encoded to those that are also pieces. (Lower scores would change other ids: the score of an unknown
    character follows from the lowest, and the rounding of the sums decides between segmentations of equal scores.)
    """
    vocab, before = content["model"]["vocab"], content["pre_tokenizer"] or {}
    lowest = min((score for piece, score in vocab if piece not in special), default=0.0)
    reachable = {piece for piece, score in vocab if score > lowest + UNREACHABLE}
    names = sorted(name for name in special & reachable if len(name) > 1)
    pattern = "|".join(f"{re.escape(name[0])}(?={re.escape(name[1:])})" for name in names)
    step = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    if names and step not in before.get("pretokenizers", [before]):
        cut = pre_tokenizers.Split(Regex(pattern), "isolated")
        backend.pre_tokenizer = pre_tokenizers.Sequence([backend.pre_tokenizer, cut]) if before else cut
