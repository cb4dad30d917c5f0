// The Python face of the core: vllm._cpu. Only vllm/targets/cpu/ops.py imports it, and documents what it offers.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>

#include "bindings/specs.h"
#include "runtime/model.h"
#include "runtime/ngram.h"
#include "runtime/probe.h"
#include "runtime/speculator.h"

namespace py = pybind11;

namespace vllm {
namespace {

// Arrays must come as they are: C-contiguous and of the right type, never converted.
template <class T>
using Array = py::array_t<T, py::array::c_style>;
template <class T>
using MaybeArray = std::optional<Array<T>>;

template <class T>
const T* read(const Array<T>& array, py::ssize_t length, const char* name) {
  if (array.size() != length)
    throw std::invalid_argument(std::string(name) + " has " + std::to_string(array.size()) + " entries, expected " +
                                std::to_string(length));
  return array.data();
}

// The arrays of one step; keeps them alive while C++ points into them.
struct StepArrays {
  Array<int32_t> token_ids, positions, slots, row_start, context_len, block_table, selected, selected_row, given_token;

  Step view() const {
    const auto tokens = token_ids.size(), rows = context_len.size(), picked = selected.size();
    if (block_table.ndim() != 2 || block_table.shape(0) != rows)
      throw std::invalid_argument("block_table must have one row a row of the step");
    return {static_cast<int>(tokens),
            static_cast<int>(rows),
            static_cast<int>(picked),
            static_cast<int>(block_table.shape(1)),
            token_ids.data(),
            read(positions, tokens, "positions"),
            read(slots, tokens, "slots"),
            read(row_start, rows + 1, "row_start"),
            context_len.data(),
            block_table.data(),
            selected.data(),
            read(selected_row, picked, "selected_row"),
            read(given_token, picked, "given_token"),
            nullptr,
            static_cast<int>(rows)};
  }
};

// Attributes of a SamplingInput, checked; `keep` holds references while C++ points into them.
class SamplingReader {
 public:
  SamplingReader(const py::object& source, py::ssize_t rows) : source_(source), rows_(rows) {}

  template <class T>
  Array<T> array(const char* name) {
    return checked<T>(source_.attr(name), name);
  }
  template <class T>
  Array<T> checked(const py::object& value, const char* name) {
    if (!py::isinstance<Array<T>>(value))
      throw std::invalid_argument(std::string("sampling.") + name + " must be a C-contiguous array of its type");
    keep_.push_back(value);
    return py::reinterpret_borrow<Array<T>>(value);
  }
  template <class T>
  const T* rows(const char* name, py::ssize_t extra = 0) {
    return read(array<T>(name), rows_ + extra, name);
  }
  // The parameters by name, as the sampler lists them.
  void columns(SamplingRows& out) {
    const py::dict given = source_.attr("columns");
    size_t index = 0;
    for (const SamplingColumn& column : sampling_columns()) {
      if (!given.contains(column.name)) throw std::invalid_argument(std::string("sampling.columns lacks ") + column.name);
      out.columns[index++] = values(given[column.name], column);
    }
  }
  py::object part(const char* name) const { return source_.attr(name); }
  // A reader of a part, which lives as long as this one.
  SamplingReader& nested(const py::object& source) {
    nested_.push_back(std::make_unique<SamplingReader>(source, rows_));
    return *nested_.back();
  }

 private:
  py::object source_;
  py::ssize_t rows_;
  const void* values(const py::object& given, const SamplingColumn& column) {
    if (column.type == SamplingColumn::kInt32) return read(checked<int32_t>(given, column.name), rows_, column.name);
    if (column.type == SamplingColumn::kUint64) return read(checked<uint64_t>(given, column.name), rows_, column.name);
    return read(checked<float>(given, column.name), rows_, column.name);
  }

