#include "runtime/op_reader.h"

#include <cmath>
#include <limits>

namespace vllm {
namespace {

std::string input_name(size_t i) { return "input " + std::to_string(i); }

std::string described(const BufferSpec& buffer, int rows) {
  return std::to_string(rows) + (buffer.samples ? " samples x " : " tokens x ") + std::to_string(buffer.width) +
         " at byte " + std::to_string(buffer.offset);
}

}  // namespace

OpReader::OpReader(const OpSpec& spec, const Builder& builder, RowSpace rows, int place)
    : spec_(spec), builder_(builder), place_(place) {
  check(rows != RowSpace::kTokens || !spec.output.samples, "it runs on tokens, its output's rows are samples");
  check(rows != RowSpace::kSamples || spec.output.samples, "it runs on samples, its output's rows are tokens");
  check_buffer(spec.output, "its output");
}

BufferSpec OpReader::input(size_t i) {
  const BufferSpec buffer = checked_input(i);
  check(buffer.samples == spec_.output.samples, input_name(i) + " and the output differ in their kind of rows");
  return buffer;
}

BufferSpec OpReader::input_of_tokens(size_t i) {
  const BufferSpec buffer = checked_input(i);
  check(!buffer.samples, input_name(i) + " must have a row for each token");
  return buffer;
}

BufferSpec OpReader::checked_input(size_t i) {
  check(i < spec_.inputs.size(), "it lacks " + input_name(i));
  check_buffer(spec_.inputs[i], input_name(i));
  read_.insert(input_name(i));
  return spec_.inputs[i];
}

void OpReader::check_buffer(const BufferSpec& buffer, const std::string& name) const {
  const int rows = builder_.max_rows(buffer);
  check(buffer.width >= 1 && buffer.width <= kMaxExtent,
        name + " has " + std::to_string(buffer.width) + " columns; there can be 1 to " + std::to_string(kMaxExtent));
  check(buffer.offset % 64 == 0, name + ", " + described(buffer, rows) + ", does not begin at a multiple of 64 bytes");
  const size_t bytes =
      saturating_product({static_cast<size_t>(rows), static_cast<size_t>(buffer.width), sizeof(float)});
  check(bytes <= builder_.arena_bytes && buffer.offset <= builder_.arena_bytes - bytes,
        name + ", " + described(buffer, rows) + ", does not lie in the arena of " +
            std::to_string(builder_.arena_bytes) + " bytes");
  builder_.facts.arena_bytes = std::max(builder_.facts.arena_bytes, buffer.offset + bytes);
}

const std::string& OpReader::weight(const char* role) {
  const auto found = spec_.weights.find(role);
  check(found != spec_.weights.end(), std::string("it lacks its weight '") + role + "'");
  read_.insert(role);
  return found->second;
}

PackedMatrix OpReader::matrix(const char* role) { return builder_.matrix(weight(role)); }

const float* OpReader::vector(const char* role, int length) { return builder_.vector(weight(role), length); }

const float* OpReader::optional_vector(const char* role, int length) {
  return has_weight(role) ? vector(role, length) : nullptr;
}

double OpReader::attribute(const char* name) {
  const auto found = spec_.attrs.find(name);
  check(found != spec_.attrs.end(), std::string("it lacks the attribute '") + name + "'");
  read_.insert(name);
  return found->second;
}

int OpReader::integer(const char* name, int low, int high) {
  const double value = attribute(name);
  check(value >= low && value <= high && value == std::floor(value),
        std::string("'") + name + "' is " + std::to_string(value) + "; it must be a whole number from " +
            std::to_string(low) + " to " + std::to_string(high));
  return static_cast<int>(value);
}

float OpReader::number(const char* name) {
  const double value = attribute(name);
  check(std::abs(value) <= std::numeric_limits<float>::max(),
        std::string("'") + name + "' is " + std::to_string(value) + ", which is no float32");
  return static_cast<float>(value);
}

bool OpReader::flag(const char* name) { return has(name) && integer(name, 0, 1) == 1; }

void OpReader::fail(const std::string& what) const {
  throw Malformed("op " + std::to_string(place_) + " of the program, '" + spec_.kind + "': " + what);
}

void OpReader::finish() const {
  const auto expect = [this](const std::string& name) { check(read_.count(name) > 0, "it does not take " + name); };
  for (size_t i = 0; i < spec_.inputs.size(); ++i) expect(input_name(i));
  for (const auto& [role, name] : spec_.weights) expect(role);
  for (const auto& [name, value] : spec_.attrs) expect(name);
}

}  // namespace vllm
