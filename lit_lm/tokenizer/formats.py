"""Tokenizers in other formats, loaded into the library `tokenizers` with identical ids for every text.

tokenizer.json                  the library's own format
vocab.json and merges.txt       GPT-2's format
NAME.tiktoken                   tiktoken's ranks: on each line, a token in base64 and its rank. The file contains
                                neither the pre-tokenization pattern (cl100k_base and o200k_base have their own, all
                                others use GPT-2's) nor the special tokens: END_OF_TEXT is added
NAME.model                      SentencePiece, unigram or BPE; requires the package sentencepiece
"""

import base64
import binascii
import json
import re
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

from lit_lm.tokenizer.train import END_OF_TEXT

IN_A_FOLDER = ("tokenizer.json", "vocab.json", "tokenizer.model")
UNREACHABLE = -1e4
"""Added to the lowest score, for pieces that text must not be encoded to."""
PATTERNS = {
    "cl100k_base": r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s+\z|\s*[\r\n]|\s+(?!\S)|\s",
    "o200k_base": r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}
END_IDS = {"p50k_base": 50256, "p50k_edit": 50256, "cl100k_base": 100257, "o200k_base": 199999}
"""Ids of END_OF_TEXT that do not directly follow the last rank."""
SENTENCEPIECE_CHECKS = (
    "Hello, world!  Two  spaces, a\ttab\nand lines\n\n.",
    " leading and trailing ",
    "I'm, you're 1234567890 ½ ﬁ Ａ１ e\u0301 \u00e9 \u200b\u3000",
    "从前有一只小狗，小狗喜欢小猫。 日本語 한국어 العربية हिन्दी",
    "🦊👩‍👩‍👧‍👦 \U0010ffff \ufffd \u2581\u2581 <s></s><unk><pad> <0x41>",
    "aaaaaaaaaaaaa        ababababab",
    "\x00\x01\x7f",
    "",
)


def read(path: Path) -> tokenizers.Tokenizer:
    """Load the tokenizer in a file or folder, in one of the formats above.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it cannot be read, or not be reproduced exactly.
    """
    if path.is_dir():
        found = [path / name for name in IN_A_FOLDER if (path / name).is_file()] or sorted(path.glob("*.tiktoken"))
        path = found[0] if found else path
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no tokenizer at {path}; pass the path of a tokenizer.json, a folder with vocab.json and "
            "merges.txt, a SentencePiece .model or a .tiktoken file"
        )
    readers: dict[str, Callable[[Path], tokenizers.Tokenizer]] = {".model": _sentencepiece, ".tiktoken": _tiktoken}
    reader = readers.get(path.suffix, _json)
    if path.name == "vocab.json" or path.with_name("vocab.json") == path:
        reader = _gpt2
    try:
        return reader(path)
    except ValueError as error:
        raise ValueError(f"{path} cannot be used as a tokenizer: {error}") from None


def parse(text: str) -> tokenizers.Tokenizer:
    """Load a tokenizer from the text of a tokenizer.json.

    Raises:
        ValueError: if the text is invalid.
    """
    try:
        content = json.loads(text)
        if content["model"]["type"] == "Unigram":
            special = {token["content"] for token in content["added_tokens"] if token["special"]}
            content["model"]["vocab"] = _shielded(content["model"]["vocab"], special)
            text = json.dumps(content, ensure_ascii=False)
        return tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises nothing more precise
        raise ValueError(f"not a valid tokenizer.json ({error})") from None


def _json(path: Path) -> tokenizers.Tokenizer:
    return parse(path.read_text(encoding="utf-8"))


