"""What the engine counts, in Prometheus form under vLLM's names, and the line it logs.

Each engine has a registry of its own, so several can live in one process. All intervals are differences of the
monotonic clock. Labels are model_name and engine, and what each family adds. Beyond vLLM's families:

    vllm:bucket_uses, vllm:bucket_tokens, vllm:bucket_padding_tokens {kind, bucket}
                               forwards by compiled shape, real tokens in them, and the padding an accelerator would pay
    vllm:decode_stall_seconds  how long running streams waited for prompts, between two of their tokens
    vllm:decode_stall_bound_tokens
                               most tokens computed in that time, as the options bound them
    vllm:num_slots             rows of the compiled decode program
    vllm:artifact_hit          1 if this start compiled nothing
    vllm:startup_seconds {phase}
    vllm:memory_bytes {kind}
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from prometheus_client import CollectorRegistry
from prometheus_client import Counter as CounterFamily
from prometheus_client import Gauge as GaugeFamily
from prometheus_client import Histogram as HistogramFamily

from vllm import envs
from vllm.config import LoRAConfig, VllmConfig
from vllm.core.outputs import EngineCoreOutput, SchedulerStats
from vllm.engine.messages import StepOutput
from vllm.engine.processes.front_table import Column
from vllm.engine.processes.fronts import Attachment
from vllm.logger import init_logger
from vllm.settings.buckets import BucketStats

logger = init_logger(__name__)

_LABELS = ("model_name", "engine")
_FINISH_REASONS = ("stop", "length", "abort", "error")
_LATENCY = (0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0)
_FIRST_TOKEN = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0)
_BETWEEN_TOKENS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0)
_STEP_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)


@dataclass(frozen=True, slots=True)
class Metric:
    """One value of one family, with its labels; `LLM.get_metrics` gives these."""

    name: str
    labels: dict[str, str]


@dataclass(frozen=True, slots=True)
class Counter(Metric):
    value: float = 0.0


@dataclass(frozen=True, slots=True)
class Gauge(Metric):
    value: float = 0.0


@dataclass(frozen=True, slots=True)
class Histogram(Metric):
    """buckets: upper bound -> number of observations up to it."""

    count: int = 0
    sum: float = 0.0
    buckets: dict[str, int] = field(default_factory=dict)


class Family(NamedTuple):
    """What there is to measure. kind: counter (exposed with _total), gauge or histogram."""

    name: str
    kind: str
    labels: tuple[str, ...]
    text: str


@dataclass(slots=True)
class _Timeline:
    """What is remembered of a request until it ends."""

    arrival: float
    num_prompt_tokens: int
    max_tokens: int
    n: int
    num_output_tokens: int = 0
    first_token: float = 0.0
    last_token: float = 0.0


class EngineMetrics:
    """Records arrivals and steps. Driven by one thread; `registry` may be read by any."""

    def __init__(
        self,
        config: VllmConfig,
        executor_stats: Mapping[str, Any],
        engine: str = "0",
        tally: Tally | None = None,
    ) -> None:
        """tally: of tokens, for the log; by default of this engine's own."""
        self.registry = CollectorRegistry()
        self.families: list[Family] = []
        self.padding = BucketStats()
        self._timelines: dict[str, _Timeline] = {}
        self._labels = {"model_name": served_name(config), "engine": engine}
        self._stats = SchedulerStats()
        self._prefix_queries = self._prefix_hits = 0
        self._num_external_queries = self._num_external_hits = 0
        self._make_families(config)
        self._set_constants(config, executor_stats)
        self._record_stats(self._stats)  # where several fronts share the gauges, an engine before this one has set them
        self._tally = tally or Tally()
        self._interval = _Interval(self._tally)

    def record_arrival(self, req_id: str, arrival: float, num_prompt_tokens: int, max_tokens: int, n: int = 1) -> None:
        """A request was handed to the core. arrival: monotonic seconds."""
        self._timelines[req_id] = _Timeline(arrival, num_prompt_tokens, max_tokens, n)

    def record_rejection(self, reason: str) -> None:
        """A request was turned away at the door. reason: the option that sets the bound."""
        self._rejections.labels(**self._labels, reason=reason).inc()

    def record_step(self, step: StepOutput) -> None:
        """Take in what a step brought."""
        now = time.monotonic()
        num_generated = sum(self._record_output(output, now) for output in step.outputs)
        if num_generated:
            self._generation_tokens.inc(num_generated)
            self._tally.add(Column.GENERATED_TOKENS, num_generated)
        if step.num_tokens:
            self._step_tokens.observe(step.num_tokens)
        for seconds in step.stalls:
            self._stalls.observe(seconds)
        if step.bucket_uses:
            self.padding.add(step.bucket_uses)
            for use in step.bucket_uses:
                bucket = {**self._labels, "kind": use.kind, "bucket": str(use.bucket)}
                self._bucket_uses.labels(**bucket).inc()
                self._bucket_tokens.labels(**bucket).inc(use.tokens)
                self._bucket_padding.labels(**bucket).inc(use.bucket_tokens - use.tokens)
        if step.stats is not None:
            self._record_stats(step.stats)

    def snapshot(self) -> list[Metric]:
        """All values now."""
        return list(read_metrics(self.registry))

    def log(self) -> None:
        """A line on the last interval, if something happened in it and VLLM_LOG_STATS_INTERVAL has passed."""
        if line := self._interval.line(self._stats, self.padding):
            logger.info(line)

    def _record_output(self, output: EngineCoreOutput, now: float) -> int:
        """How many tokens it brought."""
        timeline = self._timelines.get(output.req_id)
        if timeline is None:
            return 0
        if count := len(output.new_token_ids):
            if timeline.first_token:
                gap = (now - timeline.last_token) / count
                for _ in range(count):
                    self._inter_token.observe(gap)
            else:
                self._record_first_token(timeline, output, now)
            timeline.num_output_tokens += count
            timeline.last_token = now
        if output.finished:
            del self._timelines[output.req_id]
            self._record_end(timeline, output, now)
        return count

    def _record_first_token(self, timeline: _Timeline, output: EngineCoreOutput, now: float) -> None:
        timeline.first_token = now
        self._first_token.observe(now - timeline.arrival)
        computed = timeline.num_prompt_tokens - output.num_cached_tokens
        self._prompt_tokens.inc(timeline.num_prompt_tokens)
        self._prompt_tokens_cached.inc(output.num_cached_tokens)
        self._prompt_sources.labels(**self._labels, source="local_compute").inc(computed)
        local = output.num_cached_tokens - output.num_external_tokens
        self._prompt_sources.labels(**self._labels, source="local_cache_hit").inc(local)
        self._prompt_sources.labels(**self._labels, source="external_kv_transfer").inc(output.num_external_tokens)
        self._computed_prompt.observe(computed)
        self._tally.add(Column.PROMPT_TOKENS, timeline.num_prompt_tokens)

    def _record_end(self, timeline: _Timeline, output: EngineCoreOutput, now: float) -> None:
        self._success.labels(**self._labels, finished_reason=output.finish_reason).inc()
        if output.has_bad_logits:
            self._corrupted.inc()
        self._e2e.observe(now - timeline.arrival)
        self._request_prompt.observe(timeline.num_prompt_tokens)
        self._request_generation.observe(timeline.num_output_tokens)
        self._max_generation.observe(timeline.num_output_tokens)
        self._request_preemptions.observe(0)
        self._params_n.observe(timeline.n)
        self._params_max_tokens.observe(timeline.max_tokens)
        if timeline.num_output_tokens > 1:
            per_token = (timeline.last_token - timeline.first_token) / (timeline.num_output_tokens - 1)
            self._per_output_token.observe(per_token)
        times = output.times
        if times is None or not times.scheduled:
            return
        self._queue_time.observe(times.scheduled - times.queued)
        if times.first_token:
            self._prefill_time.observe(times.first_token - times.scheduled)
            self._decode_time.observe(times.last_token - times.first_token)
            self._inference_time.observe(times.last_token - times.scheduled)

    def _record_stats(self, stats: SchedulerStats) -> None:
        self._stats = stats
        self._running.set(stats.num_running)
        self._waiting.set(stats.num_waiting)
        self._waiting_reason.labels(**self._labels, reason="capacity").set(stats.num_waiting)
        self._kv_usage.set(stats.kv_cache_usage)
        self._queries.inc(stats.prefix_cache_queries - self._prefix_queries)
        self._hits.inc(stats.prefix_cache_hits - self._prefix_hits)
        self._prefix_queries, self._prefix_hits = stats.prefix_cache_queries, stats.prefix_cache_hits
        if self._spec_drafts is not None:
            self._spec_drafts.record(stats)
        if self._adapters is not None:
            self._adapters.record(stats)
        self._external_queries.inc(stats.external_prefix_cache_queries - self._num_external_queries)
        self._external_hits.inc(stats.external_prefix_cache_hits - self._num_external_hits)
        self._num_external_queries = stats.external_prefix_cache_queries
        self._num_external_hits = stats.external_prefix_cache_hits

    def _counter(self, name: str, text: str, *labels: str) -> Any:
        return self._family(CounterFamily, name, text, labels)

    def _gauge(self, name: str, text: str, *labels: str) -> Any:
        return self._family(GaugeFamily, name, text, labels)

    def _histogram(self, name: str, text: str, buckets: Iterable[float]) -> Any:
        return self._family(HistogramFamily, name, text, (), buckets=tuple(buckets))

    def _family(self, kind: Any, name: str, text: str, labels: tuple[str, ...], **options: Any) -> Any:
        family = self.make_family(kind, name, text, (*_LABELS, *labels), **options)
        return family if labels else family.labels(**self._labels)

    def make_family(self, kind: Any, name: str, text: str, labels: tuple[str, ...], **options: Any) -> Any:
        self.families.append(Family(f"vllm:{name}", kind.__name__.lower(), labels, text))
        if kind is GaugeFamily:
            options["multiprocess_mode"] = "mostrecent"  # of several fronts, the last to set it knows
        return kind(f"vllm:{name}", text, labels, registry=self.registry, **options)

    def _make_families(self, config: VllmConfig) -> None:
        lengths = _one_two_five(config.model_config.max_len)
        self._running = self._gauge("num_requests_running", "Requests in the decode batch or being prefilled.")
        self._waiting = self._gauge("num_requests_waiting", "Requests in the queue.")
        self._waiting_reason = self._gauge(
            "num_requests_waiting_by_reason", "The same, by what they wait for.", "reason"
        )
        self._kv_usage = self._gauge("kv_cache_usage_perc", "Share of KV blocks held by running requests, 0 to 1.")
        self._prompt_tokens = self._counter("prompt_tokens", "Prompt tokens, cached ones too.")
        self._prompt_sources = self._counter(
            "prompt_tokens_by_source", "The same, by where their KV came from.", "source"
        )
        self._prompt_tokens_cached = self._counter("prompt_tokens_cached", "Prompt tokens found in the prefix cache.")
        self._generation_tokens = self._counter("generation_tokens", "Generated tokens.")
        self._success = self._counter("request_success", "Finished requests, by how they ended.", "finished_reason")
        self._corrupted = self._counter("corrupted_requests", "Requests that NaN or infinite logits ended.")
        self._preemptions = self._counter("num_preemptions", "Always 0: a running sequence is never evicted.")
        self._request_preemptions = self._histogram(
            "request_num_preemptions", "The same, by request.", (0, 1, 2, 5, 10, 20, 50)
        )
        self._queries = self._counter("prefix_cache_queries", "Prompt tokens looked up in the prefix cache.")
        self._hits = self._counter("prefix_cache_hits", "Prompt tokens found there.")
        self._external_queries = self._counter(
            "external_prefix_cache_queries", "Prompt tokens looked up in the KV store."
        )
        self._external_hits = self._counter("external_prefix_cache_hits", "Prompt tokens loaded from there.")
        self._rejections = self._counter("admission_rejections", "Requests turned away at the door.", "reason")
        self._first_token = self._histogram("time_to_first_token_seconds", "From arrival to first token.", _FIRST_TOKEN)
        self._inter_token = self._histogram("inter_token_latency_seconds", "Between two tokens.", _BETWEEN_TOKENS)
        self._stalls = self._histogram(
            "decode_stall_seconds",
            "For how long running streams waited for steps with prompt tokens, between two of their tokens.",
            _BETWEEN_TOKENS,
        )
        self._per_output_token = self._histogram(
            "request_time_per_output_token_seconds", "Mean time between tokens of a request.", _BETWEEN_TOKENS
        )
        self._e2e = self._histogram("e2e_request_latency_seconds", "From arrival to the end.", _LATENCY)
        self._queue_time = self._histogram("request_queue_time_seconds", "In the queue.", _LATENCY)
        self._inference_time = self._histogram("request_inference_time_seconds", "From first step to end.", _LATENCY)
        self._prefill_time = self._histogram(
            "request_prefill_time_seconds", "From first step to first token.", _LATENCY
        )
        self._decode_time = self._histogram("request_decode_time_seconds", "From first to last token.", _LATENCY)
        self._request_prompt = self._histogram("request_prompt_tokens", "Prompt tokens of a request.", lengths)
        self._request_generation = self._histogram("request_generation_tokens", "Output tokens of a request.", lengths)
        self._max_generation = self._histogram(
            "request_max_num_generation_tokens", "Output tokens of the longest output of a request.", lengths
        )
        self._params_n = self._histogram("request_params_n", "Outputs asked for.", (1, 2, 5, 10, 20))
        self._params_max_tokens = self._histogram("request_params_max_tokens", "max_tokens asked for.", lengths)
        self._step_tokens = self._histogram("iteration_tokens_total", "Tokens computed in a step.", _STEP_TOKENS)
        self._computed_prompt = self._histogram(
            "request_prefill_kv_computed_tokens", "Prompt tokens of a request that were computed.", lengths
        )
        self._spec_drafts = _SpeculationMetrics(self) if config.speculative_config is not None else None
        self._adapters = _AdapterMetrics(self, config.lora_config) if config.lora_config.enable_lora else None
        self._bucket_uses = self._counter("bucket_uses", "Forwards, by compiled shape.", "kind", "bucket")
        self._bucket_tokens = self._counter("bucket_tokens", "Real tokens in them.", "kind", "bucket")
        self._bucket_padding = self._counter("bucket_padding_tokens", "Padding in them.", "kind", "bucket")

    def _set_constants(self, config: VllmConfig, executor_stats: Mapping[str, Any]) -> None:
        for reason in _FINISH_REASONS:
            self._success.labels(**self._labels, finished_reason=reason)
        for bound in ("max_num_queued_reqs", "max_num_queued_tokens"):
            if getattr(config.scheduler_config, bound) is not None:
                self._rejections.labels(**self._labels, reason=bound)
        sleep = self._gauge("engine_sleep_state", "Always awake: the model stays on the device.", "sleep_state")
        for state in ("awake", "weights_offloaded", "discard_all"):
            sleep.labels(**self._labels, sleep_state=state).set(state == "awake")
        for name in ("mm_cache_queries", "mm_cache_hits"):
            self._counter(name, "Always 0: images are prepared anew for each request.")
        cache = config.cache_config
        facts = {
            "block_size": str(cache.block_size),
            "num_gpu_blocks": str(cache.num_blocks),
            "cache_dtype": cache.kv_cache_dtype,
            "enable_prefix_caching": str(cache.enable_prefix_caching),
        }
        self._gauge("cache_config_info", "How KV is laid out.", *facts).labels(**self._labels, **facts).set(1)
        bound = self._gauge(
            "decode_stall_bound_tokens", "Most tokens computed in such a wait, as the options bound them."
        )
        bound.set(stall_bound_tokens(config))
        self._gauge("num_slots", "Rows of the compiled decode program.").set(config.scheduler_config.max_num_seqs or 0)
        self._gauge("artifact_hit", "1 if this start compiled nothing.").set(executor_stats.get("artifact_hit", 0))
        seconds = self._gauge("startup_seconds", "Seconds of this start, by phase.", "phase")
        for phase, value in executor_stats.get("startup_seconds", {}).items():
            seconds.labels(**self._labels, phase=phase).set(value)
        memory = self._gauge("memory_bytes", "Bytes the model takes, by kind.", "kind")
        for kind, value in executor_stats.get("memory", {}).items():
            memory.labels(**self._labels, kind=kind).set(value)


