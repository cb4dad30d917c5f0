#include "bindings/specs.h"

#include <climits>
#include <cmath>

namespace py = pybind11;

namespace vllm {
namespace {

// A value of a JSON file, of whatever type, and where it stands.
class Json {
 public:
  Json(py::handle value, std::string where) : value_(value), where_(std::move(where)) {}

  Json operator[](const std::string& name) const {
    expect(py::isinstance<py::dict>(value_), "is not an object");
    PyObject* found = PyDict_GetItemString(value_.ptr(), name.c_str());
    expect(found != nullptr, "lacks '" + name + "'");
    return {found, where_ + "." + name};
  }
  int64_t whole(int64_t low, int64_t high) const {
    expect(PyLong_Check(value_.ptr()), "is not a whole number");
    int overflow = 0;
    const int64_t value = PyLong_AsLongLongAndOverflow(value_.ptr(), &overflow);
    expect(overflow == 0 && value >= low && value <= high,
           "is not from " + std::to_string(low) + " to " + std::to_string(high));
    return value;
  }
  int integer() const { return static_cast<int>(whole(INT_MIN, INT_MAX)); }
  size_t size() const { return static_cast<size_t>(whole(0, INT64_MAX)); }
  double number() const {
    expect(PyFloat_Check(value_.ptr()) || PyLong_Check(value_.ptr()), "is not a number");
    const double value = PyFloat_AsDouble(value_.ptr());
    const bool overflows = PyErr_Occurred() != nullptr;
    PyErr_Clear();
    expect(!overflows && std::isfinite(value), "is not a finite number");
    return value;
  }
  std::string text() const {
    expect(py::isinstance<py::str>(value_), "is not text");
    Py_ssize_t length = 0;
    const char* text = PyUnicode_AsUTF8AndSize(value_.ptr(), &length);
    if (!text) PyErr_Clear();
    expect(text != nullptr, "is not text that can be written");
    return {text, static_cast<size_t>(length)};
  }
  // body(item), in order.
  template <class Body>
  void for_items(Body&& body) const {
    expect(py::isinstance<py::list>(value_), "is not a list");
    size_t i = 0;
    for (const py::handle item : py::reinterpret_borrow<py::list>(value_))
      body(Json(item, where_ + "[" + std::to_string(i++) + "]"));
  }
  // body(name, value), in order.
  template <class Body>
  void for_members(Body&& body) const {
    expect(py::isinstance<py::dict>(value_), "is not an object");
    for (const auto& [name, value] : py::reinterpret_borrow<py::dict>(value_)) {
      const std::string text = Json(name, where_ + ": a name").text();
      body(text, Json(value, where_ + "." + text));
    }
  }
  [[noreturn]] void fail(const std::string& what) const { throw Malformed(where_ + " " + what); }

 private:
  void expect(bool holds, const std::string& what) const {
    if (!holds) fail(what);
  }

  py::handle value_;
  std::string where_;
};

KvType kv_type_of(const std::string& name) {
  if (name == "bf16") return KvType::kBf16;
  if (name == "f32") return KvType::kF32;
  if (name == "f8") return KvType::kF8;
  if (name == "int8") return KvType::kInt8;
  throw std::invalid_argument("unknown KV cache type '" + name + "'; known: bf16, f32, f8, int8");
}

BufferSpec buffer_of(const Json& buffer) {
  const std::string rows = buffer["rows"].text();
  if (rows != "tokens" && rows != "samples") buffer["rows"].fail("is neither tokens nor samples");
  return {.offset = buffer["offset"].size(), .width = buffer["width"].integer(), .samples = rows == "samples"};
}

OpSpec op_of(const Json& op) {
  OpSpec spec{.kind = op["kind"].text(), .inputs = {}, .output = buffer_of(op["output"]), .weights = {}, .attrs = {}};
  op["inputs"].for_items([&](const Json& input) { spec.inputs.push_back(buffer_of(input)); });
  op["weights"].for_members([&](const std::string& role, const Json& name) { spec.weights[role] = name.text(); });
  op["attrs"].for_members([&](const std::string& name, const Json& value) { spec.attrs[name] = value.number(); });
  return spec;
}

}  // namespace

std::map<std::string, WeightSpec> weights_of(py::handle index) {
  std::map<std::string, WeightSpec> weights;
  Json(index, "weights").for_members([&](const std::string& name, const Json& entry) {
    WeightSpec& spec = weights[name];
    spec = {.format = entry["format"].text(),
            .shape = {},
            .offset = entry["offset"].size(),
            .num_bytes = entry["num_bytes"].size()};
    entry["shape"].for_items([&](const Json& extent) { spec.shape.push_back(extent.integer()); });
  });
  return weights;
}

KvShape kv_of(py::handle kv) {
  const Json shape(kv, "kv");
  return {.type = kv_type_of(shape["dtype"].text()),
          .num_layers = shape["num_layers"].integer(),
          .num_kv_heads = shape["num_kv_heads"].integer(),
          .head_dim = shape["head_dim"].integer(),
          .num_blocks = shape["num_blocks"].integer(),
          .block_size = shape["block_size"].integer()};
}

ProgramSpec program_of(py::handle dict) {
  const Json program(dict, "program");
  ProgramSpec spec{.max_tokens = program["max_tokens"].integer(),
                   .max_samples = program["max_samples"].integer(),
                   .arena_bytes = program["arena_bytes"].size(),
                   .ops = {}};
  program["ops"].for_items([&](const Json& op) { spec.ops.push_back(op_of(op)); });
  return spec;
}

}  // namespace vllm
