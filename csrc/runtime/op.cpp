#include "runtime/op.h"

#include "runtime/op_reader.h"

namespace vllm {

#define OP(kind, rows) std::unique_ptr<Op> build_##kind(OpReader& read);
#include "ops.inc"
#undef OP

namespace {

struct Kind {
  const char* name;
  RowSpace rows;
  std::unique_ptr<Op> (*build)(OpReader&);
};

constexpr Kind kKinds[] = {
#define OP(kind, rows) {#kind, RowSpace::rows, &build_##kind},
#include "ops.inc"
#undef OP
};

}  // namespace

std::unique_ptr<Op> build_op(const OpSpec& spec, const Builder& builder, int place) {
  for (const Kind& kind : kKinds)
    if (spec.kind == kind.name) {
      OpReader read(spec, builder, kind.rows, place);
      std::unique_ptr<Op> op = kind.build(read);
      read.finish();
      return op;
    }
  throw Malformed("unknown op '" + spec.kind + "'");
}

}  // namespace vllm
