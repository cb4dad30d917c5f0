#define VLLM_ISA avx2
#include "kernels/implement.inc"
