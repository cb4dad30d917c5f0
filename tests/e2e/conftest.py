"""torch on one thread: models so small lose more by waiting for a second one, on a busy machine, than they gain."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
