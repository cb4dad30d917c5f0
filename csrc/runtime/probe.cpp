#include "runtime/probe.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>

#include "runtime/isa.h"
#include "runtime/memory.h"
#include "runtime/thread_pool.h"

namespace vllm {
namespace {

constexpr size_t kReadBytes = size_t{192} << 20;
constexpr int kRounds = 200'000;
// Per round, in vectors of 16 lanes, each a multiplication and an addition of one number.
constexpr double kBf16Ops = 16 * 16 * 2 * 2, kInt8Ops = 48 * 16 * 4 * 2;

// Best of three, in seconds.
template <class Body>
double fastest(ThreadPool& pool, Body&& body) {
  double best = 1e30;
  for (int i = 0; i < 3; ++i) {
    const auto start = std::chrono::steady_clock::now();
    pool.run(body);
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  return best;
}

}  // namespace

Limits measure_limits(const std::vector<int>& cpus, const std::string& isa) {
  const KernelTable& kernels = *find_isa(isa).kernels;
  ThreadPool pool(cpus);
  const Mapping memory = Mapping::zeroed(kReadBytes);
  std::memset(memory.data(), 1, memory.size());
  const auto* units = reinterpret_cast<const uint32_t*>(memory.data());
  std::atomic<float> sink{0};
  const auto probe = [&](void (*kernel)(ProbeArgs&, int, int), int items, bool shared) {
    return fastest(pool, [=, &sink](const Worker& worker) {
      ProbeArgs args{units, 0};
      const Range mine = shared ? worker.share(items) : Range{0, items};
      kernel(args, mine.begin, mine.end);
      sink.store(args.result, std::memory_order_relaxed);
    });
  };
  const double threads = pool.size();
  const double read = probe(kernels.probe_read, static_cast<int>(kReadBytes / 64), true);
  const double bf16 = probe(kernels.probe_dot_bf16, kRounds, false);
  const double int8 = probe(kernels.probe_dot_int8, kRounds, false);
  return {static_cast<double>(kReadBytes) / read, threads * kRounds * kBf16Ops / bf16,
          threads * kRounds * kInt8Ops / int8};
}

}  // namespace vllm
