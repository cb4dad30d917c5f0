#define VLLM_ISA avx512
#include "kernels/implement.inc"
