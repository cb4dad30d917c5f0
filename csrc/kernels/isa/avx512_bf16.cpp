#define VLLM_ISA avx512_bf16
#include "kernels/implement.inc"
