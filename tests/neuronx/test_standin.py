"""The stand-in punishes what the library punishes: each mistake an adapter can make gives another text, or an error."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.neuron.test_target_contract import _alone, _prompt
from tests.neuronx.conftest import targets

pytestmark = pytest.mark.parametrize("target", targets("device"), indirect=True, ids="-".join)
PROMPTS = [_prompt(i, 5 + 4 * i) for i in range(4)]


def _prefill(app, prompt, line):
    ids = torch.tensor([prompt])
    positions = torch.arange(len(prompt))[None]
    given = {"input_ids": ids, "position_ids": positions, "seq_ids": torch.tensor([line])}
    return int(app.forward(**given, sampling_params=torch.ones(1, 3)).tokens[0])


def _decode(app, lines, tokens, positions):
    output = app.forward(
        input_ids=torch.tensor(tokens)[:, None],
        position_ids=torch.tensor(positions)[:, None],
        seq_ids=torch.tensor(lines),
        sampling_params=torch.ones(len(lines), 3),
    )
    return output.tokens.tolist()


@pytest.fixture
def app(target):
    """The application, all four lines filled; and what each line's first token was."""
    application = target[1].application
    return application, [_prefill(application, prompt, line) for line, prompt in enumerate(PROMPTS)]


def _expected(target, count=2):
    return [_alone(target, prompt, count)[0] for prompt in PROMPTS]


def test_rows_in_order_give_the_right_text(target, app):
    application, first = app
    second = _decode(application, [0, 1, 2, 3], first, [len(prompt) for prompt in PROMPTS])
    assert [[a, b] for a, b in zip(first, second, strict=True)] == _expected(target)


def test_a_full_batch_out_of_order_is_wrong(target, app):
    application, first = app
    order = [2, 0, 3, 1]
    second = _decode(application, order, [first[i] for i in order], [len(PROMPTS[i]) for i in order])
    assert second != [_expected(target)[i][1] for i in order]


def test_a_live_line_left_out_of_a_decode_is_overwritten(target, app):
    application, first = app
    _decode(application, [1], [first[1]], [len(PROMPTS[1])])
    _decode(application, [1, 2, 3], [7, 7, 7], [3, 3, 3])
    assert _decode(application, [0, 1, 2, 3], first, [len(p) for p in PROMPTS])[0] != _expected(target)[0][1]


def test_a_prompt_of_one_token_left_to_the_library_samples_at_its_padding(target):
    application = target[1].application
    wrong = [_prefill(application, [token], 0) for token in range(3, 23)]
    right = [_alone(target, [token], 1)[0][0] for token in range(3, 23)]
    assert wrong != right


def test_a_decode_at_the_length_of_the_cache_is_taken_and_lost(target, app):
    application, _ = app
    assert len(_decode(application, [0, 1, 2, 3], [5] * 4, [64] * 4)) == 4
    with pytest.raises(ValueError, match="exceeds largest bucket"):
        _decode(application, [0, 1, 2, 3], [5] * 4, [65] * 4)


def test_unknown_keywords_are_errors(target):
    with pytest.raises(TypeError, match="sampling"):
        target[1].application.forward(input_ids=torch.zeros(1, 1), sampling=torch.ones(1, 3))


@pytest.mark.parametrize(
    ("longest", "expected"),
    [
        (64, [64]),
        (181, [181]),
        (182, [128, 182]),
        (362, [128, 362]),
        (363, [128, 256, 363]),
        (1000, [128, 256, 512, 1000]),
        (5792, [128, 256, 512, 1024, 2048, 5792]),
        (5793, [128, 256, 512, 1024, 2048, 4096, 5793]),
    ],
)
def test_generated_buckets(target, longest, expected):
    from neuronx_distributed_inference.modules.autobucketing import generate_buckets

    assert generate_buckets(128, longest) == expected


def _draws(rows, probabilities, count=400):
    from types import SimpleNamespace

    from neuronx_distributed_inference.models.config import NeuronConfig, OnDeviceSamplingConfig
    from neuronx_distributed_inference.modules.generation.sampling import Sampler

    sampling = OnDeviceSamplingConfig(dynamic=True, global_topk=len(probabilities))
    neuron_config = NeuronConfig(on_device_sampling_config=sampling)
    sampler = Sampler(SimpleNamespace(neuron_config=neuron_config, vocab_size=len(probabilities)))
    torch.manual_seed(0)
    logits = torch.log(torch.tensor([probabilities])).expand(count, -1)
    tokens = sampler(logits, torch.tensor([rows]).expand(count, 3))
    return np.bincount(tokens.numpy(), minlength=len(probabilities)) / count


def test_top_p_drops_the_token_that_crosses_it(target):
    shares = _draws((4.0, 0.9, 1.0), [0.5, 0.3, 0.15, 0.05])
    assert (shares > 0).tolist() == [True, True, False, False]
    assert shares[0] == pytest.approx(0.5 / 0.8, abs=0.08)


@pytest.mark.parametrize("top_k", [-1.0, 0.0])
def test_a_top_k_of_nothing_makes_everything_equally_likely(target, top_k):
    assert _draws((top_k, 1.0, 1.0), [0.91, 0.03, 0.03, 0.03]) == pytest.approx([0.25] * 4, abs=0.08)


def test_one_bad_row_rejects_the_whole_batch(target, app):
    application, first = app
    rows = torch.ones(4, 3)
    rows[2, 0] = 400
    with pytest.raises(ValueError, match="top-k"):
        application.forward(
            input_ids=torch.tensor(first)[:, None],
            position_ids=torch.tensor([[len(p)] for p in PROMPTS]),
            seq_ids=torch.arange(4),
            sampling_params=rows,
        )


def test_global_topk_beyond_the_vocabulary_fails(target):
    with pytest.raises(RuntimeError, match="out of range"):
        from types import SimpleNamespace

        from neuronx_distributed_inference.models.config import NeuronConfig, OnDeviceSamplingConfig
        from neuronx_distributed_inference.modules.generation.sampling import Sampler

        neuron_config = NeuronConfig(on_device_sampling_config=OnDeviceSamplingConfig(dynamic=True, global_topk=256))
        Sampler(SimpleNamespace(neuron_config=neuron_config, vocab_size=100))


def test_unknown_neuron_config_keys_are_only_warned_about(target, caplog):
    from neuronx_distributed_inference.models.config import NeuronConfig

    assert not hasattr(NeuronConfig(enable_fused_speculatuon=True), "enable_fused_speculatuon")
    assert "Unexpected keyword arguments" in caplog.text
