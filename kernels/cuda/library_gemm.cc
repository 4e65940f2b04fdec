#include "kernels/cuda/library_gemm.h"

#include <utility>

#include "common/status_macros.h"
#include "kernels/cuda/check_args.h"
#include "kernels/cuda/quantize.h"

namespace conclave::cuda {
namespace {

using cublaslt::HeuristicResult;

// Up to 32 rows the skinny kernel reads each weight once and memory is the limit: a card has 40
// (H20) to 300 (H100) FLOPs for a byte, and n rows need n of them for one of BF16.
constexpr int64_t kFewestRows = 33;
// What NVIDIA recommends for Hopper.
constexpr int64_t kWorkspaceBytes = 32 << 20;
// The first version that scales FP8 by blocks.
constexpr size_t kBlockScalesVersion = 120900;
// Rows in FP8 are a multiple of this, the blocks of scales along in_features too.
constexpr int64_t kFp8Rows = 4;
constexpr int64_t kFp8Columns = 4 * kQuantizeGroup;
// Pointers and rows, for the tensor cores.
constexpr uint32_t kAlignment = 16;

int64_t RoundUp(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

bool IsAligned(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % kAlignment == 0;
}

// Read when a product is enqueued.
constexpr float kOne = 1, kZero = 0;

}  // namespace

// The descriptors of one product. The library's matrices are column by column, so that ours, row by
// row, are their transposes to it: with weight [out, in] as A, transposed, and input [rows, in] as
// B it computes output^T [out, rows], which in memory is output [rows, out].
class LibraryGemm::Product {
 public:
  Product(const CublasLtLibrary& library, const DeviceLinearArgs& args, int64_t rows)
      : library_(library),
        fp8_(args.weight.format == WeightFormat::kFp8Block128),
        in_(static_cast<uint64_t>(args.weight.in_features)),
        out_(static_cast<uint64_t>(args.weight.out_features)),
        rows_(static_cast<uint64_t>(rows)) {}
  Product(const Product&) = delete;
  Product& operator=(const Product&) = delete;
  ~Product() {
    if (desc_ != nullptr) library_.MatmulDescDestroy(desc_);
    for (const cublaslt::MatrixLayout layout : {weight_, input_, output_}) {
      if (layout != nullptr) library_.MatrixLayoutDestroy(layout);
    }
  }

  // The scales, of FP8, as of DeviceMatrix and QuantizeRowsArgs.
  absl::Status Describe(const float* weight_scales, const float* input_scales) {
    const int type = fp8_ ? cublaslt::kE4M3 : cublaslt::kBFloat16;
    RETURN_IF_ERROR(library_.ToStatus(
        library_.MatmulDescCreate(&desc_, cublaslt::kCompute32F, cublaslt::kFloat32),
        "cublasLtMatmulDescCreate"));
    RETURN_IF_ERROR(Set(cublaslt::kTransA, cublaslt::kOperationTrans));
    if (fp8_) {
      RETURN_IF_ERROR(Set(cublaslt::kAScaleMode, cublaslt::kScaleBlock128x128));
      RETURN_IF_ERROR(Set(cublaslt::kBScaleMode, cublaslt::kScaleVec128));
      RETURN_IF_ERROR(Set(cublaslt::kAScalePointer, weight_scales));
      RETURN_IF_ERROR(Set(cublaslt::kBScalePointer, input_scales));
    }
    RETURN_IF_ERROR(Layout(&weight_, type, in_, out_));
    RETURN_IF_ERROR(Layout(&input_, type, in_, rows_));
    return Layout(&output_, cublaslt::kFloat32, out_, rows_);
  }

  cublaslt::MatmulDesc desc() const { return desc_; }
  cublaslt::MatrixLayout weight() const { return weight_; }
  cublaslt::MatrixLayout input() const { return input_; }
  cublaslt::MatrixLayout output() const { return output_; }

 private:
  template <typename Value>
  absl::Status Set(int attribute, const Value& value) {
    return library_.ToStatus(
        library_.MatmulDescSetAttribute(desc_, attribute, &value, sizeof(value)),
        "cublasLtMatmulDescSetAttribute");
  }
  absl::Status Layout(cublaslt::MatrixLayout* layout, int type, uint64_t rows, uint64_t columns) {
    return library_.ToStatus(
        library_.MatrixLayoutCreate(layout, type, rows, columns, static_cast<int64_t>(rows)),
        "cublasLtMatrixLayoutCreate");
  }

