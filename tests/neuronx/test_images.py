"""Llama 4 with images: from a request to the library's calls, held against transformers' own Llama 4."""

from __future__ import annotations

import numpy as np
import pytest

from tests.neuron.driver import Driver, load, resolved_config
from tests.neuronx import images, standin
from tests.neuronx.conftest import on_a_device
from tests.neuronx.inputs import prefill
from vllm.core.contract import PromptImages
from vllm.settings.neuron_config import NeuronConfigError
from vllm.targets.neuronx.input_checks import row_faults
from vllm.targets.neuronx.inputs import build_calls
from vllm.targets.neuronx.vision import pixels_of

VERSIONS = [version for version in standin.VERSIONS if version != "0.4.0"]
OVERRIDE = {"context_encoding_buckets": [32, 64, 96], "vision_neuron_config": {"buckets": [2, 6]}}
START, END = images.PLACEHOLDER_ID + 1, images.PLACEHOLDER_ID + 2


@pytest.fixture(scope="module", params=VERSIONS)
def target(request, llama4, tmp_path_factory):
    with on_a_device(request.param, tmp_path_factory.mktemp("site")):
        config = resolved_config(llama4, "neuronx", max_model_len=96, max_num_seqs=3, override=OVERRIDE)
        device = load(config, tmp_path_factory.mktemp("artifact") / "compiled")
        yield config, device
        device.shutdown()


def _tiles(seed: int, count: int) -> np.ndarray:
    shape = (count, 3, images.TILE, images.TILE)
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _prompt(count: int, length: int) -> list[int]:
    """Placeholders of `count` tiles among other tokens."""
    tokens = [5, START, *[images.PLACEHOLDER_ID] * (count * images.TOKENS_PER_TILE), END]
    return [*tokens, *range(10, 10 + length - len(tokens))]


def _as_images(pixels: np.ndarray) -> PromptImages:
    return PromptImages(pixels.tobytes(), pixels.shape, ("hash",))


def test_text_alone(target, llama4_reference):
    driver = Driver(*target)
    for length in (1, 2, 3, 31, 32, 33, 64, 95):
        prompt = list(range(20, 20 + length))
        driver.add(f"r{length}", prompt, [length % 3])
        count = min(4, 96 - length)
        assert driver.generate(f"r{length}", count) == llama4_reference.generate(prompt, None, count)
        driver.finish(f"r{length}")


@pytest.mark.parametrize(("tiles", "length"), [(1, 8), (1, 31), (2, 33), (5, 40), (3, 90)])
def test_images_are_seen(target, llama4_reference, tiles, length):
    prompt, pixels = _prompt(tiles, length), _tiles(length, tiles)
    driver = Driver(*target)
    driver.add("a", prompt, [1], images=_as_images(pixels))
    found = driver.generate("a", 5)
    assert found == llama4_reference.generate(prompt, pixels, 5)
    others = [llama4_reference.generate(prompt, _tiles(length + seed, tiles), 5) for seed in (1, 2, 3)]
    assert any(found != other for other in others)


def test_each_row_sees_its_own_images(target, llama4_reference):
    """Prompts of one step, with and without images, in lines out of order."""
    driver = Driver(*target)
    prompts = {
        "a": (_prompt(2, 20), _tiles(1, 2), 2),
        "b": (list(range(9, 15)), None, 0),
        "c": (_prompt(1, 9), _tiles(2, 1), 1),
    }
    for name, (prompt, pixels, line) in prompts.items():
        driver.add(name, prompt, [line], images=None if pixels is None else _as_images(pixels))
    driver.step(a=0, b=0, c=0)
    for _ in range(4):
        driver.step(a=1, b=1, c=1)
    for name, (prompt, pixels, _) in prompts.items():
        assert driver.tokens[name] == llama4_reference.generate(prompt, pixels, 5)


def test_an_image_whose_pixels_sum_to_nothing_is_seen(target, llama4_reference):
    pixels = _tiles(3, 2)
    pixels[1] = -pixels[0]
    prompt, driver = _prompt(2, 20), Driver(*target)
    driver.add("a", prompt, [0], images=_as_images(pixels))
    assert driver.generate("a", 4) == llama4_reference.generate(prompt, pixels_of(_as_images(pixels)), 4)
    assert driver.generate("a", 4) != llama4_reference.generate(prompt, np.zeros_like(pixels), 4)


def test_the_library_loses_images_of_prompts_that_fill_a_bucket(target):
    """What the stand-in does, as the library: so such prompts are refused, and not run."""
    _, device = target
    prompt, pixels = _prompt(2, 32), _tiles(4, 2)
    given = prefill([prompt], [0], images=[_as_images(pixels)])
    assert "would lose its images" in row_faults(given, device.limits)[0]
    assert device.capabilities.images.unusable_lengths == (32, 64)
    shown = [int(device.application.forward(**_arguments(prompt, tiles)).tokens[0]) for tiles in (pixels, _tiles(5, 2))]
    assert shown[0] == shown[1]


def test_the_library_overwrites_the_last_position_of_the_last_bucket(target):
    """What the stand-in does, as the library: so no prompt may be that long, and no shorter bucket be the last."""
    _, device = target
    prompt = list(range(20, 20 + 96))
    shown = [
        int(device.application.forward(**_arguments([*prompt[:-1], last], None)).tokens[0])
        for last in (prompt[-1], 300)
    ]
    assert shown[0] == shown[1]


