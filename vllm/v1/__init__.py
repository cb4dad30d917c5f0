"""Import paths of vLLM's V1 engine, for programs that use them."""
