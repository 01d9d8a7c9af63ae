"""Networks and losses. They know nothing of experiment configs or training."""

from models.storage import load_generator, load_tokenizer

__all__ = ["load_generator", "load_tokenizer"]