def _gpt2(path: Path) -> tokenizers.Tokenizer:
    merges = path.with_name("merges.txt")
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
    config = path.with_name("tokenizer_config.json")
    options = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    backend = _byte_level(model, None, add_prefix_space=bool(options.get("add_prefix_space", False)))
    added = path.with_name("added_tokens.json")
    if added.is_file():
        tokens = sorted(json.loads(added.read_text(encoding="utf-8")).items(), key=lambda item: item[1])
        for token, number in tokens:
            backend.add_special_tokens([token])
            if backend.token_to_id(token) != number:
                raise ValueError(
                    f"added_tokens.json gives {token} the id {number}, which does not follow the vocabulary"
                )
    return backend


def _byte_level(model: models.BPE, pattern: str | None, *, add_prefix_space: bool = False) -> tokenizers.Tokenizer:
    """A byte-level tokenizer with this pre-tokenization pattern; None: GPT-2's pattern."""
    backend = tokenizers.Tokenizer(model)
    letters = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space, use_regex=pattern is None)
    words = [pre_tokenizers.Split(Regex(pattern), "isolated")] if pattern else []
    backend.pre_tokenizer = pre_tokenizers.Sequence([*words, letters])
    backend.decoder = decoders.ByteLevel()
    return backend


def _tiktoken(path: Path) -> tokenizers.Tokenizer:
    ranks = _ranks(path.read_bytes())
    letters = byte_letters()
    if missing := [byte for byte in range(256) if bytes([byte]) not in ranks]:
        raise ValueError(f"it has no token for the byte {missing[0]}")

    def written(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    pairs = [_parts(token, ranks) for token in sorted(ranks, key=ranks.__getitem__) if len(token) > 1]
    vocab = {written(token): rank for token, rank in ranks.items()}
    used = set(vocab.values())
    size = END_IDS.get(path.stem, max(used) + 1)
    # a hole below the last rank may be the end token; the space in the other names keeps text from matching them
    holes = [rank for rank in range(max(size, max(used))) if rank not in used]
    vocab |= {END_OF_TEXT if rank == size else f"unused {rank}": rank for rank in holes}
    merges = [(written(left), written(right)) for left, right in filter(None, pairs)]
    # tiktoken looks up the whole word before it merges
    return _byte_level(models.BPE(vocab, merges, ignore_merges=True), PATTERNS.get(path.stem))


def _ranks(content: bytes) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(content.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
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


def _sentencepiece(path: Path) -> tokenizers.Tokenizer:
    try:
        sentencepiece = import_module("sentencepiece")
        proto = import_module("sentencepiece.sentencepiece_model_pb2").ModelProto()
    except ImportError:
        raise ValueError("a SentencePiece .model needs the package: pip install 'lit-lm[sentencepiece]'") from None
    try:
        proto.ParseFromString(path.read_bytes())
        theirs = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
    except Exception as error:  # protobuf and sentencepiece raise different types
        raise ValueError(f"not a SentencePiece model ({error})") from None
    backend = _from_proto(proto)
    backend.encode_special_tokens = True
    for text in SENTENCEPIECE_CHECKS:
        if backend.encode(text, add_special_tokens=False).ids != theirs.encode(text):
            raise ValueError(f"its ids for {text!r} cannot be reproduced; export it as a tokenizer.json")
    return backend


def _from_proto(proto: Any) -> tokenizers.Tokenizer:
    if not proto.pieces:
        raise ValueError("not a SentencePiece model (it has no pieces)")
    kinds = proto.SentencePiece.Type
    of_kind = {kind: {p.piece for p in proto.pieces if p.type == kind} for kind in kinds.values()}
    if of_kind[kinds.Value("USER_DEFINED")]:
        raise ValueError(f"it has tokens of type USER_DEFINED: {sorted(of_kind[kinds.Value('USER_DEFINED')])[:5]}")
    if proto.trainer_spec.treat_whitespace_as_suffix:
        raise ValueError("its option treat_whitespace_as_suffix is not supported")
    normal = {p.piece: p.score for p in proto.pieces if p.type == kinds.Value("NORMAL")}
    byte_fallback = bool(of_kind[kinds.Value("BYTE")])
    unknown = next(i for i, p in enumerate(proto.pieces) if p.type == kinds.Value("UNKNOWN"))
    method = proto.trainer_spec.ModelType.Name(proto.trainer_spec.model_type)
    unspelled: list[str] = []
    if method == "UNIGRAM":
        hidden = {p.piece for p in proto.pieces if p.piece not in normal}
        vocab = _shielded([(p.piece, p.score) for p in proto.pieces], hidden)
        backend = tokenizers.Tokenizer(models.Unigram(vocab, unk_id=unknown, byte_fallback=byte_fallback))
        unspelled = sorted(name for name in hidden if not set(name) <= normal.keys())
    elif method == "BPE":
        ids = {p.piece: i for i, p in enumerate(proto.pieces)}
        backend = tokenizers.Tokenizer(
            models.BPE(
                ids,
                _merges(normal),
                unk_token=proto.pieces[unknown].piece,
                fuse_unk=True,
                byte_fallback=byte_fallback,
            )
        )
    else:
        raise ValueError(f"its model type is {method}; only UNIGRAM and BPE are supported")
    spec = proto.normalizer_spec
    backend.normalizer = _normalizer(spec)
    if unspelled:
        _keep_apart(backend, unspelled, byte_fallback)
    dropped = [decoders.Strip(" ", 1, 0)] if spec.add_dummy_prefix else []
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *dropped]
    )
    backend.add_special_tokens([p.piece for p in proto.pieces if p.type == kinds.Value("CONTROL")])
    return backend


