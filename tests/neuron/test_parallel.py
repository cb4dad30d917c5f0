"""What a tensor-parallel degree does to heads, against the accelerator library's rules."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm.settings.parallel import HeadSharding, degree_fault, kv_bytes_per_token, valid_degrees


@pytest.mark.parametrize(
    ("heads", "kv_heads", "degree", "padded", "kv", "strategy"),
    [
        (32, 4, 1, 32, 4, "none"),
        (32, 4, 2, 32, 4, "split"),
        (32, 4, 32, 32, 32, "replicate"),
        (32, 8, 16, 32, 16, "replicate"),
        (28, 4, 32, 32, 32, "replicate"),
        (9, 3, 2, 10, 10, "mha"),
        (9, 3, 32, 32, 32, "mha"),
        (14, 2, 8, 16, 8, "replicate"),
        (9, 9, 8, 16, 16, "split"),
        (64, 8, 24, 72, 24, "replicate"),
    ],
)
def test_heads_by_degree(heads, kv_heads, degree, padded, kv, strategy):
    plan = HeadSharding.plan(degree, heads, kv_heads, head_dim=64)
    assert (plan.padded_heads, plan.sharded_kv_heads, plan.strategy) == (padded, kv, strategy)


@given(st.sampled_from(valid_degrees()), st.integers(1, 128), st.data())
def test_every_rank_gets_whole_heads_and_every_query_head_its_kv_head(degree, heads, data):
    kv_heads = data.draw(st.sampled_from([n for n in range(1, heads + 1) if heads % n == 0]))
    plan = HeadSharding.plan(degree, heads, kv_heads, head_dim=64)
    assert plan.heads_per_rank * degree == plan.padded_heads >= heads
    assert plan.kv_heads_per_rank * degree == plan.sharded_kv_heads >= kv_heads
    assert plan.padded_heads - heads < degree
    assert plan.heads_per_rank % plan.kv_heads_per_rank == 0 or plan.strategy == "split"
    assert plan.kv_copies >= 1


def test_the_plan_says_what_the_accelerator_would_do():
    text = HeadSharding.plan(32, 28, 4, head_dim=128).describe()
    assert "1 of 28 query heads (padded to 32)" in text
    assert "replicating 4 KV heads to 32" in text
    assert "\n" not in text
    assert "converting 3 KV heads to 10" in HeadSharding.plan(2, 9, 3, head_dim=64).describe()


def test_plan_of_a_config():
    plan = HeadSharding.from_hf_config(2, {"num_attention_heads": 16, "hidden_size": 1024})
    assert plan is not None
    assert (plan.num_kv_heads, plan.head_dim) == (16, 64)
    explicit = HeadSharding.from_hf_config(2, {"num_attention_heads": 16, "hidden_size": 1024, "head_dim": 128})
    assert explicit is not None and explicit.head_dim == 128
    assert HeadSharding.from_hf_config(2, {"d_model": 64}) is None


def test_degrees_by_platform():
    assert degree_fault(32) is None
    assert degree_fault(24, "inf2") is None
    assert degree_fault(24, "trn1") == "trn1 has no such degree. Valid: 1, 2, 8, 16, 32"
    fault = degree_fault(3)
    assert fault is not None and fault.endswith("Valid: 1, 2, 4, 8, 16, 24, 32, 64")


def test_kv_bytes():
    config = {"num_attention_heads": 9, "num_key_value_heads": 3, "hidden_size": 576, "num_hidden_layers": 30}
    assert kv_bytes_per_token(config, 2) == 2 * 30 * 3 * 64 * 2
    assert kv_bytes_per_token({}, 2) == 0
