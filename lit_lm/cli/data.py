"""`lit-lm prepare` and `lit-lm data info | show`: prepare and inspect the data of a run.

They take the config of `fit`, or a checkpoint, which contains it.
"""

from collections.abc import Sequence

from lit_lm.cli.data_options import lines_alone

LOOKS = {
    "info": "print sizes, document lengths, frequent tokens and digests",
    "show": "print the windows of a step",
}


def run(args: Sequence[str], description: str) -> None:
    """Run a command whose help starts with `description`.

    Raises:
        ValueError, OSError: if the arguments, or the files they name, are invalid.
    """
    command, rest = args[0], list(args[1:])
    if command == "data":
        if not rest or rest[0] in ("-h", "--help"):
            print("usage: lit-lm data COMMAND [options]\n")
            print("\n".join(f"  {name:6}{what}" for name, what in LOOKS.items()))
            return
        look = rest.pop(0)
        if look not in LOOKS:
            raise ValueError(f"unknown command data {look}; the commands are {', '.join(LOOKS)}")
        command, description = f"data {look}", LOOKS[look]
    lines = lines_alone(command, rest)
    if lines is None:
        from lit_lm.cli import data_config  # imports torch and Lightning, which takes seconds

        lines = data_config.lines(command, rest, description)
    for line in lines:
        print(line, flush=True)