class _SpeculationMetrics:
    """Counters of speculative decoding; they exist where it does."""

    def __init__(self, metrics: EngineMetrics) -> None:
        self._labels = metrics._labels
        counter = metrics._counter
        self._drafts = counter("spec_decode_num_drafts", "Verifications: a row's in a step, with drafts.")
        self._draft_tokens = counter("spec_decode_num_draft_tokens", "Drafted tokens.")
        self._accepted = counter("spec_decode_num_accepted_tokens", "Drafted tokens that were accepted.")
        self._by_position = counter(
            "spec_decode_num_accepted_tokens_per_pos", "The same, by place behind the last known token.", "position"
        )
        self._seen = SchedulerStats()

    def record(self, stats: SchedulerStats) -> None:
        seen, self._seen = self._seen, stats
        if stats.spec_num_drafts == seen.spec_num_drafts:
            return
        self._drafts.inc(stats.spec_num_drafts - seen.spec_num_drafts)
        self._draft_tokens.inc(stats.spec_num_draft_tokens - seen.spec_num_draft_tokens)
        self._accepted.inc(stats.spec_num_accepted_tokens - seen.spec_num_accepted_tokens)
        before = seen.spec_num_accepted_by_position or (0,) * len(stats.spec_num_accepted_by_position)
        for position, (now, then) in enumerate(zip(stats.spec_num_accepted_by_position, before, strict=True)):
            self._by_position.labels(**self._labels, position=str(position)).inc(now - then)