  std::vector<py::object> keep_;
  std::vector<std::unique_ptr<SamplingReader>> nested_;
};

void check_compressed(const char* name, const int32_t* offsets, py::ssize_t rows, py::ssize_t entries) {
  bool ascending = offsets[0] == 0 && offsets[rows] <= entries;
  for (py::ssize_t i = 0; i < rows; ++i) ascending = ascending && offsets[i] <= offsets[i + 1];
  if (!ascending) throw std::invalid_argument(std::string(name) + " must ascend from 0 to the number of entries");
}

void read_bad_words(SamplingReader& reader, py::ssize_t rows, SamplingRows& out) {
  const py::object source = reader.part("bad_words");
  if (source.is_none()) return;
  SamplingReader& words = reader.nested(source);
  out.word_rows = words.rows<int32_t>("row_offsets", 1);
  const auto offsets = words.array<int32_t>("word_offsets");
  const auto ids = words.array<int32_t>("ids");
  if (offsets.size() < 1) throw std::invalid_argument("bad_words.word_offsets must begin with 0");
  out.word_offsets = offsets.data();
  out.word_ids = ids.data();
  check_compressed("bad_words.row_offsets", out.word_rows, rows, offsets.size() - 1);
  check_compressed("bad_words.word_offsets", out.word_offsets, offsets.size() - 1, ids.size());
}

SamplingRows sampling_of(SamplingReader& reader, py::ssize_t rows, int vocab) {
  SamplingRows out{};
  reader.columns(out);
  out.position = reader.rows<int32_t>("position");
  const auto history = reader.array<int32_t>("history");
  if (history.ndim() != 2) throw std::invalid_argument("sampling.history must have two dimensions");
  out.history = history.data();
  out.history_stride = history.shape(1);
  out.history_line = reader.rows<int32_t>("history_line");
  out.num_prompt_tokens = reader.rows<int32_t>("num_prompt_tokens");
  out.bias_offsets = reader.rows<int32_t>("bias_offsets", 1);
  const auto bias_ids = reader.array<int32_t>("bias_ids");
  out.bias_ids = bias_ids.data();
  out.bias_values = read(reader.array<float>("bias_values"), bias_ids.size(), "bias_values");
  check_compressed("bias_offsets", out.bias_offsets, rows, bias_ids.size());
  out.mask_index = reader.rows<int32_t>("mask_index");
  const auto masks = reader.array<uint32_t>("masks");
  if (masks.ndim() != 2 || masks.shape(1) < (vocab + 31) / 32)
    throw std::invalid_argument("sampling.masks must have a bit for every token");
  out.masks = masks.data();
  out.mask_words = masks.shape(1);
  out.num_logprobs = reader.rows<int32_t>("num_logprobs");
  out.logprob_ids_offsets = reader.rows<int32_t>("logprob_ids_offsets", 1);
  const auto logprob_ids = reader.array<int32_t>("logprob_ids");
  out.logprob_ids = logprob_ids.data();
  check_compressed("logprob_ids_offsets", out.logprob_ids_offsets, rows, logprob_ids.size());
  read_bad_words(reader, rows, out);
  for (py::ssize_t i = 0; i < rows; ++i) {
    if (out.mask_index[i] >= masks.shape(0)) throw std::invalid_argument("sampling.mask_index points past the masks");
    if (out.history_line[i] < 0 || out.history_line[i] >= history.shape(0) || out.position[i] < 0 ||
        out.position[i] > history.shape(1))
      throw std::invalid_argument("sampling.history_line or position points past the history");
  }
  for (py::ssize_t i = 0; i < logprob_ids.size(); ++i)
    if (out.logprob_ids[i] < 0 || out.logprob_ids[i] >= vocab)
      throw std::invalid_argument("token id " + std::to_string(out.logprob_ids[i]) +
                                  " in logprob_ids is out of the vocabulary of " + std::to_string(vocab));
  return out;
}

// Where results go: arrays of the caller's, with an entry a selected position.
struct OutputArrays {
  MaybeArray<int32_t> tokens, token_id;
  MaybeArray<float> logprob;
  MaybeArray<int32_t> rank, count, top_ids;
  MaybeArray<float> top_logprobs, logits;

