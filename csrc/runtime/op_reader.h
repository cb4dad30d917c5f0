// What a program says of one op, checked as it is read.
//
// An op knows nothing of its text but what it reads here, so that no op can forget a check: a buffer lies in the arena
// with as many rows as the op may ever be run on, a weight lies whole in the file, a number is finite and within the
// bounds that the op names. What no op reads is refused as well. Everything here throws Malformed.
#pragma once

#include <set>
#include <string>

#include "runtime/op.h"

namespace vllm {

enum class RowSpace : uint8_t { kTokens, kSamples, kEither };

class OpReader {
 public:
  // place: the op's place in the program. Checks the output buffer.
  OpReader(const OpSpec& spec, const Builder& builder, RowSpace rows, int place);

  const Builder& builder() const { return builder_; }
  // Of the op's counter in Run::counters.
  int place() const { return place_; }
  // Most rows of the op's own kind that it is run on.
  int max_rows() const { return builder_.max_rows(spec_.output); }
  const BufferSpec& output() const { return spec_.output; }

  // Input i, rows of the op's own kind.
  BufferSpec input(size_t i);
  // Input i, of tokens whatever the op runs on.
  BufferSpec input_of_tokens(size_t i);
  bool has_weight(const char* role) const { return spec_.weights.count(role) > 0; }
  PackedMatrix matrix(const char* role);
  const float* vector(const char* role, int length);
  // null without that role.
  const float* optional_vector(const char* role, int length);

  bool has(const char* attribute) const { return spec_.attrs.count(attribute) > 0; }
  int integer(const char* attribute, int low, int high);
  float number(const char* attribute);
  // 0 or 1; false where it is left out.
  bool flag(const char* attribute);
  // An attribute that says nothing to this op.
  void skip(const char* attribute) { read_.insert(attribute); }

  // Throws, saying which op it is, unless `holds`.
  void check(bool holds, const std::string& what) const {
    if (!holds) fail(what);
  }
  [[noreturn]] void fail(const std::string& what) const;
  // Throws if the op was told what it did not read.
  void finish() const;

 private:
  BufferSpec checked_input(size_t i);
  void check_buffer(const BufferSpec& buffer, const std::string& name) const;
  const std::string& weight(const char* role);
  double attribute(const char* name);

  const OpSpec& spec_;
  const Builder& builder_;
  int place_;
  std::set<std::string> read_;
};

}  // namespace vllm