  const CublasLtLibrary& library_;
  const bool fp8_;
  const uint64_t in_, out_, rows_;
  cublaslt::MatmulDesc desc_ = nullptr;
  cublaslt::MatrixLayout weight_ = nullptr, input_ = nullptr, output_ = nullptr;
};

int64_t LibraryGemm::WorkspaceBytes(const LibraryGemmOptions& options) {
  const int64_t rows = RoundUp(options.max_rows, kFp8Rows);
  const int64_t columns = options.max_fp8_in_features;
  return kWorkspaceBytes + rows * columns +
         rows * (columns / kQuantizeGroup) * static_cast<int64_t>(sizeof(float));
}

absl::StatusOr<std::unique_ptr<LibraryGemm>> LibraryGemm::Create(
    const LibraryGemmOptions& options) {
  ASSIGN_OR_RETURN(const CublasLtLibrary* const library, CublasLtLibrary::Get());
  auto gemm = std::unique_ptr<LibraryGemm>(new LibraryGemm(*library, options));
  RETURN_IF_ERROR(library->ToStatus(library->Create(&gemm->handle_), "cublasLtCreate"));
  ASSIGN_OR_RETURN(gemm->workspace_, DeviceMemory::Allocate(kWorkspaceBytes));
  const int64_t rows = RoundUp(options.max_rows, kFp8Rows);
  const int64_t columns = options.max_fp8_in_features;
  ASSIGN_OR_RETURN(gemm->values_, DeviceMemory::Allocate(rows * columns));
  ASSIGN_OR_RETURN(gemm->scales_, DeviceMemory::Allocate(rows * (columns / kQuantizeGroup) *
                                                         int64_t{sizeof(float)}));
  return gemm;
}

LibraryGemm::~LibraryGemm() {
  if (handle_ != nullptr) library_.Destroy(handle_);
}

bool LibraryGemm::Suits(const DeviceLinearArgs& args) const {
  const DeviceMatrix& weight = args.weight;
  if (args.num_rows < kFewestRows || weight.num_matrices != 1) return false;
  if (!IsAligned(args.input) || !IsAligned(args.output) || !IsAligned(weight.values)) return false;
  if (weight.format == WeightFormat::kBf16) {
    return weight.in_features % 8 == 0 && weight.out_features % 4 == 0;
  }
  return options_.compute_major == 9 && library_.GetVersion() >= kBlockScalesVersion &&
         weight.in_features <= options_.max_fp8_in_features && IsAligned(weight.scales) &&
         weight.in_features % kFp8Columns == 0 && weight.out_features % kAlignment == 0;
}

absl::StatusOr<LibraryGemm::Choice> LibraryGemm::Ask(const Product& product) const {
  cublaslt::Preference preference = nullptr;
  RETURN_IF_ERROR(
      library_.ToStatus(library_.PreferenceCreate(&preference), "cublasLtMatmulPreferenceCreate"));
  const uint64_t workspace_bytes = kWorkspaceBytes;
  cublaslt::Status status = library_.PreferenceSetAttribute(
      preference, cublaslt::kMaxWorkspaceBytes, &workspace_bytes, sizeof(workspace_bytes));
  for (int matrix = cublaslt::kMinAlignmentA; matrix <= cublaslt::kMinAlignmentD; ++matrix) {
    if (status != cublaslt::kSuccess) break;
    status = library_.PreferenceSetAttribute(preference, matrix, &kAlignment, sizeof(kAlignment));
  }
  HeuristicResult result = {};
  int found = 0;
  if (status == cublaslt::kSuccess) {
    status = library_.AlgoGetHeuristic(handle_, product.desc(), product.weight(), product.input(),
                                       product.output(), product.output(), preference, 1, &result,
                                       &found);
  }
  library_.PreferenceDestroy(preference);
  Choice choice;
  if (status == cublaslt::kNotSupported) return choice;
  RETURN_IF_ERROR(library_.ToStatus(status, "cublasLtMatmulAlgoGetHeuristic"));
  choice.usable = found == 1 && result.state == cublaslt::kSuccess;
  choice.algo = result.algo;
  return choice;
}

absl::StatusOr<bool> LibraryGemm::Linear(const DeviceLinearArgs& args, const Stream& stream) {
  if (!Suits(args)) return false;
  RETURN_IF_ERROR(CheckRange("num_rows", args.num_rows, 0, options_.max_rows));
  const DeviceMatrix& weight = args.weight;
  const bool fp8 = weight.format == WeightFormat::kFp8Block128;
  const int64_t rows = fp8 ? RoundUp(args.num_rows, kFp8Rows) : args.num_rows;
  Product product(library_, args, rows);
  RETURN_IF_ERROR(product.Describe(weight.scales, scales_.As<float>()));
  const Shape shape = {rows, weight.out_features, weight.in_features, weight.format};
  auto choice = choices_.find(shape);
  if (choice == choices_.end()) {
    ASSIGN_OR_RETURN(const Choice asked, Ask(product));
    choice = choices_.emplace(shape, asked).first;
  }
  if (!choice->second.usable) return false;
  const void* input = args.input;
  if (fp8) {
    RETURN_IF_ERROR(QuantizeRows({.input = args.input,
                                  .values = values_.As<uint8_t>(),
                                  .scales = scales_.As<float>(),
                                  .num_rows = args.num_rows,
                                  .num_padded_rows = rows,
                                  .width = weight.in_features},
                                 stream));
    input = values_.As<uint8_t>();
  }
  RETURN_IF_ERROR(library_.ToStatus(
      library_.Matmul(handle_, product.desc(), &kOne, weight.values, product.weight(), input,
                      product.input(), args.accumulate ? &kOne : &kZero, args.output,
                      product.output(), args.output, product.output(), &choice->second.algo,
                      workspace_.As<char>(), kWorkspaceBytes, stream.handle()),
      "cublasLtMatmul"));
  return true;
}

}  // namespace conclave::cuda