def _keep_apart(backend: tokenizers.Tokenizer, names: list[str], byte_fallback: bool) -> None:
    """Keep text that spells the name of a hidden piece, with some letters unknown, from becoming that piece."""
    if byte_fallback:
        cut = "|".join(f"{re.escape(name[0])}(?={re.escape(name[1:])})" for name in names)
        backend.pre_tokenizer = pre_tokenizers.Split(Regex(cut), "isolated")
    else:  # all unknown characters are equivalent, and a run of them is one token
        first = "".join(sorted({name[0] for name in names}))
        backend.normalizer = normalizers.Sequence(
            [backend.normalizer, normalizers.Replace(Regex(f"[{re.escape(first)}]"), "\uffff")]
        )


def _normalizer(spec: Any) -> normalizers.Normalizer:
    space = "▁" if spec.escape_whitespaces else " "
    steps: list[normalizers.Normalizer] = []
    prefix = space if spec.add_dummy_prefix else ""
    drops_controls = spec.name.startswith("nmt")
    if drops_controls:
        if prefix and not spec.remove_extra_whitespaces:  # also before a text that becomes empty
            steps.append(normalizers.Prepend(f"{prefix}\x01"))  # a control, so that no accent joins the prefix
            prefix = ""
        steps.append(normalizers.Replace("\r\n", "  "))  # the library would treat the two as one character
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex(r"\A +"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if prefix:
        steps.append(normalizers.Prepend(prefix))
    if spec.escape_whitespaces:
        steps.append(normalizers.Replace(" ", space))
    if spec.remove_extra_whitespaces:
        steps.append(normalizers.Replace(Regex(rf"{space}+\z"), ""))
    return normalizers.Sequence(steps)


def _merges(scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """All pairs that merge to a piece, best piece first: SentencePiece merges the pair that gives the best piece."""
    found = []
    for piece, score in scores.items():
        for i in range(1, len(piece)):
            if piece[:i] in scores and piece[i:] in scores:
                found.append((-score, piece, -i))
    return [(piece[:-i], piece[-i:]) for _, piece, i in sorted(found)]


def _shielded(vocab: list[tuple[str, float]], names: set[str]) -> list[tuple[str, float]]:
    """Lower the scores of the named pieces so much that Unigram never chooses them for a text."""
    lowest = min((score for piece, score in vocab if piece not in names), default=0.0)
    return [(piece, lowest + UNREACHABLE if piece in names else score) for piece, score in vocab]
