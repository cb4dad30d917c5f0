"""From `ModelInput` to the library's keyword arguments."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.neuronx.inputs import GREEDY, decode, model_input, prefill
from vllm.device.model_input import Kind
from vllm.targets.neuronx.input_checks import Limits, row_faults
from vllm.targets.neuronx.inputs import build_calls, sampling_rows

LIMITS = Limits(
    num_lines=4,
    max_length=64,
    max_context_length=32,
    vocab_size=320,
    global_topk=256,
    masks_absent_lines=False,
    adapter_slot=0,
)


def _calls(given, limits=LIMITS):
    return list(build_calls(given, limits))


def test_decode_rows_are_sorted_with_everything_that_belongs_to_them():
    sampling = np.asarray([(5, 0.9, 0.5), (6, 0.8, 0.6), (7, 0.7, 0.7)], np.float32)
    adapters = np.asarray([0, 1, 2], np.int32)
    (call,) = _calls(decode([10, 11, 12], [3, 0, 2], [7, 8, 9], sampling_params=sampling, adapter_ids=adapters))
    assert call.arguments["seq_ids"].tolist() == [0, 2, 3]
    assert call.arguments["input_ids"].tolist() == [[11], [12], [10]]
    assert call.arguments["position_ids"].tolist() == [[8], [9], [7]]
    assert call.arguments["sampling_params"][:, 0].tolist() == [6, 7, 5]
    assert call.arguments["adapter_ids"].tolist() == [1, 2, 0]
    assert call.rows.tolist() == [1, 2, 0]


def test_prompts_are_calls_of_their_own():
    calls = _calls(prefill([[5, 6, 7], [8, 9, 10, 11]], [2, 1]))
    assert [call.arguments["input_ids"].tolist() for call in calls] == [[[8, 9, 10, 11]], [[5, 6, 7]]]
    assert [call.arguments["position_ids"].tolist() for call in calls] == [[[0, 1, 2, 3]], [[0, 1, 2]]]
    assert [call.arguments["seq_ids"].tolist() for call in calls] == [[1], [2]]
    assert [call.rows.tolist() for call in calls] == [[1], [0]]


@pytest.mark.parametrize(("prompt", "positions"), [([5], [0, 0, 0]), ([5, 6], [0, 1, 0])])
def test_short_prompts_fill_the_largest_bucket_with_position_0(prompt, positions):
    (call,) = _calls(prefill([prompt], [0]))
    assert call.arguments["input_ids"].shape == (1, 32)
    assert call.arguments["position_ids"][0, :3].tolist() == positions
    assert int(call.arguments["position_ids"][0].argmax()) == len(prompt) - 1


@pytest.mark.parametrize("position", [0, 64, 65])
def test_decodes_outside_the_cache_are_refused(position):
    with pytest.raises(ValueError, match="the last is 63"):
        _calls(decode([5, 6], [0, 1], [3, position]))


def test_the_last_position_is_legal():
    assert _calls(decode([5], [0], [63]))


def test_a_decode_without_a_live_line_is_refused():
    given = decode([5, 6], [0, 2], [3, 3], live_seq_ids=np.asarray([0, 1, 2, 3], np.int32))
    with pytest.raises(ValueError, match=r"live KV lines \[1, 3\]"):
        _calls(given)
    assert _calls(given, dataclasses.replace(LIMITS, masks_absent_lines=True))


@pytest.mark.parametrize("lines", [[0, 0], [-1, 1], [1, 4]])
def test_lines_are_distinct_and_compiled(lines):
    with pytest.raises(ValueError, match="KV lines"):
        _calls(decode([5, 6], lines, [3, 3]))


def test_a_prompt_beyond_the_largest_bucket_is_refused():
    with pytest.raises(ValueError, match="the longest compiled, 32"):
        _calls(prefill([[5] * 33], [0]))


@pytest.mark.parametrize("kind", [Kind.CHUNK, Kind.VERIFY])
def test_over_contiguous_kv_prompts_are_whole(kind):
    with pytest.raises(ValueError, match=r"block KV|speculation"):
        _calls(model_input(kind, [[5, 6]], [0], [3]))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((0, 0.9, 1.0), (256, 0.9, 1.0)),
        ((-1, 0.9, 1.0), (256, 0.9, 1.0)),
        ((320, 0.9, 1.0), (256, 0.9, 1.0)),
        ((40, 0.9, 0.0), GREEDY),
        ((-1, 1.0, 0.0), GREEDY),
        ((256, 1.0, 2.0), (256, 1.0, 2.0)),
        (GREEDY, GREEDY),
    ],
)
def test_sampling_rows(given, expected):
    assert sampling_rows(np.asarray([given], np.float32), LIMITS)[0].tolist() == pytest.approx(expected)


def test_the_given_rows_are_left_alone():
    rows = np.asarray([(0, 0.9, 0.0)], np.float32)
    sampling_rows(rows, LIMITS)
    assert rows.tolist() == [[0, pytest.approx(0.9), 0]]


@pytest.mark.parametrize("row", [(257, 1, 1), (1.5, 1, 1), (5, 0, 1), (5, 1.5, 1), (5, 1, np.nan), (5, np.nan, 1)])
def test_rows_that_would_reject_the_batch_are_refused(row):
    rows = np.asarray([GREEDY, row], np.float32)
    faults = row_faults(decode([5, 6], [0, 1], [3, 4], sampling_params=rows), LIMITS)
    assert list(faults) == [1] and "cannot be sampled" in faults[1]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"seq_ids": [0, 4, 2]}, "KV line 4"),
        ({"position_ids": [[3], [64], [5]]}, "position 64"),
        ({"input_ids": [[5], [320], [7]]}, "from 0 to 319"),
    ],
)
def test_a_row_at_fault_is_found_and_the_others_run(change, reason):
    fields = {name: np.asarray(value, np.int32) for name, value in change.items()}
    given = dataclasses.replace(decode([5, 6, 7], [0, 1, 2], [3, 4, 5]), **fields)
    faults = row_faults(given, LIMITS)
    assert list(faults) == [1] and reason in faults[1]
    with pytest.raises(ValueError, match=reason):
        _calls(given)


@given(
    st.lists(
        st.tuples(
            st.sampled_from([-1, 0, 1, 7, 256, 320, 1000]),
            st.floats(0.0078125, 1, width=32),
            st.sampled_from([0.0, 0.25, 1.0, 2.0]),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_what_passes_is_valid_in_every_version(rows):
    for top_k, top_p, temperature in sampling_rows(np.asarray(rows, np.float32), LIMITS).tolist():
        assert 1 <= top_k <= 256 and top_k == int(top_k)
        assert 0 < top_p <= 1 and temperature > 0


# Prefix caching.

BLOCKS = dataclasses.replace(LIMITS, block_size=8, num_blocks=32, adapter_slot=None)
TABLE = np.asarray([[3, 1, 4, 7, 0, 0, 0, 0]], np.int32)


def _slots(positions):
    return [int(TABLE[0, p // 8]) * 8 + p % 8 for p in positions]


def _hit(computed, length):
    """A prompt of `length` tokens, the first `computed` of them cached."""
    tokens = list(range(100, 100 + length))
    given = model_input(Kind.CHUNK, [tokens[computed:]], [2], [computed])
    history = np.zeros((4, 64), np.int32)
    history[2, :length] = tokens
    given.sampling.history, given.sampling.history_line = history, np.asarray([2], np.int32)
    given.block_table = TABLE
    given.slot_mapping = np.asarray([_slots(range(computed, length))], np.int32)
    return given


def test_a_prefix_hit_carries_the_whole_prompt_and_the_slots_of_the_rest():
    (call,) = _calls(_hit(16, 21), BLOCKS)
    assert call.arguments["input_ids"].tolist() == [list(range(100, 121))]
    assert call.arguments["position_ids"].tolist() == [list(range(21))]
    slots = call.arguments["slot_mapping"][0]
    assert slots[:5].tolist() == _slots(range(16, 21)) and (slots[5:] == -1).all()
    assert call.arguments["full_context_lens"].tolist() == [[21]]
    assert call.arguments["computed_context_lens"].tolist() == [[16]]


def test_block_tables_are_as_wide_as_a_sequence():
    (call,) = _calls(_hit(16, 21), BLOCKS)
    assert call.arguments["block_table"].tolist() == TABLE.tolist()
    assert call.arguments["block_table"].shape == (1, BLOCKS.max_length // BLOCKS.block_size)


def test_block_ids_are_compiled():
    given = _hit(16, 21)
    given.block_table = TABLE + 29
    with pytest.raises(ValueError, match="of the 32 that were compiled"):
        _calls(given, BLOCKS)


def test_a_prompt_of_one_token_over_blocks_goes_as_a_decode():
    (call,) = _calls(prefill([[9]], [2], block_table=TABLE, slot_mapping=np.asarray([_slots([0])], np.int32)), BLOCKS)
    assert call.arguments["input_ids"].tolist() == [[9]] and call.arguments["position_ids"].tolist() == [[0]]
    assert call.arguments["slot_mapping"].tolist() == [_slots([0])]
    assert call.arguments["computed_context_lens"].tolist() == [[0]]


def test_pieces_over_blocks_are_refused():
    given = _hit(16, 21)
    given.samples = np.asarray([False])
    with pytest.raises(ValueError, match="chunked prefill"):
        _calls(given, BLOCKS)
