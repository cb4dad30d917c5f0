"""What counts when speculation is compared, and that drafts must not change our text."""

from __future__ import annotations

import compare_speculation
import pytest
from peers.base import PeerError

URLS = {("ours", "none"): "a", ("ours", "ngram"): "b", ("other", "none"): "c"}


def test_rates_of_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = {"a": ("text", 10, 2.0), "b": ("text", 10, 1.0), "c": ("another", 10, 5.0)}
    monkeypatch.setattr(compare_speculation, "generate", lambda url, prompt, output_len: runs[url])
    rates = compare_speculation.one_round(URLS, {"plain": [[1], [2]]}, 11, backwards=False)
    assert list(rates.values()) == [5.0, 10.0, 2.0], "of two prompts: all tokens over all seconds"
    runs["b"] = ("changed", 10, 1.0)
    with pytest.raises(PeerError, match="ngram generated another text"):
        compare_speculation.one_round(URLS, {"plain": [[1]]}, 11, backwards=True)


def test_the_ratio_is_the_median_of_the_ratios_within_a_round() -> None:
    rates = {(("ours", "none"), "plain"): [1.0, 2.0, 10.0], (("ours", "ngram"), "plain"): [3.0, 4.0, 10.0]}
    none, ngram = compare_speculation.summary(rates)
    assert (none["ratio"], ngram["ratio"], ngram["tokens_per_s"]) == (1.0, 2.0, 4.0)
