"""The error of this package."""

from __future__ import annotations


class CheckpointError(ValueError):
    """A checkpoint that cannot be used: says which file, why, and what would work."""
