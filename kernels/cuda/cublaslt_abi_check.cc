// Fails to compile where cublaslt_abi.h and the toolkit's header disagree.

#include <cublasLt.h>

#include <type_traits>

#include "kernels/cuda/cublaslt_abi.h"

namespace conclave::cuda::cublaslt {
namespace {

static_assert(kSuccess == CUBLAS_STATUS_SUCCESS);
static_assert(kInvalidValue == CUBLAS_STATUS_INVALID_VALUE);
static_assert(kNotSupported == CUBLAS_STATUS_NOT_SUPPORTED);
static_assert(kFloat32 == CUDA_R_32F && kBFloat16 == CUDA_R_16BF && kE4M3 == CUDA_R_8F_E4M3);
static_assert(kCompute32F == CUBLAS_COMPUTE_32F && kOperationTrans == CUBLAS_OP_T);
static_assert(kTransA == CUBLASLT_MATMUL_DESC_TRANSA);
static_assert(kAScalePointer == CUBLASLT_MATMUL_DESC_A_SCALE_POINTER);
static_assert(kBScalePointer == CUBLASLT_MATMUL_DESC_B_SCALE_POINTER);
#if CUBLAS_VERSION >= 120900
static_assert(kAScaleMode == CUBLASLT_MATMUL_DESC_A_SCALE_MODE);
static_assert(kBScaleMode == CUBLASLT_MATMUL_DESC_B_SCALE_MODE);
static_assert(kScaleVec128 == CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F);
static_assert(kScaleBlock128x128 == CUBLASLT_MATMUL_MATRIX_SCALE_BLK128x128_32F);
#endif
static_assert(kMaxWorkspaceBytes == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES);
static_assert(kMinAlignmentA == CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES);
static_assert(kMinAlignmentD == CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES);
static_assert(sizeof(Algo) == sizeof(cublasLtMatmulAlgo_t));
static_assert(sizeof(HeuristicResult) == sizeof(cublasLtMatmulHeuristicResult_t));
static_assert(offsetof(HeuristicResult, workspace_bytes) ==
              offsetof(cublasLtMatmulHeuristicResult_t, workspaceSize));
static_assert(offsetof(HeuristicResult, state) == offsetof(cublasLtMatmulHeuristicResult_t, state));

// Same number of arguments, each passed the same way: pointers as pointers, enums as int.
template <typename Ours, typename Theirs>
inline constexpr bool kSameArgument = std::is_pointer_v<Ours>
                                          ? std::is_pointer_v<Theirs>
                                          : std::is_pointer_v<Theirs> == false &&
                                                sizeof(Ours) == sizeof(Theirs);
template <typename R, typename... A, typename R2, typename... B>
constexpr bool SameCall(R (*)(A...), R2 (*)(B...)) {
  if constexpr (sizeof...(A) != sizeof...(B)) {
    return false;
  } else {
    return kSameArgument<R, R2> && (kSameArgument<A, B> && ...);
  }
}
constexpr Functions kNone;
static_assert(SameCall(kNone.GetVersion, decltype(&cublasLtGetVersion){}));
static_assert(SameCall(kNone.GetStatusString, decltype(&cublasLtGetStatusString){}));
static_assert(SameCall(kNone.Create, decltype(&cublasLtCreate){}));
static_assert(SameCall(kNone.Destroy, decltype(&cublasLtDestroy){}));
static_assert(SameCall(kNone.MatmulDescCreate, decltype(&cublasLtMatmulDescCreate){}));
static_assert(SameCall(kNone.MatmulDescDestroy, decltype(&cublasLtMatmulDescDestroy){}));
static_assert(SameCall(kNone.MatmulDescSetAttribute, decltype(&cublasLtMatmulDescSetAttribute){}));
static_assert(SameCall(kNone.MatrixLayoutCreate, decltype(&cublasLtMatrixLayoutCreate){}));
static_assert(SameCall(kNone.MatrixLayoutDestroy, decltype(&cublasLtMatrixLayoutDestroy){}));
static_assert(SameCall(kNone.PreferenceCreate, decltype(&cublasLtMatmulPreferenceCreate){}));
static_assert(SameCall(kNone.PreferenceDestroy, decltype(&cublasLtMatmulPreferenceDestroy){}));
static_assert(SameCall(kNone.PreferenceSetAttribute,
                       decltype(&cublasLtMatmulPreferenceSetAttribute){}));
static_assert(SameCall(kNone.AlgoGetHeuristic, decltype(&cublasLtMatmulAlgoGetHeuristic){}));
static_assert(SameCall(kNone.Matmul, decltype(&cublasLtMatmul){}));

}  // namespace
}  // namespace conclave::cuda::cublaslt
