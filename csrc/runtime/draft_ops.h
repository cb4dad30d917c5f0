// Ops of targets and drafts (vllm/targets/cpu/graph.py: keep, recall, expand): they move rows and compute nothing.
#pragma once

#include "runtime/op.h"

namespace vllm {

// The op of that kind, or nothing if it is none of these. Throws as `build_op` does.
std::unique_ptr<Op> build_draft_op(const OpSpec& spec, const Builder& builder);

}  // namespace vllm
