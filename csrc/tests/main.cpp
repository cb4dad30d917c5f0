#include "tests/test.h"

int main() {
  for (const vllm::test::Case& test : vllm::test::cases()) {
    std::printf("%s\n", test.name);
    std::fflush(stdout);
    test.body();
  }
  std::printf("%zu passed, 0 failed\n", vllm::test::cases().size());
}
