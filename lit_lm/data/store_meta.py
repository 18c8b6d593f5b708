"""Descriptions of token stores, which are checked because a store may come from elsewhere."""

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from lit_lm.data.filesystem import file_system, is_local

FORMAT = "3"
"""Version of the format, part of a store's name in the cache: stores of another version are not found."""

MAX_DESCRIPTION_BYTES = 2**28
"""Maximum size of a file that describes a store, for about half a million shards."""


@dataclass(frozen=True)
class ShardMeta:
    """Description of a shard. Checks its fields, since a store may come from elsewhere.

    Raises:
        ValueError: if a field has the wrong type or an impossible value.
    """

    tokens: int
    documents: int
    bytes: int
    """UTF-8 bytes of the text, without END_OF_TEXT."""
    characters: int
    skipped: int
    """Number of documents that could not be read."""
    sha256: str
    """Digest of the tokens."""
    source: str
    """Fingerprint of the source."""
    tokenizer: str
    """Fingerprint of the tokenizer."""

    def __post_init__(self) -> None:
        for name in ("tokens", "documents", "bytes", "characters", "skipped"):
            value = getattr(self, name)
            if type(value) is not int or not 0 <= value < 2**63:
                raise ValueError(f"{name} is {_shortened(value)}; it must be a number from 0 to 2**63 - 1")
        for name in ("sha256", "source", "tokenizer"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"{name} is {_shortened(getattr(self, name))}; it must be a string")
        if not re.fullmatch("[0-9a-f]{64}", self.sha256):
            raise ValueError(f"sha256 is {_shortened(self.sha256)}; it must be 64 hexadecimal digits")


@dataclass(frozen=True)
class StoreMeta:
    """Description of a store. Checks that its parts fit each other.

    Raises:
        ValueError: if they do not.
    """

    dtype: str
    shards: tuple[ShardMeta, ...]

    def __post_init__(self) -> None:
        if self.dtype not in ("<u2", "<u4"):
            raise ValueError(f"dtype is {_shortened(self.dtype)}; it must be <u2 or <u4")
        if not self.tokens or self.characters > self.bytes:
            raise ValueError(f"it has {self.tokens} tokens for {self.characters} characters in {self.bytes} bytes")
        if len({(shard.source, shard.tokenizer) for shard in self.shards}) > 1:
            raise ValueError("its shards have different sources or tokenizers")

    @classmethod
    def from_json(cls, text: str) -> "StoreMeta":
        """Read the output of `to_json`.

        Raises:
            ValueError: if it is invalid, or of another format.
        """
        try:
            content = json.loads(text)
            if content["format"] != FORMAT:
                raise ValueError(f"its format is {_shortened(content['format'])}, not {FORMAT}")
            return cls(content["dtype"], tuple(ShardMeta(**shard) for shard in content["shards"]))
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            reason = f"{error.args[0]} is missing" if isinstance(error, KeyError) else str(error)
            raise ValueError(f"not a token store of this version ({reason}); prepare it again") from None

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT} | asdict(self), indent=1)

    @property
    def tokens(self) -> int:
        return sum(shard.tokens for shard in self.shards)

    @property
    def documents(self) -> int:
        return sum(shard.documents for shard in self.shards)

    @property
    def bytes(self) -> int:
        """UTF-8 bytes of the text, without END_OF_TEXT."""
        return sum(shard.bytes for shard in self.shards)

    @property
    def characters(self) -> int:
        return sum(shard.characters for shard in self.shards)

    @property
    def skipped(self) -> int:
        """Number of documents that could not be read."""
        return sum(shard.skipped for shard in self.shards)

    @property
    def sha256(self) -> str:
        """Digest of the shards' digests."""
        return hashlib.sha256("".join(shard.sha256 for shard in self.shards).encode()).hexdigest()

    @property
    def bytes_per_token(self) -> float:
        return self.bytes / self.tokens


def read_description(store: str, name: str) -> str:
    """The text of a small file of a store at a path or URL.

    Raises:
        ValueError: if it is a link out of the store, no regular file, too large, or not UTF-8.
        OSError: if it cannot be read.
    """
    fs, folder = file_system(store)
    path = f"{folder}/{name}"
    if is_local(fs):
        check_inside(Path(folder), Path(path))
        if not fs.isfile(path):  # reading a pipe would never end
            raise ValueError(f"{name} is missing or not a file")
    if (fs.size(path) or 0) > MAX_DESCRIPTION_BYTES:
        raise ValueError(f"{name} is too large: {fs.size(path)} bytes")
    try:
        return bytes(fs.cat_file(path)).decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not UTF-8: {error}") from None


def check_inside(folder: Path, file: Path) -> None:
    """Check that reading a store, which may come from elsewhere, reads no files outside its folder.

    Raises:
        ValueError: if the file is a link out of the folder or to itself.
    """
    try:
        target = file.resolve()
    except RuntimeError:
        raise ValueError(f"{file} is a link to itself; replace it with the file") from None
    if target.parent != folder.resolve():
        raise ValueError(f"{file} is a link out of the store; replace it with the file itself")


def _shortened(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
