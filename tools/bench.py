"""Benchmark lit-lm against other libraries on the same work, on one machine and in turns.

python tools/bench.py train --nanogpt ../nanoGPT --peers ../peers/bin/python
python tools/bench.py attention
python tools/bench.py prepare --text tinystories.txt --sizes 1 100
python tools/bench.py generate --llama2c ../llama2.c
python tools/bench.py start
"""

import argparse
import sys
from importlib import import_module


def main() -> None:
    """Parse the command line and run a benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["train", "attention", "prepare", "generate", "start"])
    what = parser.parse_args(sys.argv[1:2]).what
    module = import_module(f"bench_{what}")  # only this one: its imports count in the memory that it measures
    options = argparse.ArgumentParser(
        f"bench.py {what}", description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    module.add_arguments(options)
    module.run(options.parse_args(sys.argv[2:]))


if __name__ == "__main__":
    main()
