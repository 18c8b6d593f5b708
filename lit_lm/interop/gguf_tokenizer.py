"""The tokenizer of a GGUF file: lists of tokens, their types and merges.

llama.cpp cuts a text into words in one of the ways that it knows by name (src/llama-vocab.cpp), so a file can only have
a tokenizer that does the same. Types other than bpe are refused: the closest that llama.cpp has, t5 to our unigram and
llama to our char, take a U+2581 in a text for a space.
"""

import json
from typing import Any

import tokenizers
from gguf import GGUFReader, GGUFWriter, TokenType
from tokenizers import AddedToken, Regex, models, pre_tokenizers

from lit_lm.tokenizer.formats import LLAMA3, QWEN, byte_letters
from lit_lm.tokenizer.tokenizer import Tokenizer

PRE_TOKENIZERS: dict[str, tuple[str | None, bool]] = {
    "gpt-2": (None, False),
    "llama-bpe": (LLAMA3, True),
    "qwen2": (QWEN, False),
}
"""llama.cpp's name; pattern, None for GPT-2's; whether a word that is a token becomes it without merges."""


def add_tokenizer(writer: GGUFWriter, tokenizer: Tokenizer, vocab_size: int) -> None:
    """Add the tokenizer as lists of tokens and merges.

    Raises:
        ValueError: if llama.cpp would give other ids.
    """
    pre_tokenizer, merges = _pre_tokenizer(tokenizer)
    tokens = [f"unused {number}" for number in range(vocab_size)]  # the space keeps text from matching it
    kinds = [TokenType.UNUSED] * vocab_size
    for token, number in tokenizer.backend.get_vocab().items():
        tokens[number], kinds[number] = token, TokenType.NORMAL
    for number, added in tokenizer.backend.get_added_tokens_decoder().items():
        kinds[number] = TokenType.CONTROL if added.special else TokenType.USER_DEFINED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre_tokenizer)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([f"{left} {right}" for left, right in merges])
    writer.add_bos_token_id(tokenizer.end_id)
    writer.add_eos_token_id(tokenizer.end_id)
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)


def _pre_tokenizer(tokenizer: Tokenizer) -> tuple[str, list[tuple[str, str]]]:
    """llama.cpp's name of what cuts a text into words, and the merges.

    Raises:
        ValueError: if llama.cpp would give other ids.
    """
    if tokenizer.type != "bpe":
        raise _other_ids(f"of type {tokenizer.type}")
    backend, model = tokenizer.backend, tokenizer.backend.model
    content = json.loads(tokenizer.to_json())["model"]
    merges = [(left, right) for left, right in content["merges"]]
    letters = set(byte_letters().values())
    added = [token for token in backend.get_added_tokens_decoder().values() if not token.special]
    problems = {
        "with a normalizer": backend.normalizer,
        "without merges": not merges,
        "without a token for each byte": not content["vocab"].keys() >= letters,
        "with merges of other characters than bytes": not letters.issuperset("".join(map("".join, merges))),
        "with prefixes or suffixes of words": model.continuing_subword_prefix or model.end_of_word_suffix,
        "with added tokens that need a context": any(
            token.lstrip or token.rstrip or token.single_word for token in added
        ),
    }
    if found := [problem for problem, is_so in problems.items() if is_so]:
        raise _other_ids(found[0])
    steps = _steps(backend.pre_tokenizer)
    name = next((name for name, (pattern, _) in PRE_TOKENIZERS.items() if _steps(_words(pattern)) == steps), None)
    if name is None:
        raise _other_ids(f"with another pre-tokenizer than those of {', '.join(PRE_TOKENIZERS)}")
    if model.ignore_merges != PRE_TOKENIZERS[name][1]:  # which is the same if each token is what its merges lead to
        plain = models.BPE(content["vocab"], merges)
        words = [token for token in content["vocab"] if letters >= set(token) and token != tokenizer.end_token]
        if any(len(plain.tokenize(word)) > 1 for word in words):
            raise _other_ids(f"with the pre-tokenizer of {name} and ignore_merges {model.ignore_merges}")
    return name, merges


def _other_ids(what: str) -> ValueError:
    return ValueError(
        f"llama.cpp cannot give the ids of a tokenizer {what}; train with a bpe tokenizer, or export to another format"
    )


def _words(pattern: str | None) -> pre_tokenizers.PreTokenizer:
    """Cuts a text into words, and writes their bytes as letters."""
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    return pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(pattern), "isolated"), letters] if pattern else [letters]
    )


def _steps(pre_tokenizer: pre_tokenizers.PreTokenizer | None) -> list[dict[str, Any]]:
    """The steps of a pre-tokenizer, without an option that does not change ids."""
    content = json.loads(pre_tokenizer.__getstate__()) if pre_tokenizer else {}
    steps = content.get("pretokenizers", [content])
    return [{name: value for name, value in step.items() if name != "trim_offsets"} for step in steps]


def read_tokenizer(reader: GGUFReader) -> tokenizers.Tokenizer:
    """The tokenizer of a file, as llama.cpp understands it."""
    tokens, kinds, merges, name = (
        reader.fields[f"tokenizer.ggml.{key}"].contents() for key in ("tokens", "token_type", "merges", "pre")
    )
    pattern, ignore_merges = PRE_TOKENIZERS[name]
    vocab = {token: number for number, token in enumerate(tokens)}
    pairs = [tuple(merge.split(" ")) for merge in merges]
    backend = tokenizers.Tokenizer(models.BPE(vocab, pairs, ignore_merges=ignore_merges))
    backend.pre_tokenizer = _words(pattern)
    found = [token for token, kind in zip(tokens, kinds, strict=True) if kind == TokenType.USER_DEFINED]
    backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in found])
    return backend
