"""A game in words: prompts, the tree they are packed in, the answers that count."""
