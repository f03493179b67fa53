"""Decoders in Flax NNX: configuration, modules, LoRA, loading, generation and export."""

import os

# transformers serves its tokenizers here; that it finds no torch is no news to a user.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
