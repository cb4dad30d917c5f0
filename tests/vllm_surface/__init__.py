"""vLLM's own package against this one: every field, option, parameter and answer, and a reason for each difference."""
