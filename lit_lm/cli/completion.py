"""`lit-lm completion bash | zsh`: print a script that completes `lit-lm` in a shell.

The script contains all names, so completing does not start Python. Collecting them takes seconds; the script is cached
until a module of lit-lm changes.
"""

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

from lit_lm.cli.options import Parser
from lit_lm.cli.recipes import recipes
from lit_lm.files import cache_folder, write_text

SHELLS = ("bash", "zsh")
ZSH = "autoload -Uz compinit bashcompinit\n(( $+functions[compdef] )) || compinit\nbashcompinit\n"


def run(args: Sequence[str], description: str) -> None:
    """Run `lit-lm completion`.

    Raises:
        ValueError: if the arguments are invalid.
    """
    parser = Parser("lit-lm completion", description=f'{description}: eval "$(lit-lm completion bash)" in ~/.bashrc')
    parser.add_argument("shell", choices=SHELLS)
    shell = parser.parse_args(args[1:]).shell
    print((ZSH if shell == "zsh" else "") + _cached_script(), end="")


def _cached_script() -> str:
    folder = Path(__file__).parents[1]
    modules = [(str(path), path.stat().st_mtime_ns) for path in sorted(folder.rglob("*.py"))]
    known = [modules, sorted(recipes()), version("lightning"), version("torch")]
    digest = hashlib.blake2b(repr(known).encode(), digest_size=8).hexdigest()
    cached = cache_folder() / "completion.bash"
    with suppress(OSError, UnicodeDecodeError):
        if (text := cached.read_text(encoding="utf-8")).startswith(f"# {digest}\n"):
            return text
    script = f"# {digest}\n{import_module('lit_lm.cli.completion_script').script()}"
    with suppress(OSError):  # a cache that is not writable
        cached.parent.mkdir(parents=True, exist_ok=True)
        write_text(cached, script)
    return script
