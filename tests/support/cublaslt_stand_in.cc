// A shared library with the few functions of cuBLASLt that Conclave calls, for tests on the CUDA
// emulator: it takes apart the descriptors it is given, computes by plain loops, and aborts where
// cuBLASLt would refuse or read past what it was given. Found and loaded as the real one is.

#include "tests/support/cublaslt_stand_in.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <vector>

#include "common/bfloat16.h"
#include "common/fp8.h"
#include "kernels/cuda/cublaslt_abi.h"

namespace conclave::cuda::cublaslt {

struct HandleTag {};
struct MatmulDescTag {
  int32_t trans_a = 0, a_mode = 0, b_mode = 0;
  const float *a_scale = nullptr, *b_scale = nullptr;
};
struct MatrixLayoutTag {
  int type;
  uint64_t rows, columns;
  int64_t leading_dimension;
};
struct PreferenceTag {
  uint64_t workspace_bytes = 0;
  std::map<int, uint32_t> alignments;
};

namespace {

// What every product here asks for, and overwrites.
constexpr size_t kWantedWorkspace = 1 << 20;

EnqueueFunction enqueue = nullptr;
StandInCounts counts;

void Want(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "cuBLASLt's stand-in: %s\n", what);
  std::abort();
}

// All that a choice was made for: it must not be used for anything else.
Algo AlgoFor(const MatmulDescTag& desc, const MatrixLayoutTag& a, const MatrixLayoutTag& b) {
  return {{a.rows, a.columns, b.columns, static_cast<uint64_t>(a.type),
           static_cast<uint64_t>(desc.a_mode), static_cast<uint64_t>(desc.b_mode), 0, 77}};
}

bool IsAligned(const void* pointer, uintptr_t bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
}

void CheckShapes(const MatmulDescTag& desc, const MatrixLayoutTag& a, const MatrixLayoutTag& b,
                 const MatrixLayoutTag& d) {
  Want(desc.trans_a == kOperationTrans, "A is to be transposed");
  Want(a.rows == b.rows && a.columns == d.rows && b.columns == d.columns, "shapes do not fit");
  for (const MatrixLayoutTag* const layout : {&a, &b, &d}) {
    Want(layout->leading_dimension >= static_cast<int64_t>(layout->rows), "columns overlap");
  }
  Want(d.type == kFloat32 && a.type == b.type, "types do not fit");
  if (a.type == kBFloat16) {
    Want(desc.a_mode == 0 && desc.b_mode == 0, "BF16 has no scales");
    return;
  }
  Want(a.type == kE4M3, "a type that is neither BF16 nor E4M3");
  Want(desc.a_mode == kScaleBlock128x128 && desc.b_mode == kScaleVec128, "scale modes");
  Want(a.columns % 4 == 0 && b.columns % 4 == 0, "with block scales M and N are multiples of 4");
  Want(a.rows % 16 == 0 && a.columns % 16 == 0, "with FP8 M and K are multiples of 16");
}

struct Call {
  MatmulDescTag desc;
  MatrixLayoutTag a, b, d;
  const void *a_values, *b_values;
  const float* c;
  float* output;
  float alpha, beta;
  void* workspace;

  float Value(const void* values, const MatrixLayoutTag& layout, uint64_t row,
              uint64_t column) const {
    const uint64_t at = column * layout.leading_dimension + row;
    return layout.type == kE4M3 ? E4M3ToFloat(static_cast<const uint8_t*>(values)[at])
                                : ToFloat(static_cast<const BFloat16*>(values)[at]);
  }

  void Run() const {
    std::memset(workspace, 0xab, kWantedWorkspace);
    const uint64_t k_blocks = (a.rows + 127) / 128;
    const uint64_t a_stride = (k_blocks + 3) / 4 * 4;
    for (uint64_t n = 0; n < d.columns; ++n) {
      for (uint64_t m = 0; m < d.rows; ++m) {
        double sum = 0;
        for (uint64_t block = 0; block < k_blocks; ++block) {
          double part = 0;
          for (uint64_t k = block * 128; k < std::min(a.rows, block * 128 + 128); ++k) {
            part += double{Value(a_values, a, k, m)} * double{Value(b_values, b, k, n)};
          }
          if (a.type == kE4M3) {
            // Scales of A's 128 x 128 blocks along k, those of B's rows one row after another.
            part *= double{desc.a_scale[m / 128 * a_stride + block]} *
                    double{desc.b_scale[block * b.columns + n]};
          }
          sum += part;
        }
        const uint64_t at = n * d.leading_dimension + m;
        double value = alpha * sum;
        if (beta != 0) value += beta * double{c[at]};
        output[at] = static_cast<float>(value);
      }
    }
  }
};

}  // namespace
}  // namespace conclave::cuda::cublaslt

using namespace conclave::cuda::cublaslt;  // NOLINT: what follows has C's names

