"""Small decoder-only language models, trained from scratch with PyTorch Lightning."""

from importlib.metadata import version

__version__ = version("lit-lm")
