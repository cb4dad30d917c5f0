#include "runtime/ngram.h"

namespace vllm {
namespace {

// Where the tokens behind the match begin; -1 if there is none.
int find_match(const int32_t* tokens, int length, int shortest, int longest) {
  const int32_t last = tokens[length - 1];
  int best_start = -1, best_length = shortest - 1;
  for (int end = length - 2; end >= 0 && best_length < longest; --end) {
    if (tokens[end] != last) continue;
    int matched = 1;
    while (matched < longest && matched <= end && tokens[end - matched] == tokens[length - 1 - matched]) ++matched;
    if (matched > best_length) {
      best_start = end + 1;
      best_length = matched;
    }
  }
  return best_start;
}

}  // namespace

int propose_ngram(int32_t* tokens, int length, int shortest, int longest, int count) {
  const int start = length > 0 ? find_match(tokens, length, shortest, longest) : -1;
  if (start < 0) return 0;
  for (int i = 0; i < count; ++i) tokens[length + i] = tokens[start + i];
  return count;
}

}  // namespace vllm
