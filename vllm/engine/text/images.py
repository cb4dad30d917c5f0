"""Images of a prompt: from what a request brings to what a model takes, by the checkpoint's own processor.

The processor is transformers' `AutoProcessor`: it cuts images into tiles, and where the text has its image token it
puts the tokens that stand for them. It is loaded with the first image, so that a server that is asked for text alone
needs neither transformers nor torchvision.

Images come as objects or as data: URLs. Nothing is read or fetched for a request: a server that does that can be made
to reach what its clients cannot.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from vllm.core.contract import ImageLimits, PromptImages
from vllm.exceptions import VLLMValidationError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
MAX_PIXELS = 2**26
"""Of one image, before it is cut into tiles: what a small file may claim to be decides how much memory it takes."""

_DATA_URL = re.compile(r"data:image/[a-z0-9.+-]+;base64,", re.IGNORECASE)


class ImageIntake:
    """The images of one prompt, as they come in: at most `most` of them, None for as many as there are."""

    def __init__(self, most: int | None = None) -> None:
        self.most = most
        self.images: list[Any] = []

    def take(self, read: Callable[[], Any], place: str) -> None:
        """Read one more, if there is room for it. Raises VLLMValidationError."""
        check_count(len(self.images) + 1, self.most, place)
        self.images.append(read())


class ImagePreparer:
    """limits: what the loaded model takes. load: makes the processor. Safe to be used from several threads.

    most: images of one prompt that the server allows, None for as many as its length has room for.
    """

    def __init__(self, limits: ImageLimits, load: Callable[[], Any], most: int | None = None) -> None:
        self.limits = limits
        self.most = most
        self._load = load
        self._lock = threading.Lock()

    @cached_property
    def processor(self) -> Any:
        return self._load()

    def prepare(
        self, text: str, images: Sequence[Any], add_special_tokens: bool, place: str = "multi_modal_data"
    ) -> tuple[list[int], PromptImages]:
        """The tokens of `text`, in which each image token stands for the next image, and these images.

        Raises VLLMValidationError for what cannot be run.
        """
        check_count(len(images), self.most, place)
        pictures = [to_rgb(image, place) for image in images]
        with self._lock:
            processor = self.processor
            self._check_count(processor, text, len(pictures), place)
            try:
                made = processor(
                    text=[text], images=pictures, add_special_tokens=add_special_tokens, return_tensors="pt"
                )
            except ValueError as error:
                raise VLLMValidationError(f"the images cannot be used: {error}", parameter=place) from error
        pixels = np.ascontiguousarray(made["pixel_values"].float().numpy())
        token_ids = made["input_ids"][0].tolist()
        prepared = PromptImages(pixels.tobytes(), pixels.shape, tuple(map(content_hash, pictures)))
        self.check(token_ids, prepared)
        return token_ids, prepared

    def _check_count(self, processor: Any, text: str, count: int, place: str) -> None:
        token = getattr(processor, "image_token", None)
        if token is not None and text.count(token) != count:
            raise VLLMValidationError(
                f"the prompt has {text.count(token)} image tokens {token} and {count} images: give one for each.",
                parameter=place,
                value=count,
            )

    def check(self, token_ids: Sequence[int], images: PromptImages) -> None:
        """Whether the model can run a prompt with these images. Raises VLLMValidationError."""
        limits, tiles = self.limits, images.shape[0]
        if tiles > limits.max_tiles:
            raise VLLMValidationError(
                f"the images have {tiles} tiles, and the vision encoder takes at most {limits.max_tiles}: give fewer "
                "or smaller images.",
                parameter="multi_modal_data",
                value=tiles,
            )
        placeholders = sum(token_id == limits.placeholder_id for token_id in token_ids)
        if placeholders != tiles * limits.tokens_per_tile:
            raise VLLMValidationError(
                f"the prompt has {placeholders} placeholders of images, and its {tiles} tiles need "
                f"{limits.tokens_per_tile} each: its text must not hold the placeholder token.",
                parameter="prompt",
            )
        if len(token_ids) in limits.unusable_lengths:
            raise VLLMValidationError(
                f"a prompt with images of exactly {len(token_ids)} tokens fills a compiled bucket, and the library "
                "would lose its images: add or leave out a word.",
                parameter="prompt",
                value=len(token_ids),
            )


def hub_processor(path: str) -> Callable[[], Any]:
    """Loads the processor of a checkpoint. Raises VLLMValidationError that says what is missing."""

    def load() -> Any:
        try:
            import transformers

            auto: Any = transformers.AutoProcessor
            return auto.from_pretrained(path)
        except (ImportError, OSError, ValueError, RuntimeError) as error:
            raise VLLMValidationError(
                "images need the checkpoint's processor (preprocessor_config.json), and pillow, torch and torchvision "
                f"of versions that fit together: {error}",
                parameter="multi_modal_data",
            ) from error

    return load


def check_count(count: int, most: int | None, place: str) -> None:
    """Raises VLLMValidationError if a prompt has more images than the server allows."""
    if most is not None and count > most:
        allowed = f"at most {most} {'image is' if most == 1 else 'images are'} taken in one prompt: give fewer"
        raise VLLMValidationError(
            f"{allowed if most else 'this server takes no images'} (limit_mm_per_prompt).", parameter=place
        )


def images_of(data: Any) -> list[Any]:
    """The images of `multi_modal_data`, in order. Raises VLLMValidationError for other modalities."""
    if not isinstance(data, Mapping):
        raise VLLMValidationError('multi_modal_data must be {"image": ...}.', parameter="multi_modal_data")
    for name in data:
        if name != "image":
            raise VLLMValidationError(
                f'multi_modal_data has {name!r}: only images are taken, as {{"image": ...}}.',
                parameter="multi_modal_data",
            )
    images = data.get("image")
    if images is None:
        return []
    return list(images) if isinstance(images, (list, tuple)) else [images]


def to_rgb(image: Any, place: str) -> Any:
    """A pillow image of three colours out of one, or out of an array uint8 [height, width, 3]."""
    pillow = _pillow(place)
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3:
        image = pillow.fromarray(image)
    if not isinstance(image, pillow.Image):
        raise VLLMValidationError(
            f"an image must be a PIL image or an array uint8 [height, width, 3], got {type(image).__name__}.",
            parameter=place,
        )
    if not 0 < image.width * image.height <= MAX_PIXELS:
        raise VLLMValidationError(
            f"an image of {image.width} x {image.height} pixels: from 1 to {MAX_PIXELS} of them are taken.",
            parameter=place,
        )
    try:
        return image.convert("RGB")
    except (OSError, ValueError, SyntaxError) as error:
        raise VLLMValidationError(f"the image cannot be read: {error}", parameter=place) from error


def image_from_url(url: Any, place: str) -> Any:
    """A pillow image out of a data: URL."""
    if not isinstance(url, str):
        raise VLLMValidationError(f"`{place}` must be a text.", parameter=place)
    start = _DATA_URL.match(url)
    if start is None:
        raise VLLMValidationError(
            f"`{place}` must be a data: URL, as in data:image/png;base64,...: nothing is fetched for a request.",
            parameter=place,
        )
    pillow = _pillow(place)
    try:
        content = base64.b64decode(url[start.end() :], validate=True)
        return to_rgb(pillow.open(io.BytesIO(content), formats=FORMATS), place)
    except (binascii.Error, pillow.UnidentifiedImageError, pillow.DecompressionBombError, OSError) as error:
        raise VLLMValidationError(
            f"`{place}` holds no image that can be read ({', '.join(FORMATS)}).", parameter=place
        ) from error


def content_hash(image: Any) -> str:
    """By size and pixels, of a pillow image of three colours."""
    digest = hashlib.sha256(f"{image.width}x{image.height}:".encode())
    digest.update(image.tobytes())
    return digest.hexdigest()


def _pillow(place: str) -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise VLLMValidationError("images need the package pillow.", parameter=place) from error
    return Image
