"""Gemma in Flax NNX: configuration, modules, LoRA, and loading from GGUF."""
