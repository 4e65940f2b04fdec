#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <tuple>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cuda/cublaslt_library.h"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/runtime.h"

namespace conclave::cuda {

struct LibraryGemmOptions {
  int compute_major = 0;            // of the device, which must be the calling thread's
  int64_t max_rows = 0;             // of a product
  int64_t max_fp8_in_features = 0;  // 0: no product has weights in FP8
};

// Large products by NVIDIA's cuBLASLt. It chooses a kernel, and with it the order in which it sums,
// by the number of rows: a row's result may depend on how many others there are, which is what
// --deterministic=false gives up. FP8 weights are multiplied as FP8, on Hopper, by activations that
// are rounded to FP8 too, with a scale for each 128 values of a row, as DeepSeek-V3 and the
// official FP8 checkpoints of Qwen3 mean it. One thread; one stream at a time, for the workspace is
// shared.
class LibraryGemm {
 public:
  // Device memory that Create allocates.
  static int64_t WorkspaceBytes(const LibraryGemmOptions& options);

  // FailedPrecondition (no cuBLASLt), ResourceExhausted (memory), Internal (it does not start).
  static absl::StatusOr<std::unique_ptr<LibraryGemm>> Create(const LibraryGemmOptions& options);
  ~LibraryGemm();
  LibraryGemm(const LibraryGemm&) = delete;
  LibraryGemm& operator=(const LibraryGemm&) = delete;

  // As cuda::Linear, where the library is the better choice; false, and nothing done, where it is
  // not: few rows, which are bound by memory, or a shape or format that it has no kernel for. The
  // first product of a shape and number of rows asks the library for its choice, which a stream
  // that is being recorded into a graph must not see: run it once before. With weights in FP8,
  // input and output have room for num_rows rounded up to 4, and output's rows past num_rows are
  // written: what they hold, or zeros, plus zeros. Errors: InvalidArgument (more rows than
  // max_rows), Internal (the library failed).
  absl::StatusOr<bool> Linear(const DeviceLinearArgs& args, const Stream& stream);

 private:
  // Rows as the library sees them, out_features, in_features, format.
  using Shape = std::tuple<int64_t, int64_t, int64_t, WeightFormat>;
  struct Choice {
    bool usable = false;
    cublaslt::Algo algo = {};
  };
  class Product;

  LibraryGemm(const CublasLtLibrary& library, const LibraryGemmOptions& options)
      : library_(library), options_(options) {}
  bool Suits(const DeviceLinearArgs& args) const;
  absl::StatusOr<Choice> Ask(const Product& product) const;

  const CublasLtLibrary& library_;
  const LibraryGemmOptions options_;
  cublaslt::Handle handle_ = nullptr;
  // At most one for each number of rows below max_rows and each of a model's few shapes.
  std::map<Shape, Choice> choices_;
  DeviceMemory workspace_;  // the library's
  DeviceMemory values_;     // FP8 activations [max_rows, max_fp8_in_features]
  DeviceMemory scales_;     // [max_fp8_in_features / 128, max_rows]
};

}  // namespace conclave::cuda
