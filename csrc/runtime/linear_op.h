// A linear layer: converts its input to the form that the weights want, then multiplies.
#pragma once

#include "runtime/op.h"

namespace vllm {

class LinearOp : public Op {
 public:
  // index: of the op's counter.
  LinearOp(const OpSpec& spec, const Builder& builder, int index);
  void run(const Run& run, const Worker& worker, int rows) const override;
  ScratchBytes scratch() const override;

 private:
  void multiply_by_runs(const Run& run, const Worker& worker, LinearArgs& args, int items) const;
  ConvertedRows input_rows(const Run& run, const Worker& worker, int rows) const;
  bool converts() const { return form_ != InputForm::kF32 || norm_; }

  using Convert = void (*)(ConvertArgs&, int, int);
  using Multiply = void (*)(LinearArgs&, int, int);

  BufferSpec x_, y_;
  PackedMatrix weight_;
  const float* bias_ = nullptr;
  const float* norm_ = nullptr;
  float eps_ = 0.0f;
  Epilogue epilogue_ = Epilogue::kStore;
  InputForm form_;
  Convert convert_;
  Multiply multiply_;
  int max_rows_;
  int index_;
};

}  // namespace vllm
