// Which instruction sets this build has kernels for, and which of them this machine can run.
#pragma once

#include <string>
#include <vector>

#include "kernels/table.h"

namespace vllm {

struct Isa {
  const char* name;
  const KernelTable* kernels;
  bool (*supported)();
};

// Best first; the last one runs everywhere.
const std::vector<Isa>& all_isas();

// The named one, or the best that runs here if the name is empty or "auto". Throws std::invalid_argument for a name
// that is unknown or that this machine cannot run.
const Isa& find_isa(const std::string& name);

}  // namespace vllm
