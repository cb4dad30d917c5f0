#include "runtime/thread_pool.h"

#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <chrono>
#include <climits>
#include <stdexcept>

namespace vllm {
namespace {

void pause_a_little() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

void futex(std::atomic<uint32_t>* word, int operation, uint32_t value) {
  static_assert(sizeof *word == sizeof value);
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(word), operation | FUTEX_PRIVATE_FLAG, value, nullptr, nullptr, 0);
}

cpu_set_t only(int cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(static_cast<unsigned>(cpu), &set);
  return set;
}

}  // namespace

void Signal::advance() {
  value_.fetch_add(1);
  if (sleepers_.load() > 0) futex(&value_, FUTEX_WAKE, INT_MAX);
}

void Signal::wait_while(uint32_t old) {
  using Clock = std::chrono::steady_clock;
  const auto deadline = Clock::now() + std::chrono::microseconds(kSpinMicroseconds);
  do {
    for (int i = 0; i < 32; ++i) {
      if (value() != old) return;
      pause_a_little();
    }
  } while (Clock::now() < deadline);
  sleepers_.fetch_add(1);
  while (value_.load() == old) futex(&value_, FUTEX_WAIT, old);
  sleepers_.fetch_sub(1);
}

void Barrier::wait() {
  const uint32_t generation = generation_.value();
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == count_) {
    arrived_.store(0, std::memory_order_relaxed);
    generation_.advance();
  } else {
    generation_.wait_while(generation);
  }
}

ThreadPool::ThreadPool(std::vector<int> cpus) : cpus_(std::move(cpus)), barrier_(static_cast<int>(cpus_.size())) {
  if (cpus_.empty()) throw std::invalid_argument("a thread pool needs at least one thread");
  for (int cpu : cpus_)
    if (cpu < -1 || cpu >= CPU_SETSIZE)
      throw std::invalid_argument("processor number " + std::to_string(cpu) + " is out of range");
  for (int i = 1; i < size(); ++i) threads_.emplace_back([this, i] { work(i); });
}

ThreadPool::~ThreadPool() {
  stopping_ = true;
  epoch_.advance();
  for (std::thread& thread : threads_) thread.join();
}

void ThreadPool::work(int index) {
  const int cpu = cpus_[static_cast<size_t>(index)];
  if (cpu >= 0) {
    const cpu_set_t set = only(cpu);
    pthread_setaffinity_np(pthread_self(), sizeof set, &set);
  }
  uint32_t epoch = 0;
  for (;;) {
    epoch_.wait_while(epoch);
    epoch = epoch_.value();
    if (stopping_) return;
    body_(context_, Worker{index, size(), &barrier_});
    barrier_.wait();
  }
}

bool ThreadPool::leave_workers_processors() {
  const int here = sched_getcpu();
  if (cpus_[0] < 0 || here == cpus_[0]) return false;
  for (int cpu : cpus_)
    if (cpu == here) return true;
  return false;
}

void ThreadPool::run(Body body, void* context) {
  const Worker self{0, size(), &barrier_};
  if (size() == 1) return body(context, self);
  cpu_set_t before;
  const bool move = leave_workers_processors() && sched_getaffinity(0, sizeof before, &before) == 0;
  if (move) {
    const cpu_set_t set = only(cpus_[0]);
    sched_setaffinity(0, sizeof set, &set);
  }
  body_ = body;
  context_ = context;
  epoch_.advance();
  body(context, self);
  barrier_.wait();
  if (move) sched_setaffinity(0, sizeof before, &before);
}

}  // namespace vllm
