#pragma once

#include <cstddef>
#include <cstdint>

// The part of cublasLt.h that is used, declared again: the library is loaded at run time, so that
// its header is not needed to build, and a stand-in in tests needs no toolkit at all. Where the
// header is there, cublaslt_abi_check.cc compares the two. Source: cuBLAS 13.1's cublasLt.h; the
// values are part of its ABI, the same since version 12 but for the scale modes of 12.9.
namespace conclave::cuda::cublaslt {

// Opaque to us: pointers that the library hands out.
using Handle = struct HandleTag*;
using MatmulDesc = struct MatmulDescTag*;
using MatrixLayout = struct MatrixLayoutTag*;
using Preference = struct PreferenceTag*;

using Status = int;  // cublasStatus_t
inline constexpr Status kSuccess = 0;
inline constexpr Status kInvalidValue = 7;
inline constexpr Status kNotSupported = 15;

// cudaDataType
inline constexpr int kFloat32 = 0;
inline constexpr int kBFloat16 = 14;
inline constexpr int kE4M3 = 28;

inline constexpr int kCompute32F = 68;         // cublasComputeType_t
inline constexpr int32_t kOperationTrans = 1;  // cublasOperation_t

// cublasLtMatmulDescAttributes_t
inline constexpr int kTransA = 3;          // int32_t
inline constexpr int kAScalePointer = 17;  // const void*
inline constexpr int kBScalePointer = 18;
inline constexpr int kAScaleMode = 31;  // int32_t
inline constexpr int kBScaleMode = 32;

// cublasLtMatmulMatrixScale_t
inline constexpr int32_t kScaleVec128 = 4;
inline constexpr int32_t kScaleBlock128x128 = 5;

// cublasLtMatmulPreferenceAttributes_t
inline constexpr int kMaxWorkspaceBytes = 1;  // uint64_t
inline constexpr int kMinAlignmentA = 5;      // uint32_t; B, C and D follow
inline constexpr int kMinAlignmentD = 8;

struct Algo {
  uint64_t data[8];
};
struct HeuristicResult {
  Algo algo;
  size_t workspace_bytes;
  Status state;
  float waves_count;
  int reserved[4];
};

struct Functions {
  size_t (*GetVersion)() = nullptr;
  const char* (*GetStatusString)(Status) = nullptr;
  Status (*Create)(Handle*) = nullptr;
  Status (*Destroy)(Handle) = nullptr;
  Status (*MatmulDescCreate)(MatmulDesc*, int compute_type, int scale_type) = nullptr;
  Status (*MatmulDescDestroy)(MatmulDesc) = nullptr;
  Status (*MatmulDescSetAttribute)(MatmulDesc, int attribute, const void*, size_t) = nullptr;
  Status (*MatrixLayoutCreate)(MatrixLayout*, int type, uint64_t rows, uint64_t columns,
                               int64_t leading_dimension) = nullptr;
  Status (*MatrixLayoutDestroy)(MatrixLayout) = nullptr;
  Status (*PreferenceCreate)(Preference*) = nullptr;
  Status (*PreferenceDestroy)(Preference) = nullptr;
  Status (*PreferenceSetAttribute)(Preference, int attribute, const void*, size_t) = nullptr;
  Status (*AlgoGetHeuristic)(Handle, MatmulDesc, MatrixLayout a, MatrixLayout b, MatrixLayout c,
                             MatrixLayout d, Preference, int wanted, HeuristicResult*,
                             int* found) = nullptr;
  Status (*Matmul)(Handle, MatmulDesc, const void* alpha, const void* a, MatrixLayout,
                   const void* b, MatrixLayout, const void* beta, const void* c, MatrixLayout,
                   void* d, MatrixLayout, const Algo*, void* workspace, size_t workspace_bytes,
                   void* stream) = nullptr;
};

}  // namespace conclave::cuda::cublaslt
