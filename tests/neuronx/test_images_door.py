"""Images from a user's hands to the stand-in: `LLM.generate`, `LLM.chat`, the server's chats, and what is refused."""

from __future__ import annotations

import base64
import io
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from tests.neuronx import images
from tests.neuronx.conftest import on_a_device
from tests.neuronx.tiles import tile_processor
from vllm import LLM, SamplingParams
from vllm.core.contract import ImageLimits, PromptImages
from vllm.engine import messages
from vllm.engine.text.images import MAX_PIXELS, ImagePreparer
from vllm.entrypoints.openai.renderer import PromptRenderer
from vllm.exceptions import VLLMValidationError
from vllm.sample.core_sampling import CoreSampling

GREEDY = SamplingParams(temperature=0.0, max_tokens=5, ignore_eos=True)
TILE = images.TILE


@pytest.fixture(scope="module")
def processor(llama4):
    return tile_processor(llama4)


@pytest.fixture(scope="module")
def llm(llama4, processor, tmp_path_factory):
    override = {"context_encoding_buckets": [32, 128], "vision_neuron_config": {"buckets": [2, 8]}}
    options = {"max_model_len": 128, "max_num_seqs": 2, "dtype": "float32", "override_neuron_config": override}
    with on_a_device("0.9.0", tmp_path_factory.mktemp("site")) as patch:
        patch.setattr("vllm.engine.text.input_processor.hub_processor", lambda path: lambda: processor)
        yield LLM(model=str(llama4), device="neuronx", **options)


@pytest.fixture(scope="module")
def preparer(processor):
    return ImagePreparer(ImageLimits(images.PLACEHOLDER_ID, images.TOKENS_PER_TILE, 8, (32,)), lambda: processor)


def _prompt(text, *pictures):
    return {"prompt": text, "multi_modal_data": {"image": list(pictures)}}


