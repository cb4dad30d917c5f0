// Indexes of weights and programs out of what Python has read of an artifact's JSON files.
#pragma once

#include <pybind11/pybind11.h>

#include <memory>
#include <string>

#include "runtime/model.h"

namespace vllm {

// All throw Malformed for what is missing, of another type, or out of range; the text says where.

std::map<std::string, WeightSpec> weights_of(pybind11::handle index);
KvShape kv_of(pybind11::handle kv);
ProgramSpec program_of(pybind11::handle program);

}  // namespace vllm
