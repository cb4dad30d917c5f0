"""Ladders and first fit against the tables of the accelerator's library, and against brute force."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm.core.contract import BucketUse
from vllm.settings import buckets


@pytest.mark.parametrize(
    ("hi", "expected"),
    [
        (64, [64]),
        (128, [128]),
        (129, [129]),
        (181, [181]),
        (182, [128, 182]),
        (256, [128, 256]),
        (362, [128, 362]),
        (363, [128, 256, 363]),
        (1000, [128, 256, 512, 1000]),
        (1024, [128, 256, 512, 1024]),
        (5792, [128, 256, 512, 1024, 2048, 5792]),
        (5793, [128, 256, 512, 1024, 2048, 4096, 5793]),
    ],
)
def test_generated_ladders(hi, expected):
    assert buckets.generate_buckets(128, hi) == expected


@given(st.integers(1, 200_000))
def test_a_power_of_two_within_a_factor_of_sqrt_two_of_the_top_is_left_out(hi):
    ladder = buckets.generate_buckets(128, hi)
    below = [2**i for i in range(7, 20) if 2**i < hi / math.sqrt(2)]
    assert ladder == [*below, hi]


@given(st.integers(1, 20_000), st.data())
def test_every_legal_length_is_served_by_the_first_greater_bucket(hi, data):
    ladder = buckets.ladder(hi)
    length = data.draw(st.integers(0, hi))
    greater = [bucket for bucket in ladder if bucket > length]
    assert buckets.first_fit(length, ladder) == (greater[0] if greater else hi)


def test_only_the_largest_bucket_serves_its_own_length():
    assert [buckets.first_fit(n, [128, 256]) for n in (1, 127, 128, 255, 256)] == [128, 128, 256, 256, 256]
    with pytest.raises(ValueError, match="257 exceeds the largest bucket 256"):
        buckets.first_fit(257, [128, 256])


def test_ladder_takes_the_users_list_and_is_one_bucket_with_bucketing_off():
    assert buckets.ladder(1024, [100, 1024]) == [100, 1024]
    assert buckets.ladder(1024, enable_bucketing=False) == [1024]


@pytest.mark.parametrize(
    ("user", "why", "mended"),
    [
        ([], "empty", [512]),
        ([256, 128, 512], "ascend", [128, 256, 512]),
        ([128, 128, 512], "ascend", [128, 512]),
        ([0, 512], "positive", [512]),
        ([128, 1024], "exceeds the longest length 512", [128]),
    ],
)
def test_faulty_ladders_come_with_a_mended_one(user, why, mended):
    reason, suggestion = buckets.ladder_fault(user, 512)
    assert why in reason
    assert suggestion == mended
    assert buckets.ladder_fault(mended, 512) is None


def test_a_short_ladder_is_extended_to_the_maximum():
    assert buckets.ladder_fault([128, 256], 512) is None
    assert buckets.extended([128, 256], 512) == [128, 256, 512]
    assert buckets.extended([512], 512) == [512]


def test_prefix_caching_pairs():
    expected = [(512, 0), (512, 512), (512, 1024), (1024, 0), (1024, 512), (1024, 1024)]
    assert buckets.prefix_prefill_buckets(1024) == expected
    assert buckets.prefix_prefill_buckets(256) == [(256, 0), (256, 256)]
    assert buckets.prefix_prefill_buckets(1024, [256], [512]) == [(256, 0), (256, 512)]
    assert buckets.prefix_decode_buckets(1024) == [(1, 256), (1, 512), (1, 1024)]


def test_chunk_pairs():
    expected = [(128, 1), (128, 8), (128, 16), (256, 1), (256, 8), (256, 16)]
    assert buckets.chunk_buckets(256, 1024, 8, 128, 1024) == expected
    assert buckets.chunk_buckets(64, 128, 1, 128, 1024) == [(128, 1)]
    assert [pair[0] for pair in buckets.chunk_buckets(640, 1024, 1, 128, 1024) if pair[1] == 1] == [128, 384, 640]


def test_stats_count_padding():
    stats = buckets.BucketStats()
    assert stats.summary() == ""
    stats.add([BucketUse("prefill", 128, 1, 100, 1, 128), BucketUse("decode", 128, 3, 3, 4, 4)])
    stats.add([BucketUse("decode", 128, 1, 1, 4, 4)])
    assert stats.to_dict() == [
        {
            "kind": "decode",
            "bucket": 128,
            "uses": 2,
            "rows": 4,
            "tokens": 4,
            "bucket_tokens": 8,
            "padded_tokens": 4,
        },
        {
            "kind": "prefill",
            "bucket": 128,
            "uses": 1,
            "rows": 1,
            "tokens": 100,
            "bucket_tokens": 128,
            "padded_tokens": 28,
        },
    ]
    assert stats.summary() == "decode 128: 2 uses, 50% padding; prefill 128: 1 uses, 22% padding"
