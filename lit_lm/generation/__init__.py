"""Continuing token ids: samplers, beam search, and a decoder that is fast. Text and Trainer are unknown here."""

from lit_lm.generation.decoder import WEIGHTS, Decoder, Weights
from lit_lm.generation.decoding import Continuation, Ended, Token, generate, stream
from lit_lm.generation.sampling import Sampling

__all__ = ["WEIGHTS", "Continuation", "Decoder", "Ended", "Sampling", "Token", "Weights", "generate", "stream"]
