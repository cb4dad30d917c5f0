"""Small helpers under the import paths that programs use."""

from __future__ import annotations

import uuid

from vllm.utils.argparse_utils import FlexibleArgumentParser

__all__ = ["FlexibleArgumentParser", "random_uuid"]


def random_uuid() -> str:
    return uuid.uuid4().hex
