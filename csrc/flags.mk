# Flags of the compiler that the package (setup.py) and the C++ tests (Makefile) share. Lines of NAME := words.

LANGUAGE := -std=c++20 -fno-math-errno -fno-trapping-math -ffp-contract=off
WARNINGS := -Wall -Wextra -Wno-maybe-uninitialized -Wno-uninitialized -Wno-missing-field-initializers

# By file in kernels/isa.
AVX2 := -mavx2 -mfma -mf16c -mbmi2
AVX512 := $(AVX2) -mavx512f -mavx512bw -mavx512dq -mavx512vl -mprefer-vector-width=512
ISA_avx512_bf16 := $(AVX512) -mavx512bf16 -mavx512vnni
ISA_avx512 := $(AVX512)
ISA_avx2 := $(AVX2)
ISA_portable := -Wno-psabi
