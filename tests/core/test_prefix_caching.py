"""What is found in the prefix cache, to the token; the fake device checks that no block is read while it is written."""

from __future__ import annotations

import pytest

from tests.core.fake_device import make_config
from tests.core.harness import Engine


def engine_with(**options: object) -> Engine:
    return Engine(make_config(**{"block_size": 4, "prefix_caching": True, "max_model_len": 32, **options}))


def found(engine: Engine, prompt: list[int], **options: object) -> int:
    req_id = engine.add(prompt, **options)
    engine.run()
    return engine.told[req_id].end.num_cached_tokens


MODES = [
    {"prefill_batch_size": 1},
    {"prefill_batch_size": 4},
    {"prefill_batch_size": 4, "mixed_steps": True, "max_num_batched_tokens": 100},
    {"prefill_batch_size": 4, "mixed_steps": True, "max_num_batched_tokens": 5},
]


@pytest.mark.parametrize("mode", MODES)
def test_prompts_that_arrive_together_compute_what_they_share_once(mode: dict[str, object]) -> None:
    engine = engine_with(max_num_seqs=4, **mode)
    shared = [*range(1, 14)]
    ids = [engine.add([*shared, 20 + i], max_tokens=3) for i in range(4)]
    engine.run()
    assert [engine.told[req_id].end.num_cached_tokens for req_id in ids] == [0, 12, 12, 12]
    engine.check_clean()
    engine.check_texts()


@pytest.mark.parametrize("mode", MODES)
def test_the_same_prompt_many_times_is_computed_once(mode: dict[str, object]) -> None:
    engine = engine_with(max_num_seqs=4, **mode)
    ids = [engine.add([*range(1, 13)], max_tokens=5) for _ in range(4)]
    engine.run()
    assert [engine.told[req_id].end.num_cached_tokens for req_id in ids] == [0, 11, 11, 11]
    engine.check_clean()
    engine.check_texts()


def test_prompts_without_a_common_block_do_not_wait_for_each_other() -> None:
    engine = engine_with(max_num_seqs=4, **MODES[2])
    for i in range(4):
        engine.add([1, 2, 3, 10 + i, 5, 6, 7, 8, 9])
    engine.step()
    assert len(engine.admitted) == 4


@pytest.mark.parametrize("end", ["abort", "error"])
def test_who_waits_for_a_prefix_computes_it_if_the_other_ends(end: str) -> None:
    engine = engine_with(max_num_seqs=4, **MODES[3])
    first = engine.add([*range(1, 14)])
    second = engine.add([*range(1, 14)])
    engine.step()
    assert engine.admitted == [first]
    if end == "abort":
        engine.abort(first)
    else:
        engine.device.fail.add(first)
    engine.run()
    assert engine.told[first].end.finish_reason == end
    assert engine.told[second].end.num_cached_tokens == 4
    engine.check_clean()
    engine.check_texts()


def test_salts_and_adapters_share_nothing_and_wait_for_nobody() -> None:
    engine = engine_with(max_num_seqs=4, **MODES[2])
    for lora_id, salt in ((0, None), (1, None), (0, "a"), (0, "b")):
        engine.add([*range(1, 10)], lora_id=lora_id, cache_salt=salt)
    engine.step()
    assert len(engine.admitted) == 4
    engine.run()
    assert found(engine, [*range(1, 10)], cache_salt="a") == 8
    assert found(engine, [*range(1, 10)], cache_salt="c") == 0


def test_other_images_share_nothing_not_even_the_text_before_them() -> None:
    """Placeholder tokens are the same for all images; what they stand for is not."""
    engine = engine_with(max_num_seqs=4, **MODES[2])
    cat, dog = "cat", "dog"
    for images in ((), (cat,), (dog,), (cat, dog), (dog, cat)):
        assert found(engine, [*range(1, 10)], image_hashes=images) == 0
        assert found(engine, [*range(1, 10)], image_hashes=images) == 8
    assert found(engine, [*range(1, 10)], image_hashes=(cat,), cache_salt="a") == 0
    assert found(engine, [*range(1, 10)], image_hashes=(cat,), lora_id=1) == 0


