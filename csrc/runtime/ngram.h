// Drafts out of the text itself (prompt lookup). The definition is vllm/targets/ngram.py.
#pragma once

#include <cstdint>

namespace vllm {

// Writes at most `count` drafts behind tokens[0 .. length); returns how many: all or none.
int propose_ngram(int32_t* tokens, int length, int shortest, int longest, int count);

}  // namespace vllm