def _arguments(prompt, pixels):
    import torch

    ids = torch.tensor([prompt], dtype=torch.int32)
    return {
        "input_ids": ids,
        "position_ids": torch.arange(len(prompt), dtype=torch.int32)[None],
        "seq_ids": torch.zeros(1, dtype=torch.int32),
        "sampling_params": torch.ones(1, 3),
        "pixel_values": None if pixels is None else torch.from_numpy(pixels),
        "vision_mask": None if pixels is None else (ids == images.PLACEHOLDER_ID)[..., None],
    }


def test_what_a_prompt_with_images_is_called_with(target):
    _, device = target
    pixels = _tiles(6, 2)
    (call,) = build_calls(prefill([_prompt(2, 20)], [0], images=[_as_images(pixels)]), device.limits)
    assert call.arguments["pixel_values"].shape == (2, 3, images.TILE, images.TILE)
    assert call.arguments["vision_mask"].shape == (1, 20, 1) and call.arguments["vision_mask"].dtype == bool
    assert call.arguments["vision_mask"].sum() == 2 * images.TOKENS_PER_TILE
    (plain,) = build_calls(prefill([_prompt(2, 20)], [0]), device.limits)
    assert not {"pixel_values", "vision_mask"} & set(plain.arguments)


@pytest.mark.parametrize(
    ("tiles", "placeholders", "reason"), [(2, 1, "placeholders"), (7, 7, "more than 6")], ids=["count", "tiles"]
)
def test_images_that_cannot_run_end_their_row_alone(target, tiles, placeholders, reason):
    _, device = target
    given = prefill(
        [[5, 6, 7], _prompt(placeholders, placeholders * images.TOKENS_PER_TILE + 5)],
        [0, 1],
        images=[None, _as_images(_tiles(7, tiles))],
    )
    faults = row_faults(given, device.limits)
    assert list(faults) == [1] and reason in faults[1]


# Configuration.


def test_the_vision_encoder_is_told_its_own(newest, llama4):
    from tests.neuronx.test_config import _inference_config

    override = {
        "vision_neuron_config": {"buckets": [4, 2], "fused_qkv": True},
        "text_neuron_config": {"fused_qkv": False},
    }
    config = resolved_config(llama4, "neuronx", max_model_len=64, override=override, tensor_parallel_size=2)
    made = _inference_config(config)
    vision = made.vision_config.neuron_config
    assert (vision.tp_degree, vision.world_size, vision.buckets, vision.fused_qkv) == (2, 2, [2, 4], True)
    assert vision.enable_bucketing and vision.save_sharded_checkpoint and vision.batch_size == 1
    text = made.text_config.neuron_config
    assert (text.tp_degree, text.batch_size, text.fused_qkv) == (2, 4, False)
    assert made.text_config.rope_theta == 500000.0 and made.vision_config.rope_theta == 10000
    assert made.text_config._name_or_path == str(llama4)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"vision_neuron_config": {"tp_degree": 3}}, "must divide tp_degree=8 and the vision encoder's 4 heads"),
        ({"vision_neuron_config": {"tp_degree": 2, "buckets": [6]}}, "multiples of 4"),
        ({"vision_neuron_config": {"bucket": [4]}}, "Did you mean 'buckets'"),
        ({"max_context_length": 32}, "writes over the last position"),
    ],
)
def test_what_the_vision_encoder_cannot_have_is_refused(newest, llama4, override, message):
    with pytest.raises(NeuronConfigError, match=message):
        resolved_config(llama4, "neuronx", max_model_len=64, override=override, tensor_parallel_size=8)


def test_other_models_have_no_vision_encoder(newest, tiny_llama):
    with pytest.raises(NeuronConfigError, match="no vision encoder"):
        resolved_config(tiny_llama, "neuronx", override={"vision_neuron_config": {"buckets": [4]}})


def test_an_artifact_of_another_vision_encoder_is_refused(target, llama4):
    from vllm.artifacts.manifest import ArtifactError
    from vllm.targets.neuronx.model import NeuronxDeviceModel

    _, device = target
    other = resolved_config(
        llama4,
        "neuronx",
        max_model_len=96,
        max_num_seqs=3,
        override={**OVERRIDE, "vision_neuron_config": {"buckets": [3]}},
    )
    with pytest.raises(ArtifactError, match=r"vision_neuron_config\.buckets: \[2, 6\] in the artifact, \[3\] needed"):
        NeuronxDeviceModel.load(other, device.directory)


def test_weights_of_both_parts_are_in_the_artifact(target):
    _, device = target
    names = {str(path.relative_to(device.directory)) for path in device.directory.rglob("*") if path.is_file()}
    parts = {
        f"{part}/{name}"
        for part in ("text_model", "vision_model")
        for name in ("model.pt", "weights/tp0_sharded_checkpoint.safetensors")
    }
    assert parts | {"neuron_config.json"} <= names
    assert device.memory()["weights"] == sum(path.stat().st_size for path in device.directory.rglob("*.safetensors"))
