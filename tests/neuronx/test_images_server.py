"""Images over HTTP: a server in processes of its own on the stand-in, the official client, and what comes back."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from tests.neuronx import images, standin
from tests.neuronx.test_images_door import _data_url
from tests.neuronx.tiles import tile_processor
from tests.server.process import serve
from tests.tree import ROOT

IN_EVERY_PROCESS = """
from pathlib import Path
from vllm.engine.text import input_processor
from vllm.settings import host_platform


def load(path):
    from tests.neuronx.tiles import tile_processor
    return tile_processor(Path(path))


host_platform.has_neuron_device = lambda: True
input_processor.hub_processor = lambda path: lambda: load(path)
"""
OPTIONS = ("--max-model-len", "128", "--max-num-seqs", "2", "--dtype", "float32", "--limit-mm-per-prompt", "image=2")
OVERRIDE = '{"context_encoding_buckets": [32, 128], "vision_neuron_config": {"buckets": [2, 8]}}'
COUNT = 5


@pytest.fixture(scope="module")
def server(llama4, tmp_path_factory):
    site = standin.write_metadata(tmp_path_factory.mktemp("site"), "0.9.0")
    (site / "sitecustomize.py").write_text(IN_EVERY_PROCESS)
    paths = [str(site), str(standin.SITE), str(ROOT), os.environ.get("PYTHONPATH", "")]
    env = {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "NEURON_COMPILED_ARTIFACTS": str(tmp_path_factory.mktemp("artifacts")),
    }
    with serve(llama4, *OPTIONS, "--override-neuron-config", OVERRIDE, device="neuronx", env=env) as found:
        yield found


@pytest.fixture(scope="module")
def expected(llama4, llama4_reference):
    """The text that transformers' own Llama 4 gives for a chat of a text and pictures."""
    processor = tile_processor(llama4)

    def text_of(text, *pictures):
        prompt = f"<|im_start|>user\n{text}{'<|image|>' * len(pictures)}<|im_end|>\n<|im_start|>assistant\n"
        made = processor(text=[prompt], images=pictures or None, add_special_tokens=False, return_tensors="pt")
        pixels = made["pixel_values"].numpy() if pictures else None
        tokens = llama4_reference.generate(made["input_ids"][0].tolist(), pixels, COUNT)
        return processor.tokenizer.decode(tokens, skip_special_tokens=True)

    return text_of


def _ask(server, text, *urls, **options):
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return server.client().chat.completions.create(
        model="test-model",
        messages=[{"role": "user", "content": [{"type": "text", "text": text}, *parts]}],
        temperature=0,
        max_tokens=COUNT,
        extra_body={"ignore_eos": True},
        **options,
    )


def test_chats_with_images(server, expected):
    pictures = [images.picture(11), images.picture(12, images.TILE, 2 * images.TILE)]
    answer = _ask(server, "compare: ", *map(_data_url, pictures))
    assert answer.choices[0].message.content == expected("compare: ", *pictures)
    assert answer.usage.completion_tokens == COUNT
    stream = _ask(server, "compare: ", *map(_data_url, pictures), stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == answer.choices[0].message.content


def test_chats_at_once_see_their_own_images(server, expected):
    """More of them than rows, and one without an image."""
    pictures = {f"number {seed}: ": [images.picture(seed)] if seed else [] for seed in range(6)}
    with ThreadPoolExecutor(len(pictures)) as pool:
        answers = pool.map(lambda text: _ask(server, text, *map(_data_url, pictures[text])), pictures)
        found = {text: answer.choices[0].message.content for text, answer in zip(pictures, answers, strict=True)}
    assert found == {text: expected(text, *given) for text, given in pictures.items()}
    assert len(set(found.values())) > 3


@pytest.mark.parametrize(
    ("urls", "message", "param"),
    [
        ([_data_url(images.picture(1))] * 3, "at most 2 images are taken", "messages[0].content[3].image_url.url"),
        (["https://example.com/cat.png"], "nothing is fetched", "messages[0].content[1].image_url.url"),
        (["data:image/png;base64,AAAA"], "no image that can be read", "messages[0].content[1].image_url.url"),
    ],
)
def test_what_is_refused(server, urls, message, param):
    with pytest.raises(openai.BadRequestError) as caught:
        _ask(server, "look: ", *urls)
    assert message in caught.value.message and caught.value.param == param
    assert _ask(server, "and on").choices[0].message.content
