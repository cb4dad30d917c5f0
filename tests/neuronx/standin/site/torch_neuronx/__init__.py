"""Remembers the environment at its first import: what the runtime would have seen."""

import os

ENVIRONMENT_AT_IMPORT = dict(os.environ)
__version__ = "2.9.0"
