"""`vllm bench`: a load generator for servers, and benchmarks of the engine in this process."""
