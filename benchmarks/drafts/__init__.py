"""Draft models and EAGLE heads, made here: texts, a target's features on them, training, and checkpoints."""
