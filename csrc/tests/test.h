// A few lines of test framework: CHECK counts, main (in main.cpp) reports.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

namespace vllm::test {

struct Case {
  const char* name;
  void (*body)();
};

inline std::vector<Case>& cases() {
  static std::vector<Case> all;
  return all;
}

struct Register {
  Register(const char* name, void (*body)()) { cases().push_back({name, body}); }
};

#define TEST(name)                                                  \
  static void name();                                               \
  static const ::vllm::test::Register register_##name(#name, name); \
  static void name()

#define CHECK(condition)                                                                 \
  do {                                                                                   \
    if (!(condition)) {                                                                  \
      std::fprintf(stderr, "%s:%d: CHECK(%s) failed\n", __FILE__, __LINE__, #condition); \
      std::exit(1);                                                                      \
    }                                                                                    \
  } while (0)

}  // namespace vllm::test
