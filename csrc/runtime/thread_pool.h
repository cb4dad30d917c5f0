// Threads that run one function together, in step.
//
// `run` calls the function once on every thread; the caller is worker 0. Between two barriers threads share nothing but
// what they read. Waiting is spinning for at most kSpinMicroseconds, then sleeping on a futex, so that several pools
// may share a machine. Threads do not survive fork(): make the pool in the process that uses it.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <type_traits>
#include <vector>

#include "base/types.h"

namespace vllm {

inline constexpr int kSpinMicroseconds = 50;

// A 32-bit number that threads can wait on until it changes.
class Signal {
 public:
  uint32_t value() const { return value_.load(std::memory_order_acquire); }
  void advance();
  void wait_while(uint32_t old);

 private:
  std::atomic<uint32_t> value_{0};
  std::atomic<uint32_t> sleepers_{0};
};

class Barrier {
 public:
  explicit Barrier(int count) : count_(count) {}
  void wait();

 private:
  const int count_;
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) Signal generation_;
};

// What a thread knows of itself.
struct Worker {
  int index;
  int count;
  Barrier* barrier;

  void sync() const {
    if (count > 1) barrier->wait();
  }
  Range share(int items, int grain = 1) const { return split(items, index, count, grain); }
};

class ThreadPool {
 public:
  // One thread for each entry of `cpus`: the processor that it is bound to, or -1 for none. The caller of `run`, being
  // worker 0, is moved to cpus[0] for the call if it stands on another worker's processor.
  explicit ThreadPool(std::vector<int> cpus);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return static_cast<int>(cpus_.size()); }

  // function(worker) on every thread; returns when all have returned. Not reentrant, one caller at a time. The function
  // must not throw.
  template <class Function>
  void run(Function&& function) {
    using Target = std::remove_reference_t<Function>;
    run([](void* context, const Worker& worker) { (*static_cast<Target*>(context))(worker); }, &function);
  }

 private:
  using Body = void (*)(void* context, const Worker& worker);
  void run(Body body, void* context);
  void work(int index);
  bool leave_workers_processors();

  const std::vector<int> cpus_;
  Barrier barrier_;
  Signal epoch_;
  Body body_ = nullptr;
  void* context_ = nullptr;
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace vllm
