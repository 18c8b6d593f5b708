"""Measure lit-lm beside others who do the same work, in one run on one machine, by turns.

python tools/bench.py train --nanogpt ../nanoGPT --peers ../peers/bin/python
python tools/bench.py prepare --text tinystories.txt --sizes 1 100
python tools/bench.py generate --llama2c ../llama2.c
"""

import argparse
import sys
from importlib import import_module


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["train", "prepare", "generate"])
    what = parser.parse_args(sys.argv[1:2]).what
    module = import_module(f"bench_{what}")  # only this one: what it imports counts in the memory that it measures
    options = argparse.ArgumentParser(
        f"bench.py {what}", description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    module.add_arguments(options)
    module.run(options.parse_args(sys.argv[2:]))


if __name__ == "__main__":
    main()
