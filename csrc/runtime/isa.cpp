#include "runtime/isa.h"

#include <cpuid.h>

#include <stdexcept>

namespace vllm {

namespace avx512_bf16 {
extern const KernelTable kKernels;
}
namespace avx512 {
extern const KernelTable kKernels;
}
namespace avx2 {
extern const KernelTable kKernels;
}
namespace portable {
extern const KernelTable kKernels;
}

namespace {

bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

bool has_bf16() {
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 5 & 1);
}

bool supports_avx512_bf16() { return has_avx512() && __builtin_cpu_supports("avx512vnni") && has_bf16(); }

bool supports_avx2() {
  unsigned a, b, c, d;
  const bool f16c = __get_cpuid(1, &a, &b, &c, &d) && (c >> 29 & 1);
  return f16c && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
}

bool supports_portable() { return true; }

}  // namespace

const std::vector<Isa>& all_isas() {
  static const std::vector<Isa> isas = {
      {"avx512_bf16", &avx512_bf16::kKernels, supports_avx512_bf16},
      {"avx512", &avx512::kKernels, has_avx512},
      {"avx2", &avx2::kKernels, supports_avx2},
      {"portable", &portable::kKernels, supports_portable},
  };
  return isas;
}

const Isa& find_isa(const std::string& name) {
  std::string known;
  for (const Isa& isa : all_isas()) {
    const bool wanted = name.empty() || name == "auto" ? isa.supported() : name == isa.name;
    if (wanted && !isa.supported()) throw std::invalid_argument("this machine cannot run the instruction set " + name);
    if (wanted) return isa;
    known += std::string(known.empty() ? "" : ", ") + isa.name;
  }
  throw std::invalid_argument("unknown instruction set '" + name + "'; known: auto, " + known);
}

}  // namespace vllm
