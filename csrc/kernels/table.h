// One instruction set's kernels, by name: kernels.rms_norm(args, begin, end).
#pragma once

#include "kernels/args.h"

namespace vllm {

struct KernelTable {
#define KERNEL(name, Args) void (*name)(Args&, int begin, int end);
#include "kernels/kernels.inc"
#undef KERNEL
};

}  // namespace vllm
