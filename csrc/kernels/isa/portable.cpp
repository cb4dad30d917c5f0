#define VLLM_ISA portable
#include "kernels/implement.inc"