class _AdapterMetrics:
    """vLLM's gauge of LoRA adapters in use. What it tells is in its labels; its value is the time (Unix seconds) since
    when that holds. It has no other labels, and one series: the latest.
    """

    def __init__(self, metrics: EngineMetrics, config: LoRAConfig) -> None:
        text = "Names of adapters in use, with commas between them. Value: the time since when they are."
        labels = ("max_lora", "waiting_lora_adapters", "running_lora_adapters")
        self._family = metrics.make_family(GaugeFamily, "lora_requests_info", text, labels)
        self._max_loras = config.max_loras
        self._names = list(config.adapters)
        self._seen: tuple[Any, ...] | None = None
        self.record(SchedulerStats())

    def record(self, stats: SchedulerStats) -> None:
        told = (self._text(stats.waiting_lora_ids), self._text(stats.running_lora_ids))
        if told != self._seen:
            self._seen = told
            self._family.clear()
            self._family.labels(str(self._max_loras), *told).set_to_current_time()

    def _text(self, numbers: tuple[int, ...]) -> str:
        return ",".join(self._names[number - 1] for number in numbers)


def stall_bound_tokens(config: VllmConfig) -> int:
    """Most tokens computed from one token of a running stream to its next while prompts wait."""
    limits = config.scheduler_config
    step_tokens = limits.max_num_batched_tokens or 0
    return step_tokens if limits.mixed_steps else limits.max_consecutive_prefills * step_tokens