def test_cached_blocks_survive_idle_times() -> None:
    engine = engine_with(max_num_seqs=2, num_blocks=40)
    assert found(engine, [*range(1, 10)]) == 0
    for _ in range(1000):
        engine.now += 86_400.0
        engine.step()
    assert found(engine, [*range(1, 10)]) == 8
    engine.check_clean()


def test_answers_to_the_same_prompt_share_it() -> None:
    """What `n=4` comes to: the first computes the prompt, the others its last token alone."""
    engine = engine_with(max_num_seqs=4, **MODES[2])
    prompt = [*range(1, 17)]
    ids = [engine.add(prompt, max_tokens=3, seed=i) for i in range(4)]
    engine.run()
    assert [engine.told[req_id].end.num_cached_tokens for req_id in ids] == [0, 15, 15, 15]
    engine.check_clean()


@pytest.mark.parametrize("mode", MODES)
def test_few_shot_prompts_find_the_shots(mode: dict[str, object]) -> None:
    """18 tokens of examples are 4 whole blocks of 4; each question finds those, whatever it is itself."""
    engine = engine_with(max_num_seqs=4, max_model_len=64, num_blocks=80, **mode)
    shots = [*range(1, 19)]
    assert found(engine, [*shots, 50]) == 0
    ids = [engine.add([*shots, 60 + i, 70 + i, 80 + i], max_tokens=2) for i in range(9)]
    engine.run()
    assert [engine.told[req_id].end.num_cached_tokens for req_id in ids] == [16] * 9
    engine.check_texts()


def test_one_row_finds_its_own_past() -> None:
    """A long chat on the smallest engine there is: each turn finds all whole blocks of the last."""
    engine = engine_with(max_num_seqs=1, num_blocks=9)
    history = [1, 2, 3]
    for turn in range(4):
        prompt = [*history, 4, 5]
        req_id = engine.add(prompt, max_tokens=3, ignore_eos=True)
        engine.run()
        told = engine.told[req_id]
        computed_before = 0 if not turn else len(history) - 1
        assert told.end.num_cached_tokens == computed_before // 4 * 4
        history = [*prompt, *told.token_ids]
    engine.check_clean()


def test_a_fork_shares_the_trunk() -> None:
    engine = engine_with(max_num_seqs=2, max_model_len=64)
    trunk = [*range(1, 21)]
    assert found(engine, [*trunk, 30]) == 0
    assert found(engine, [*trunk, 31, 32]) == 20
    assert found(engine, [*trunk[:-1], 31, 32]) == 16


def test_what_was_computed_before_an_abort_is_found() -> None:
    engine = engine_with(max_num_seqs=1, **MODES[3])
    first = engine.add([*range(1, 14)])
    engine.step()
    engine.step()
    engine.abort(first)
    assert found(engine, [*range(1, 14)]) == 8


def test_what_failed_is_not_found() -> None:
    engine = engine_with(max_num_seqs=1)
    engine.device.fail.add(engine.add([*range(1, 14)]))
    engine.run()
    assert found(engine, [*range(1, 14)]) == 0


def test_the_published_recipe_hits_what_arithmetic_says() -> None:
    """50 prompts, 5 prefixes of 3072 tokens, 1024 tokens of their own: 45 of the prefixes are found, 67.5 %."""
    scale = 32
    prefix_len, suffix_len = 3072 // scale, 1024 // scale
    engine = engine_with(max_num_seqs=1, max_model_len=4352 // scale, num_blocks=700)
    for i in range(50):
        prefix = [100 + i % 5] * prefix_len
        engine.add([*prefix, *(1000 + i * suffix_len + j for j in range(suffix_len))], max_tokens=4, ignore_eos=True)
    engine.run()
    stats = engine.scheduler.stats()
    assert (stats.prefix_cache_hits, stats.prefix_cache_queries) == (45 * prefix_len, 50 * (prefix_len + suffix_len))
    assert stats.prefix_cache_hits / stats.prefix_cache_queries == 0.675
