"""Continuing token ids: samplers, beam search, and a decoder that is fast. Text and Trainer are unknown here."""

from lit_lm.generation.continuation import Continuation, Ended
from lit_lm.generation.decoder import Decoder
from lit_lm.generation.decoding import Token, Watch, generate, stream
from lit_lm.generation.sampling import Sampling
from lit_lm.generation.weights import Weights

__all__ = ["Continuation", "Decoder", "Ended", "Sampling", "Token", "Watch", "Weights", "generate", "stream"]
