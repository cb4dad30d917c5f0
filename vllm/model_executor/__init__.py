"""vLLM's path of its models."""
