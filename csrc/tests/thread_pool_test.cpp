#include "runtime/thread_pool.h"

#include <chrono>
#include <numeric>
#include <stdexcept>

#include "tests/test.h"

namespace vllm {
namespace {

TEST(split_covers_everything_once) {
  for (int count : {0, 1, 2, 7, 64, 1000})
    for (int parts : {1, 2, 3, 8})
      for (int grain : {1, 2, 16}) {
        int next = 0;
        for (int part = 0; part < parts; ++part) {
          const Range range = split(count, part, parts, grain);
          CHECK(range.begin == next && range.end >= range.begin);
          CHECK(range.end == count || range.end % grain == 0);
          next = range.end;
        }
        CHECK(next == count);
      }
}

TEST(every_worker_sees_what_came_before_a_barrier) {
  for (int threads : {1, 2, 3, 5}) {
    ThreadPool pool(std::vector<int>(static_cast<size_t>(threads), -1));
    std::vector<int> values(static_cast<size_t>(threads), 0);
    for (int round = 1; round <= 300; ++round)
      pool.run([&](const Worker& worker) {
        CHECK(worker.count == threads);
        values[static_cast<size_t>(worker.index)] = round;
        worker.sync();
        CHECK(std::accumulate(values.begin(), values.end(), 0) == round * threads);
        worker.sync();
      });
  }
}

TEST(workers_that_sleep_wake_up) {
  ThreadPool pool({-1, -1});
  for (int round = 0; round < 20; ++round) {
    std::this_thread::sleep_for(std::chrono::microseconds(10 * kSpinMicroseconds));
    int seen[2] = {0, 0};
    pool.run([&](const Worker& worker) {
      if (worker.index == round % 2) std::this_thread::sleep_for(std::chrono::microseconds(5 * kSpinMicroseconds));
      worker.sync();
      seen[worker.index] = 1;
    });
    CHECK(seen[0] + seen[1] == 2);
  }
}

TEST(impossible_pools_are_refused) {
  for (const std::vector<int>& cpus : {std::vector<int>{}, std::vector<int>{-2}, std::vector<int>{1 << 20}}) {
    bool refused = false;
    try {
      ThreadPool pool(cpus);
    } catch (const std::invalid_argument&) {
      refused = true;
    }
    CHECK(refused);
  }
}

}  // namespace
}  // namespace vllm