  Outputs view(const Step& step, const BufferSpec& result) {
    Outputs out{};
    const py::ssize_t selected = step.num_selected;
    if (tokens) out.tokens = write(*tokens, selected, "tokens");
    if (logits)
      out.logits = write(*logits, (result.samples ? selected : step.num_tokens) * py::ssize_t{result.width}, "logits");
    if (!token_id) return out;
    if (!logprob || !rank || !count || !top_ids || !top_logprobs)
      throw std::invalid_argument("log-probabilities need all of their arrays");
    if (top_ids->ndim() != 2) throw std::invalid_argument("top_ids must have two dimensions");
    const py::ssize_t width = top_ids->shape(1);
    out.logprobs = {write(*token_id, selected, "token_id"),
                    write(*logprob, selected, "logprob"),
                    write(*rank, selected, "rank"),
                    write(*count, selected, "count"),
                    write(*top_ids, selected * width, "top_ids"),
                    write(*top_logprobs, selected * width, "top_logprobs"),
                    width};
    return out;
  }

 private:
  template <class T>
  static T* write(Array<T>& array, py::ssize_t length, const char* name) {
    read(array, length, name);
    return array.mutable_data();
  }
};

// Every position's entries must fit into the caller's K columns.
void check_width(const Step& step, const SamplingRows& sampling, bool has_sampling, const Outputs& out, int vocab) {
  for (int i = 0; i < step.num_selected; ++i) {
    const int row = step.selected_row[i];
    int wanted = 0;
    if (step.given_token[i] >= 0 && !step.num_prompt_logprobs)
      throw std::invalid_argument("scored tokens need num_prompt_logprobs");
    if (step.given_token[i] >= 0)
      wanted = std::min(step.num_prompt_logprobs[row], vocab);
    else if (has_sampling && sampling.num_logprobs[row] >= 0)
      wanted = std::min(sampling.num_logprobs[row], vocab) + sampling.logprob_ids_offsets[row + 1] -
               sampling.logprob_ids_offsets[row];
    if (wanted > out.logprobs.stride)
      throw std::invalid_argument("top_ids has too few columns for the log-probabilities asked for");
  }
}

// Bytes of `blocks` KV blocks, an entry of `data` each.
py::ssize_t check_kv_bytes(const KvCache& kv, const Array<int32_t>& blocks, const Array<uint8_t>& data) {
  const auto count = blocks.size();
  if (data.size() != count * static_cast<py::ssize_t>(kv.block_bytes()))
    throw std::invalid_argument(std::to_string(count) + " KV blocks take " +
                                std::to_string(static_cast<size_t>(count) * kv.block_bytes()) + " bytes, not " +
                                std::to_string(data.size()));
  return count;
}

void read_kv(Model& model, const Array<int32_t>& blocks, Array<uint8_t>& out) {
  const auto count = static_cast<size_t>(check_kv_bytes(model.kv(), blocks, out));
  uint8_t* data = out.mutable_data();
  py::gil_scoped_release release;
  model.kv().read_blocks(blocks.data(), count, data);
}

void write_kv(Model& model, const Array<int32_t>& blocks, const Array<uint8_t>& data) {
  const auto count = static_cast<size_t>(check_kv_bytes(model.kv(), blocks, data));
  py::gil_scoped_release release;
  model.kv().write_blocks(blocks.data(), count, data.data());
}

void run(Model& model, int handle, int vocab, const StepArrays& arrays, const py::object& sampling,
         const MaybeArray<int32_t>& num_prompt_logprobs, OutputArrays& outputs) {
  Step step = arrays.view();
  const py::ssize_t rows = step.num_rows;
  for (int i = 0; i < step.num_selected; ++i)
    if (step.selected_row[i] < 0 || step.selected_row[i] >= step.num_rows)
      throw std::invalid_argument("selected_row points past the rows");
  if (num_prompt_logprobs) step.num_prompt_logprobs = read(*num_prompt_logprobs, rows, "num_prompt_logprobs");
  SamplingReader reader(sampling, rows);
  const SamplingRows sampling_rows = sampling.is_none() ? SamplingRows{} : sampling_of(reader, rows, vocab);
  Outputs out = outputs.view(step, model.result(handle));
  if (sampling.is_none()) out.tokens = nullptr;
  if (out.logprobs.token_id) check_width(step, sampling_rows, !sampling.is_none(), out, vocab);
  py::gil_scoped_release release;
  model.run(handle, step, sampling_rows, out);
}

// Log-probabilities of a speculative step: an entry a sampling row, packed.
LogprobRows logprobs_of(OutputArrays& arrays, py::ssize_t entries, const SamplingRows& sampling, int vocab) {
  Step every{};
  every.num_selected = static_cast<int>(entries);
  std::vector<int32_t> rows(static_cast<size_t>(entries)), given(static_cast<size_t>(entries), -1);
  for (size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<int32_t>(i);
  every.selected_row = rows.data();
  every.given_token = given.data();
  const Outputs out = arrays.view(every, {0, 0, true});
  if (out.logprobs.token_id) check_width(every, sampling, true, out, vocab);
  return out.logprobs;
}

int speculate(Speculator& speculator, int handle, int vocab, const Array<int32_t>& context_len,
              const Array<int32_t>& block_table, const Array<int32_t>& num_drafts, const py::object& sampling,
              const std::optional<Array<uint8_t>>& filled, int num_slots, Array<int32_t>& tokens,
              Array<int32_t>& num_new, Array<int32_t>& num_drafted, OutputArrays& logprobs) {
  const py::ssize_t rows = context_len.size();
  if (block_table.ndim() != 2 || block_table.shape(0) != rows)
    throw std::invalid_argument("block_table must have one row a row of the step");
  const int32_t* drafts = read(num_drafts, rows, "num_drafts");
  py::ssize_t entries = rows, most = 0;
  for (py::ssize_t i = 0; i < rows; ++i) {
    if (drafts[i] < 0) throw std::invalid_argument("num_drafts must not be negative");
    entries += drafts[i];
    most = std::max<py::ssize_t>(most, drafts[i]);
  }
  if (tokens.ndim() != 2 || tokens.shape(0) != rows || tokens.shape(1) <= most)
    throw std::invalid_argument("tokens needs a row a row of the step, and a column more than there are drafts");
  SamplingReader reader(sampling, entries);
  const SamplingRows sampling_rows = sampling_of(reader, entries, vocab);
  SpeculativeStep step{static_cast<int>(rows),
                       static_cast<int>(block_table.shape(1)),
                       context_len.data(),
                       block_table.data(),
                       drafts,
                       static_cast<int>(entries),
                       reader.array<int32_t>("history").mutable_data(),
                       nullptr};
  if (filled) {
    read(*filled, num_slots, "filled");
    auto writable = *filled;
    step.filled = writable.mutable_data();
  }
  read(num_new, rows, "num_new");
  read(num_drafted, rows, "num_drafted");
  const SpeculativeOutputs out{tokens.mutable_data(), static_cast<int>(tokens.shape(1)), num_new.mutable_data(),
                               num_drafted.mutable_data(), logprobs_of(logprobs, entries, sampling_rows, vocab)};
  py::gil_scoped_release release;
  return speculator.run(handle, step, sampling_rows, out);
}

}  // namespace
}  // namespace vllm

PYBIND11_MODULE(_cpu, module) {
  using namespace vllm;
  py::register_exception<Malformed>(module, "Malformed", PyExc_ValueError);
  module.def("sampling_columns", [] {
    const char* const types[] = {"float32", "int32", "uint64"};
    std::map<std::string, std::string> found;
    for (const SamplingColumn& column : sampling_columns()) found[column.name] = types[column.type];
    return found;
  });
  module.def("known_isas", [] {
    std::vector<std::string> names;
    for (const Isa& isa : all_isas()) names.emplace_back(isa.name);
    return names;
  });
  module.def("supported_isas", [] {
    std::vector<std::string> names;
    for (const Isa& isa : all_isas())
      if (isa.supported()) names.emplace_back(isa.name);
    return names;
  });
  module.def("measure_limits", [](const std::vector<int>& cpus, const std::string& isa) {
    Limits limits{};
    {
      py::gil_scoped_release release;
      limits = measure_limits(cpus, isa);
    }
    return py::dict(py::arg("read_bytes") = limits.read_bytes, py::arg("bf16_flops") = limits.bf16_flops,
                    py::arg("int8_ops") = limits.int8_ops);
  });
  py::class_<HiddenCache, std::shared_ptr<HiddenCache>>(module, "HiddenCache")
      .def(py::init<int, int>(), py::arg("num_slots"), py::arg("width"))
      .def_property_readonly("bytes", &HiddenCache::bytes);
  py::class_<ThreadPool, std::shared_ptr<ThreadPool>>(module, "ThreadPool")
      .def(py::init<std::vector<int>>(), py::arg("cpus"))
      .def_property_readonly("num_threads", &ThreadPool::size);
  py::class_<Model>(module, "Model")
      .def(py::init([](const std::string& path, const py::object& weights, const py::object& kv, int vocab, int max_context,
                       std::shared_ptr<ThreadPool> pool, const std::string& isa, std::shared_ptr<HiddenCache> hidden) {
             ModelSpec spec{.weights_path = path,
                            .weights = weights_of(weights),
                            .kv = kv_of(kv),
                            .vocab = vocab,
                            .max_context = max_context,
                            .pool = std::move(pool),
                            .isa = isa,
                            .hidden = std::move(hidden)};
             py::gil_scoped_release release;
             return std::make_unique<Model>(std::move(spec));
           }),
           py::kw_only(), py::arg("weights_path"), py::arg("weights"), py::arg("kv"), py::arg("vocab"),
           py::arg("max_context"), py::arg("pool"), py::arg("isa"), py::arg("hidden").none(true))
      .def("add_program", [](Model& model, const py::object& spec) { return model.add_program(program_of(spec)); })
      .def(
          "run",
          [](Model& model, int handle, int vocab, const Array<int32_t>& token_ids, const Array<int32_t>& positions,
             const Array<int32_t>& slots, const Array<int32_t>& row_start, const Array<int32_t>& context_len,
             const Array<int32_t>& block_table, const Array<int32_t>& selected, const Array<int32_t>& selected_row,
             const Array<int32_t>& given_token, const py::object& sampling,
             const MaybeArray<int32_t>& num_prompt_logprobs, const MaybeArray<int32_t>& tokens,
             const MaybeArray<int32_t>& token_id, const MaybeArray<float>& logprob, const MaybeArray<int32_t>& rank,
             const MaybeArray<int32_t>& count, const MaybeArray<int32_t>& top_ids,
             const MaybeArray<float>& top_logprobs, const MaybeArray<float>& logits) {
            const StepArrays arrays{token_ids,   positions, slots,        row_start,  context_len,
                                    block_table, selected,  selected_row, given_token};
            OutputArrays outputs{tokens, token_id, logprob, rank, count, top_ids, top_logprobs, logits};
            run(model, handle, vocab, arrays, sampling, num_prompt_logprobs, outputs);
          },
          py::arg("handle"), py::arg("vocab"), py::arg("token_ids").noconvert(), py::arg("positions").noconvert(),
          py::arg("slots").noconvert(), py::arg("row_start").noconvert(), py::arg("context_len").noconvert(),
          py::arg("block_table").noconvert(), py::arg("selected").noconvert(), py::arg("selected_row").noconvert(),
          py::arg("given_token").noconvert(), py::arg("sampling"), py::arg("num_prompt_logprobs").noconvert(),
          py::arg("tokens").noconvert(), py::arg("token_id").noconvert(), py::arg("logprob").noconvert(),
          py::arg("rank").noconvert(), py::arg("count").noconvert(), py::arg("top_ids").noconvert(),
          py::arg("top_logprobs").noconvert(), py::arg("logits").noconvert())
      .def_property_readonly("isa", [](const Model& model) { return model.isa().name; })
      .def_property_readonly("num_threads", &Model::num_threads)
      .def_property_readonly("weight_bytes", &Model::weight_bytes)
      .def_property_readonly("kv_bytes", &Model::kv_bytes)
      .def_property_readonly("kv_block_bytes", [](Model& model) { return model.kv().block_bytes(); })
      .def("read_kv", &read_kv, py::arg("blocks").noconvert(), py::arg("out").noconvert())
      .def("write_kv", &write_kv, py::arg("blocks").noconvert(), py::arg("data").noconvert())
      .def_property_readonly("arena_bytes", &Model::arena_bytes)
      .def("result_width", [](const Model& model, int handle) { return model.result(handle).width; })
      .def("result_rows",
           [](const Model& model, int handle) { return model.result(handle).samples ? "samples" : "tokens"; });
  module.def(
      "propose_ngram",
      [](Array<int32_t> tokens, int length, int shortest, int longest, int count) {
        if (length < 0 || count < 0 || length + count > tokens.size())
          throw std::invalid_argument("there is no room for so many drafts behind so many tokens");
        return propose_ngram(tokens.mutable_data(), length, shortest, longest, count);
      },
      py::arg("tokens").noconvert(), py::arg("length"), py::arg("shortest"), py::arg("longest"), py::arg("count"));
  py::class_<Speculator>(module, "Speculator")
      .def(py::init([](Model& target, Model* draft, int program, int shortest, int longest, bool keeps_drafts,
                       int max_rows, int max_drafts) {
             return std::make_unique<Speculator>(target, DraftSource{draft, program, shortest, longest, keeps_drafts},
                                                 draft ? draft->max_tokens(program) : 0, max_rows, max_drafts);
           }),
           py::kw_only(), py::keep_alive<1, 2>(), py::keep_alive<1, 3>(), py::arg("target"), py::arg("draft"),
           py::arg("program"), py::arg("shortest"), py::arg("longest"), py::arg("keeps_drafts"), py::arg("max_rows"),
           py::arg("max_drafts"))
      .def(
          "run",
          [](Speculator& speculator, int handle, int vocab, const Array<int32_t>& context_len,
             const Array<int32_t>& block_table, const Array<int32_t>& num_drafts, const py::object& sampling,
             const std::optional<Array<uint8_t>>& filled, int num_slots, Array<int32_t> tokens, Array<int32_t> num_new,
             Array<int32_t> num_drafted, const MaybeArray<int32_t>& token_id, const MaybeArray<float>& logprob,
             const MaybeArray<int32_t>& rank, const MaybeArray<int32_t>& count, const MaybeArray<int32_t>& top_ids,
             const MaybeArray<float>& top_logprobs) {
            OutputArrays logprobs{std::nullopt, token_id, logprob, rank, count, top_ids, top_logprobs, std::nullopt};
            return speculate(speculator, handle, vocab, context_len, block_table, num_drafts, sampling, filled,
                             num_slots, tokens, num_new, num_drafted, logprobs);
          },
          py::arg("handle"), py::arg("vocab"), py::arg("context_len").noconvert(), py::arg("block_table").noconvert(),
          py::arg("num_drafts").noconvert(), py::arg("sampling"), py::arg("filled").noconvert(), py::arg("num_slots"),
          py::arg("tokens").noconvert(), py::arg("num_new").noconvert(), py::arg("num_drafted").noconvert(),
          py::arg("token_id").noconvert(), py::arg("logprob").noconvert(), py::arg("rank").noconvert(),
          py::arg("count").noconvert(), py::arg("top_ids").noconvert(), py::arg("top_logprobs").noconvert());
}
