"""vLLM's path of the metrics that `LLM.get_metrics` gives."""

from vllm.engine.observe.metrics import Counter, Gauge, Histogram, Metric

__all__ = ["Counter", "Gauge", "Histogram", "Metric"]