def _data_url(picture, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _expected(reference, processor, text, pictures, special=True):
    made = processor(text=[text], images=pictures, add_special_tokens=special, return_tensors="pt")
    ids = made["input_ids"][0].tolist()
    return ids, reference.generate(ids, made["pixel_values"].numpy(), 5)


def test_prompts_with_images(llm, llama4_reference, processor):
    """More requests than rows, with several images, one, and none; an image alone need not be in a list."""
    wide, small = images.picture(1, TILE, 2 * TILE), images.picture(2)
    prompts = [
        _prompt("see <|image|> and <|image|>", wide, small),
        {"prompt": "a<|image|>", "multi_modal_data": {"image": Image.fromarray(small)}},
        "text alone",
        _prompt("no images"),
    ]
    outputs = llm.generate(prompts, GREEDY, use_tqdm=False)
    for output, text, pictures in (
        (outputs[0], "see <|image|> and <|image|>", [wide, small]),
        (outputs[1], "a<|image|>", [small]),
    ):
        ids, tokens = _expected(llama4_reference, processor, text, pictures)
        assert output.prompt_token_ids == ids and output.outputs[0].token_ids == tokens
    for output in outputs[2:]:
        assert output.outputs[0].token_ids == llama4_reference.generate(output.prompt_token_ids, None, 5)


def test_several_outputs_of_one_prompt_all_see_its_image(llm, llama4_reference, processor):
    params = SamplingParams(n=2, top_k=1, max_tokens=5, ignore_eos=True)
    (output,) = llm.generate([_prompt("a<|image|>", images.picture(3))], params, use_tqdm=False)
    _, tokens = _expected(llama4_reference, processor, "a<|image|>", [images.picture(3)])
    assert [each.token_ids for each in output.outputs] == [tokens, tokens]


def _conversation(*parts):
    return [{"role": "user", "content": [{"type": "text", "text": "look: "}, *parts]}]


def test_chats_with_images(llm, llama4_reference, processor):
    pictures = [images.picture(4), images.picture(5, 2 * TILE, TILE)]
    url = {"type": "image_url", "image_url": {"url": _data_url(pictures[0])}}
    pil = {"type": "image_pil", "image_pil": Image.fromarray(pictures[1])}
    (output,) = llm.chat(_conversation(url, pil), GREEDY, use_tqdm=False)
    text = "<|im_start|>user\nlook: <|image|><|image|><|im_end|>\n<|im_start|>assistant\n"
    ids, tokens = _expected(llama4_reference, processor, text, pictures, special=False)
    assert output.prompt == text
    assert output.prompt_token_ids == ids and output.outputs[0].token_ids == tokens


@pytest.mark.asyncio
async def test_the_servers_chats(llm, preparer):
    """What the server renders is what the engine takes: the same tokens as `LLM.chat` gives it."""
    renderer = PromptRenderer(
        llm.get_tokenizer(), max_model_len=128, vocab_size=llm.model_config.vocab_size, images=preparer
    )
    part = {"type": "image_url", "image_url": {"url": _data_url(images.picture(4))}}
    request = SimpleNamespace(
        messages=_conversation(part),
        chat_template=None,
        chat_template_kwargs=None,
        tools=None,
        documents=None,
        add_generation_prompt=True,
        continue_final_message=False,
        add_special_tokens=False,
    )
    rendered = await renderer.render_chat(request)
    (expected,) = llm.chat(_conversation(part), GREEDY, use_tqdm=False)
    assert rendered.token_ids == expected.prompt_token_ids and rendered.images.shape == (1, 3, TILE, TILE)
    inputs = {"prompt": rendered.text, "prompt_token_ids": rendered.token_ids, "multi_modal_data": rendered.images}
    (found,) = llm.generate([inputs], GREEDY, use_tqdm=False)
    assert found.outputs[0].token_ids == expected.outputs[0].token_ids
    with pytest.raises(VLLMValidationError, match="cannot be cut"):
        await renderer.render_chat(request, truncated="left")
    renderer.close()


def test_images_cross_the_socket(preparer):
    ids, prepared = preparer.prepare("a<|image|>", [images.picture(6)], False)
    request = messages.EngineCoreRequest("r", ids, CoreSampling(), images=prepared)
    found = messages.to_core_decoder.decode(messages.encoder.encode(request))
    assert found.images == prepared and found.to_request().image_hashes == prepared.hashes
    plain = messages.EngineCoreRequest("r", ids, CoreSampling())
    assert b"images" not in messages.encoder.encode(plain)


def test_hashes_are_of_what_is_seen(preparer):
    def hashes(*pictures):
        return preparer.prepare("<|image|>" * len(pictures), pictures, False)[1].hashes

    one = images.picture(7)
    other = one.copy()
    other[3, 4, 1] ^= 1
    assert hashes(one, other) == (*hashes(Image.fromarray(one)), *hashes(other))
    assert len({*hashes(one), *hashes(other), *hashes(one.reshape(TILE // 2, TILE * 2, 3).repeat(2, 0))}) == 3


# What is refused.


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (_prompt("no token", images.picture(1)), r"0 image tokens <\|image\|> and 1 images"),
        (_prompt("<|image|><|image|>", images.picture(1)), r"2 image tokens .* and 1 images"),
        (_prompt("<|image|><|patch|>", images.picture(1)), "must not hold the placeholder token"),
        (_prompt("<|image|>" * 9, *[images.picture(1)] * 9), "9 tiles, and the vision encoder takes at most 8"),
        (_prompt("a" * 200 + "<|image|>", images.picture(1)), "maximum model length of 128"),
        ({"prompt": "<|image|>", "multi_modal_data": {"video": [1]}}, "only images are taken"),
        ({"prompt": "<|image|>", "multi_modal_data": [1]}, "multi_modal_data must be"),
        (_prompt("<|image|>", "picture.png"), "a PIL image or an array"),
        (_prompt("<|image|>", images.picture(1).astype(np.float32)), "a PIL image or an array"),
        (_prompt("<|image|>", Image.new("1", (MAX_PIXELS // 1024 + 1, 1024))), "from 1 to"),
        ({"prompt_token_ids": [5, 6], "multi_modal_data": {"image": images.picture(1)}}, "must be a text"),
        ({**_prompt("<|image|>", images.picture(1)), "mm_processor_kwargs": {"a": 1}}, "mm_processor_kwargs"),
    ],
)
def test_what_cannot_be_seen_is_refused_before_it_runs(llm, prompt, message):
    with pytest.raises(VLLMValidationError, match=message):
        llm.generate([prompt], GREEDY, use_tqdm=False)


@pytest.mark.parametrize(("most", "count", "message"), [(2, 3, "at most 2 images are"), (1, 2, "at most 1 image is")])
def test_as_many_images_as_the_user_allows(preparer, most, count, message):
    bounded = ImagePreparer(preparer.limits, lambda: preparer.processor, most)
    pictures = [images.picture(seed) for seed in range(count)]
    assert bounded.prepare("<|image|>" * most, pictures[:most], False)
    with pytest.raises(VLLMValidationError, match=rf"{message} taken in one prompt.*limit_mm_per_prompt"):
        bounded.prepare("<|image|>" * count, pictures, False)


def test_a_limit_of_no_images(llama4, processor, tmp_path):
    """Before an image is even read; texts go on as before."""
    with on_a_device("0.9.0", tmp_path / "site") as patch:
        patch.setattr("vllm.engine.text.input_processor.hub_processor", lambda path: lambda: processor)
        options = {"max_model_len": 64, "max_num_seqs": 2, "dtype": "float32"}
        llm = LLM(model=str(llama4), device="neuronx", limit_mm_per_prompt={"image": 0}, **options)
        with pytest.raises(VLLMValidationError, match=r"this server takes no images \(limit_mm_per_prompt\)"):
            llm.generate([_prompt("<|image|>", images.picture(1))], GREEDY, use_tqdm=False)
        part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,????"}}
        with pytest.raises(VLLMValidationError, match="this server takes no images") as caught:
            llm.chat(_conversation(part), GREEDY, use_tqdm=False)
        assert caught.value.parameter == "messages[0].content[1].image_url.url"
        assert llm.chat(_conversation(), GREEDY, use_tqdm=False)


def test_a_prompt_that_would_lose_its_image_is_refused(llm, processor):
    text = "<|image|>"
    while (length := len(processor(text=[text], images=[images.picture(1)])["input_ids"][0])) < 32:
        text += "a"
    assert length == 32
    with pytest.raises(VLLMValidationError, match="exactly 32 tokens"):
        llm.generate([_prompt(text, images.picture(1))], GREEDY, use_tqdm=False)
    assert llm.generate([_prompt(text + "a", images.picture(1)), text], GREEDY, use_tqdm=False)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("https://example.com/cat.png", "nothing is fetched"),
        ("file:///etc/passwd", "nothing is fetched"),
        ("data:image/png;base64,????", "no image that can be read"),
        ("data:image/png;base64," + base64.b64encode(b"GIF89a").decode(), "no image that can be read"),
        ("data:image/svg+xml;base64," + base64.b64encode(b"<svg/>").decode(), "no image that can be read"),
        (_data_url(images.picture(1))[:200], "no image that can be read|cannot be read"),
        (7, "must be a text"),
    ],
)
def test_urls_that_are_no_images(llm, url, message):
    part = {"type": "image_url", "image_url": {"url": url}}
    with pytest.raises(VLLMValidationError, match=message) as caught:
        llm.chat(_conversation(part), GREEDY, use_tqdm=False)
    assert caught.value.parameter == "messages[0].content[1].image_url.url"


def test_templates_that_take_text_only(llm):
    template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    part = {"type": "image_url", "image_url": {"url": _data_url(images.picture(1))}}
    with pytest.raises(VLLMValidationError, match="chat template takes text only"):
        llm.chat(_conversation(part), GREEDY, chat_template=template, use_tqdm=False)


def test_beams_and_cut_prompts_take_no_images(llm):
    from vllm.sampling_params import BeamSearchParams

    prompt = _prompt("<|image|>", images.picture(1))
    with pytest.raises(VLLMValidationError, match="beam search takes no images"):
        llm.llm_engine.input_processor.prompt_token_ids(prompt)
    with pytest.raises(VLLMValidationError, match="needs log-probabilities"):  # the device's sampler gives none
        llm.beam_search([prompt], BeamSearchParams(beam_width=2, max_tokens=2))
    with pytest.raises(VLLMValidationError, match="cannot be cut"):
        llm.generate([prompt], SamplingParams(truncate_prompt_tokens=4), use_tqdm=False)


def test_models_of_text_say_so(tiny_llama):
    llm = LLM(model=str(tiny_llama), device="null", max_model_len=64, max_num_seqs=2)
    with pytest.raises(VLLMValidationError, match="this model takes text only"):
        llm.generate([_prompt("<|image|>", images.picture(1))], GREEDY, use_tqdm=False)
    part = {"type": "image_url", "image_url": {"url": _data_url(images.picture(1))}}
    with pytest.raises(VLLMValidationError, match="takes text only"):
        llm.chat(_conversation(part), GREEDY, use_tqdm=False)


def test_a_checkpoint_without_a_processor_says_what_is_missing(llama4, preparer):
    from vllm.engine.text.images import hub_processor

    bare = ImagePreparer(preparer.limits, hub_processor(str(llama4)))
    with pytest.raises(VLLMValidationError, match=r"preprocessor_config\.json"):
        bare.prepare("<|image|>", [images.picture(1)], False)


def test_the_processor_of_transformers(llama4, tmp_path):
    """Where torchvision works: the checkpoint's own processor, loaded as a user's would be."""
    import shutil

    import transformers

    found = getattr(transformers, "Llama4ImageProcessor", None) or transformers.Llama4ImageProcessorFast
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"torchvision does not work here: {error}")
    directory = shutil.copytree(llama4, tmp_path / "model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(llama4)
    size = {"height": TILE, "width": TILE}
    own = transformers.Llama4Processor(found(size=size, max_patches=4), tokenizer, patch_size=images.PATCH)
    own.save_pretrained(directory)
    from vllm.engine.text.images import hub_processor

    preparer = ImagePreparer(
        ImageLimits(images.PLACEHOLDER_ID, images.TOKENS_PER_TILE, 8), hub_processor(str(directory))
    )
    pictures = [Image.fromarray(images.picture(8, 40, 90)), Image.fromarray(images.picture(9))]
    ids, prepared = preparer.prepare("a<|image|>b<|image|>", pictures, True)
    made = own(text=["a<|image|>b<|image|>"], images=pictures, return_tensors="pt")
    assert ids == made["input_ids"][0].tolist()
    assert PromptImages(made["pixel_values"].float().numpy().tobytes(), prepared.shape, prepared.hashes) == prepared
