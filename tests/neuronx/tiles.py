"""Llama 4's processor with an image processor of numpy: torchvision, which transformers' own needs, may not be here.

It cuts an image into tiles as transformers' does where the image is a whole number of tiles high and wide: tiles row by
row, then the whole image once more, made smaller. Texts are expanded by transformers' own `Llama4Processor`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature
from transformers.models.llama4.processing_llama4 import Llama4Processor

from tests.neuronx.images import PATCH, TILE


class TileImages(BaseImageProcessor):
    model_input_names = ["pixel_values"]

    def __call__(self, images: Any, **_: Any) -> BatchFeature:
        tiles: list[np.ndarray] = []
        ratios = []
        for image in images:
            values = np.asarray(image, np.float32).transpose(2, 0, 1) / 127.5 - 1
            rows, columns = values.shape[1] // TILE, values.shape[2] // TILE
            cut = [
                values[:, y * TILE : (y + 1) * TILE, x * TILE : (x + 1) * TILE]
                for y in range(rows)
                for x in range(columns)
            ]
            tiles += cut
            if len(cut) > 1:
                tiles.append(values[:, ::rows, ::columns])
            ratios.append((rows, columns))
        pixels = torch.from_numpy(np.stack(tiles))
        return BatchFeature({"pixel_values": pixels, "aspect_ratios": torch.tensor(ratios)})


class _Llama4Processor(Llama4Processor):
    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
        return type(argument)


def tile_processor(model: Path) -> Any:
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    _Llama4Processor.attributes = ["image_processor", "tokenizer"]
    return _Llama4Processor(TileImages(), tokenizer, patch_size=PATCH)