def served_name(config: VllmConfig) -> str:
    """The name that responses and metrics carry: the first served one, else the model's."""
    model = config.model_config
    return model.served_model_name[0] if model.served_model_name else model.model


class Tally:
    """Tokens since the start: of prompts, and generated ones."""

    def __init__(self) -> None:
        self._totals = dict.fromkeys((Column.PROMPT_TOKENS, Column.GENERATED_TOKENS), 0)

    def add(self, column: Column, num_tokens: int) -> None:
        self._totals[column] += num_tokens

    def total(self, column: Column) -> int:
        return self._totals[column]


class SharedTally(Tally):
    """Of all fronts of an engine together."""

    def __init__(self, attachment: Attachment) -> None:
        self._table, self._front = attachment.table, attachment.place.index

    def add(self, column: Column, num_tokens: int) -> None:
        self._table.add(self._front, column, num_tokens)

    def total(self, column: Column) -> int:
        return self._table.total(column)


class _Interval:
    """What happened since the last line."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._restart(SchedulerStats())

    def _restart(self, stats: SchedulerStats) -> None:
        self._started = time.monotonic()
        self._num_prompt = self._tally.total(Column.PROMPT_TOKENS)
        self._num_generated = self._tally.total(Column.GENERATED_TOKENS)
        self._seen = stats

    def line(self, stats: SchedulerStats, padding: BucketStats) -> str:
        seconds = time.monotonic() - self._started
        if seconds < envs.VLLM_LOG_STATS_INTERVAL:
            return ""
        num_prompt = self._tally.total(Column.PROMPT_TOKENS) - self._num_prompt
        num_generated = self._tally.total(Column.GENERATED_TOKENS) - self._num_generated
        if not (num_prompt or num_generated or stats.num_running or stats.num_waiting):
            return ""
        text = (
            f"prompt {num_prompt / seconds:.1f} tokens/s, generation {num_generated / seconds:.1f} tokens/s, "
            f"running {stats.num_running}, waiting {stats.num_waiting}, KV cache {stats.kv_cache_usage:.1%}; "
            f"{_drafting_line(stats, self._seen)}buckets: {padding.summary() or 'unused'}"
        )
        self._restart(stats)
        return text


def _drafting_line(stats: SchedulerStats, seen: SchedulerStats) -> str:
    """What speculation did between two snapshots; "" if nothing."""
    drafts = stats.spec_num_drafts - seen.spec_num_drafts
    if not drafts:
        return ""
    drafted = stats.spec_num_draft_tokens - seen.spec_num_draft_tokens
    accepted = stats.spec_num_accepted_tokens - seen.spec_num_accepted_tokens
    return f"acceptance length {1 + accepted / drafts:.2f}, {accepted / drafted:.0%} of {drafted} drafts accepted; "


class Collectable(Protocol):
    """A registry, or several as one."""

    def collect(self) -> Iterable[Any]: ...


def read_metrics(registry: Collectable) -> Iterable[Metric]:
    """Every metric of a registry, at this moment."""
    for family in registry.collect():
        if family.type == "histogram":
            yield from _read_histogram(family)
            continue
        kind = Counter if family.type == "counter" else Gauge
        for sample in family.samples:
            if not sample.name.endswith("_created"):
                yield kind(family.name, dict(sample.labels), sample.value)


def _read_histogram(family: Any) -> Iterable[Metric]:
    buckets: dict[tuple[tuple[str, str], ...], dict[str, int]] = {}
    counts: dict[tuple[tuple[str, str], ...], int] = {}
    sums: dict[tuple[tuple[str, str], ...], float] = {}
    for sample in family.samples:
        labels = {name: value for name, value in sample.labels.items() if name != "le"}
        key = tuple(labels.items())
        if sample.name.endswith("_bucket"):
            buckets.setdefault(key, {})[sample.labels["le"]] = int(sample.value)
        elif sample.name.endswith("_count"):
            counts[key] = int(sample.value)
        elif sample.name.endswith("_sum"):
            sums[key] = sample.value
    for key, total in sums.items():
        yield Histogram(family.name, dict(key), counts[key], total, buckets[key])


def _one_two_five(limit: int) -> list[int]:
    """1, 2, 5, 10, 20, 50, ... up to `limit`."""
    values, scale = [], 1
    while scale <= limit:
        values += [scale * digit for digit in (1, 2, 5) if scale * digit <= limit]
        scale *= 10
    return values