extern "C" {

void ConclaveStandInSetEnqueue(EnqueueFunction function) { enqueue = function; }
StandInCounts ConclaveStandInCounts() { return counts; }

size_t cublasLtGetVersion() { return 130100; }
const char* cublasLtGetStatusString(Status status) {
  return status == kSuccess ? "success" : "refused by the stand-in";
}
Status cublasLtCreate(Handle* handle) {
  *handle = new HandleTag;
  return kSuccess;
}
Status cublasLtDestroy(Handle handle) {
  delete handle;
  return kSuccess;
}
Status cublasLtMatmulDescCreate(MatmulDesc* desc, int compute_type, int scale_type) {
  if (compute_type != kCompute32F || scale_type != kFloat32) return kNotSupported;
  *desc = new MatmulDescTag;
  return kSuccess;
}
Status cublasLtMatmulDescDestroy(MatmulDesc desc) {
  delete desc;
  return kSuccess;
}
Status cublasLtMatmulDescSetAttribute(MatmulDesc desc, int attribute, const void* value,
                                      size_t bytes) {
  void* to = nullptr;
  size_t wanted = sizeof(int32_t);
  if (attribute == kTransA) to = &desc->trans_a;
  if (attribute == kAScaleMode) to = &desc->a_mode;
  if (attribute == kBScaleMode) to = &desc->b_mode;
  if (attribute == kAScalePointer) to = &desc->a_scale;
  if (attribute == kBScalePointer) to = &desc->b_scale;
  if (attribute == kAScalePointer || attribute == kBScalePointer) wanted = sizeof(void*);
  if (to == nullptr || bytes != wanted) return kInvalidValue;
  std::memcpy(to, value, bytes);
  return kSuccess;
}
Status cublasLtMatrixLayoutCreate(MatrixLayout* layout, int type, uint64_t rows, uint64_t columns,
                                  int64_t leading_dimension) {
  *layout = new MatrixLayoutTag{type, rows, columns, leading_dimension};
  return kSuccess;
}
Status cublasLtMatrixLayoutDestroy(MatrixLayout layout) {
  delete layout;
  return kSuccess;
}
Status cublasLtMatmulPreferenceCreate(Preference* preference) {
  *preference = new PreferenceTag;
  return kSuccess;
}
Status cublasLtMatmulPreferenceDestroy(Preference preference) {
  delete preference;
  return kSuccess;
}
Status cublasLtMatmulPreferenceSetAttribute(Preference preference, int attribute, const void* value,
                                            size_t bytes) {
  if (attribute == kMaxWorkspaceBytes && bytes == sizeof(uint64_t)) {
    std::memcpy(&preference->workspace_bytes, value, bytes);
    return kSuccess;
  }
  if (attribute < kMinAlignmentA || attribute > kMinAlignmentD || bytes != sizeof(uint32_t)) {
    return kInvalidValue;
  }
  std::memcpy(&preference->alignments[attribute], value, bytes);
  return kSuccess;
}

Status cublasLtMatmulAlgoGetHeuristic(Handle, MatmulDesc desc, MatrixLayout a, MatrixLayout b,
                                      MatrixLayout c, MatrixLayout d, Preference preference,
                                      int wanted, HeuristicResult* results, int* found) {
  ++counts.choices;
  Want(wanted == 1 && c == d, "one choice is wanted, and C is D");
  Want(preference->alignments.size() == 4, "alignments of four matrices");
  CheckShapes(*desc, *a, *b, *d);
  *found = 0;
  // As the real one may: no kernel for some shapes.
  if (a->columns == kUnsupportedOutFeatures) return kNotSupported;
  if (preference->workspace_bytes < kWantedWorkspace) return kSuccess;
  *found = 1;
  results[0] = {};
  results[0].algo = AlgoFor(*desc, *a, *b);
  results[0].workspace_bytes = kWantedWorkspace;
  return kSuccess;
}

Status cublasLtMatmul(Handle, MatmulDesc desc, const void* alpha, const void* a,
                      MatrixLayout a_layout, const void* b, MatrixLayout b_layout, const void* beta,
                      const void* c, MatrixLayout c_layout, void* d, MatrixLayout d_layout,
                      const Algo* algo, void* workspace, size_t workspace_bytes, void* stream) {
  CheckShapes(*desc, *a_layout, *b_layout, *d_layout);
  Want(c == d && c_layout == d_layout, "C is D");
  const Algo expected = AlgoFor(*desc, *a_layout, *b_layout);
  Want(std::memcmp(algo, &expected, sizeof(expected)) == 0, "a choice made for another product");
  Want(workspace_bytes >= kWantedWorkspace && IsAligned(workspace, 256), "the workspace");
  for (const void* const pointer : {a, b, static_cast<const void*>(d)}) {
    Want(IsAligned(pointer, 16), "a matrix is not aligned");
  }
  if (a_layout->type == kE4M3) {
    Want(IsAligned(desc->a_scale, 16) && IsAligned(desc->b_scale, 16), "scales are not aligned");
  }
  // What is passed by value or in host memory is read now; matrices and scales in the stream's
  // turn.
  const Call call = {*desc,
                     *a_layout,
                     *b_layout,
                     *d_layout,
                     a,
                     b,
                     static_cast<const float*>(c),
                     static_cast<float*>(d),
                     *static_cast<const float*>(alpha),
                     *static_cast<const float*>(beta),
                     workspace};
  ++counts.products;
  if (a_layout->type == kE4M3) ++counts.fp8_products;
  Want(enqueue != nullptr, "no test has said how to enqueue");
  enqueue(
      stream, [](const void* argument) { static_cast<const Call*>(argument)->Run(); },
      std::make_shared<Call>(call));
  return kSuccess;
}

}  // extern "C"
