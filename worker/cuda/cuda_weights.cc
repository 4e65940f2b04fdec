#include "worker/cuda/cuda_weights.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <utility>

#include "absl/functional/function_ref.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "kernels/cuda/fill.h"
#include "model/weight_catalog.h"
#include "model/weight_reader.h"

namespace conclave {
namespace {

using cuda::DeviceMatrix;
using cuda::DeviceMemory;
using cuda::WeightFormat;

// Large enough that a copy's start does not count: 16 MiB take 0.3 ms at 55 GB/s.
constexpr size_t kPinnedBytes = 16 << 20;
// Of a dummy model's FP8 bytes.
constexpr float kFp8Deviation = 0.6f;

// Some rows of a stacked matrix, as the checkpoint names them.
struct Part {
  std::string name;
  int64_t rows;
};

int64_t BlocksOf(int64_t size) { return (size + kFp8BlockSize - 1) / kFp8BlockSize; }

WeightFormat FormatOf(const Qwen3Config& config, const std::vector<Part>& parts) {
  if (config.quantization != WeightQuantization::kFp8Block128) return WeightFormat::kBf16;
  for (size_t i = 0; i + 1 < parts.size(); ++i) {
    if (parts[i].rows % kFp8BlockSize != 0) return WeightFormat::kBf16;
  }
  return WeightFormat::kFp8Block128;
}

int64_t ScaleBytes(int64_t rows, int64_t cols) {
  return BlocksOf(rows) * BlocksOf(cols) * static_cast<int64_t>(sizeof(float));
}

std::vector<Part> Stack(int layer, const std::vector<std::pair<const char*, int64_t>>& modules) {
  std::vector<Part> parts;
  for (const auto& [module, rows] : modules) {
    parts.push_back({LayerWeightName(layer, module), rows});
  }
  return parts;
}

// Where weights come from. Places them in device memory that the caller has allocated.
class Source {
 public:
  virtual ~Source() = default;
  virtual absl::Status Bf16(const Part& part, int64_t cols, BFloat16* to) = 0;
  virtual absl::Status Fp8(const Part& part, int64_t cols, uint8_t* to, float* scales) = 0;
  virtual absl::Status Norm(const std::string& name, int64_t size, float* to) = 0;
  virtual absl::Status Finish() = 0;
};

class CheckpointSource final : public Source {
 public:
  static absl::StatusOr<std::unique_ptr<CheckpointSource>> Create(const Checkpoint& checkpoint) {
    auto source = std::unique_ptr<CheckpointSource>(new CheckpointSource(checkpoint));
    for (int i = 0; i < 2; ++i) {
      ASSIGN_OR_RETURN(cuda::Stream stream, cuda::Stream::Create());
      ASSIGN_OR_RETURN(cuda::PinnedMemory memory, cuda::PinnedMemory::Allocate(kPinnedBytes));
      source->buffers_.push_back({std::move(stream), std::move(memory)});
    }
    return source;
  }

  absl::Status Bf16(const Part& part, int64_t cols, BFloat16* to) override {
    return InRows(part.rows, cols * 2, to, [&](int64_t begin, int64_t end, char* out) {
      return ReadRows(checkpoint_, part.name, part.rows, cols, begin, end,
                      reinterpret_cast<BFloat16*>(out));
    });
  }

  absl::Status Fp8(const Part& part, int64_t cols, uint8_t* to, float* scales) override {
    ASSIGN_OR_RETURN(const TensorView values, checkpoint_.Find(part.name));
    if (values.dtype != DType::kF8E4M3) {
      return absl::DataLossError(absl::StrCat(part.name, " is ", DTypeName(values.dtype),
                                              ", want F8_E4M3 as the config says"));
    }
    RETURN_IF_ERROR(CheckWeight(checkpoint_, part.name, {part.rows, cols}));
    RETURN_IF_ERROR(InRows(part.rows, cols, to, [&](int64_t begin, int64_t end, char* out) {
      std::memcpy(out, values.data + begin * cols, (end - begin) * cols);
      return absl::OkStatus();
    }));
    ASSIGN_OR_RETURN(const TensorView view,
                     checkpoint_.Find(absl::StrCat(part.name, "_scale_inv")));
    const std::vector<float> widened = Widen(view);
    return InRows(1, ScaleBytes(part.rows, cols), scales, [&](int64_t, int64_t, char* out) {
      std::memcpy(out, widened.data(), widened.size() * sizeof(float));
      return absl::OkStatus();
    });
  }

  absl::Status Norm(const std::string& name, int64_t size, float* to) override {
    ASSIGN_OR_RETURN(const std::vector<BFloat16> values, ReadVector(checkpoint_, name, size));
    return InRows(1, size * sizeof(float), to, [&](int64_t, int64_t, char* out) {
      for (int64_t i = 0; i < size; ++i) reinterpret_cast<float*>(out)[i] = ToFloat(values[i]);
      return absl::OkStatus();
    });
  }

  absl::Status Finish() override {
    for (const Buffer& buffer : buffers_) RETURN_IF_ERROR(buffer.stream.Synchronize());
    return absl::OkStatus();
  }

 private:
  struct Buffer {
    cuda::Stream stream;
    cuda::PinnedMemory memory;
  };

  explicit CheckpointSource(const Checkpoint& checkpoint) : checkpoint_(checkpoint) {}

  // As many rows at a time as a buffer holds; a buffer is filled again when its copy is done.
  absl::Status InRows(int64_t rows, int64_t row_bytes, void* to,
                      absl::FunctionRef<absl::Status(int64_t, int64_t, char*)> fill) {
    const int64_t step =
        std::max<int64_t>(1, static_cast<int64_t>(kPinnedBytes) / std::max<int64_t>(1, row_bytes));
    for (int64_t begin = 0; begin < rows; begin += step) {
      const int64_t end = std::min(begin + step, rows);
      Buffer& buffer = buffers_[next_++ % buffers_.size()];
      RETURN_IF_ERROR(buffer.stream.Synchronize());
      RETURN_IF_ERROR(fill(begin, end, buffer.memory.As<char>()));
      RETURN_IF_ERROR(cuda::CopyToDevice(static_cast<char*>(to) + begin * row_bytes,
                                         buffer.memory.As<char>(), (end - begin) * row_bytes,
                                         buffer.stream));
    }
    return absl::OkStatus();
  }

  static std::vector<float> Widen(const TensorView& view) {
    std::vector<float> values(view.bytes / DTypeSize(view.dtype));
    for (size_t i = 0; i < values.size(); ++i) {
      uint16_t half = 0;
      if (view.dtype == DType::kF32) {
        std::memcpy(&values[i], view.data + i * 4, 4);
        continue;
      }
      std::memcpy(&half, view.data + i * 2, 2);
      values[i] = view.dtype == DType::kF16 ? HalfToFloat(half) : ToFloat(BFloat16{half});
    }
    return values;
  }

  const Checkpoint& checkpoint_;
  std::vector<Buffer> buffers_;
  size_t next_ = 0;
};

class DummySource final : public Source {
 public:
  DummySource(cuda::Stream stream, uint64_t seed) : stream_(std::move(stream)), seed_(seed) {}

  // Activations stay near 1, as WriteSyntheticCheckpoint's do.
  absl::Status Bf16(const Part& part, int64_t cols, BFloat16* to) override {
    return cuda::FillRandomBf16(to, part.rows * cols, Deviation(cols), ++seed_, stream_);
  }
  absl::Status Fp8(const Part& part, int64_t cols, uint8_t* to, float* scales) override {
    RETURN_IF_ERROR(cuda::FillRandomFp8(to, part.rows * cols, ++seed_, stream_));
    return Constant(BlocksOf(part.rows) * BlocksOf(cols), Deviation(cols) / kFp8Deviation, scales);
  }
  absl::Status Norm(const std::string&, int64_t size, float* to) override {
    return Constant(size, 1, to);
  }
  absl::Status Finish() override { return stream_.Synchronize(); }

 private:
  static float Deviation(int64_t cols) { return 1 / std::sqrt(static_cast<float>(cols)); }
  absl::Status Constant(int64_t size, float value, float* to) {
    const std::vector<float> values(size, value);
    RETURN_IF_ERROR(cuda::CopyToDevice(to, values.data(), size * sizeof(float), stream_));
    return stream_.Synchronize();
  }

  const cuda::Stream stream_;
  uint64_t seed_;
};

// Walks through a model's weights; without a source it only counts their bytes.
class Builder {
 public:
  Builder(const Qwen3Config& config, Source* source, int64_t total,
          const CudaLoadProgress& progress)
      : config_(config), source_(source), total_(total), progress_(progress) {}

  absl::Status Build(bool with_experts) {
    const int64_t hidden = config_.hidden_size;
    const bool bf16 = false;
    const auto vocabulary = [&](const char* name) {
      return std::vector<std::vector<Part>>(1,
                                            std::vector<Part>(1, Part{name, config_.vocab_size}));
    };
    RETURN_IF_ERROR(Matrix(vocabulary(kEmbedTokensName), hidden, bf16, &embedding_));
    weights.embed_tokens = static_cast<const BFloat16*>(embedding_.values);
    weights.layers.resize(config_.num_hidden_layers);
    for (int layer = 0; layer < config_.num_hidden_layers; ++layer) {
      RETURN_IF_ERROR(Layer(layer, with_experts, weights.layers[layer]));
      if (progress_) progress_(bytes_, total_);
    }
    RETURN_IF_ERROR(Norm(kFinalNormName, hidden, &weights.norm));
    if (config_.tie_word_embeddings) {
      weights.lm_head = embedding_;
    } else {
      RETURN_IF_ERROR(Matrix(vocabulary(kLmHeadName), hidden, bf16, &weights.lm_head));
    }
    return source_ == nullptr ? absl::OkStatus() : source_->Finish();
  }

  int64_t bytes() const { return bytes_; }
  CudaWeights weights;

 private:
  absl::Status Layer(int layer, bool with_experts, CudaLayerWeights& out) {
    const int64_t hidden = config_.hidden_size;
    const int64_t q_rows = int64_t{config_.num_attention_heads} * config_.head_dim;
    const int64_t kv_rows = int64_t{config_.num_key_value_heads} * config_.head_dim;
    const auto norm = [&](const char* module, int64_t size, const float** to) {
      return Norm(LayerWeightName(layer, module), size, to);
    };
    RETURN_IF_ERROR(norm("input_layernorm", hidden, &out.input_layernorm));
    RETURN_IF_ERROR(norm("post_attention_layernorm", hidden, &out.post_attention_layernorm));
    RETURN_IF_ERROR(norm("self_attn.q_norm", config_.head_dim, &out.q_norm));
    RETURN_IF_ERROR(norm("self_attn.k_norm", config_.head_dim, &out.k_norm));
    RETURN_IF_ERROR(Matrix({Stack(layer, {{"self_attn.q_proj", q_rows},
                                          {"self_attn.k_proj", kv_rows},
                                          {"self_attn.v_proj", kv_rows}})},
                           hidden, true, &out.qkv_proj));
    RETURN_IF_ERROR(
        Matrix({Stack(layer, {{"self_attn.o_proj", hidden}})}, q_rows, true, &out.o_proj));
    if (!config_.IsSparseLayer(layer)) {
      const int64_t width = config_.intermediate_size;
      RETURN_IF_ERROR(Matrix({Stack(layer, {{"mlp.gate_proj", width}, {"mlp.up_proj", width}})},
                             hidden, true, &out.gate_up_proj));
      return Matrix({Stack(layer, {{"mlp.down_proj", hidden}})}, width, true, &out.down_proj);
    }
    RETURN_IF_ERROR(
        Matrix({Stack(layer, {{"mlp.gate", config_.num_experts}})}, hidden, false, &out.gate));
    return with_experts ? Experts(layer, out) : absl::OkStatus();
  }

  absl::Status Experts(int layer, CudaLayerWeights& out) {
    const int64_t width = config_.moe_intermediate_size;
    std::vector<std::vector<Part>> gate_up, down;
    for (int expert = 0; expert < config_.num_experts; ++expert) {
      gate_up.push_back({{ExpertWeightName(layer, expert, "gate_proj"), width},
                         {ExpertWeightName(layer, expert, "up_proj"), width}});
      down.push_back({{ExpertWeightName(layer, expert, "down_proj"), config_.hidden_size}});
    }
    // Both or neither in FP8: one kernel launch takes one format.
    const bool fp8 = FormatOf(config_, gate_up[0]) == WeightFormat::kFp8Block128;
    RETURN_IF_ERROR(Matrix(gate_up, config_.hidden_size, fp8, &out.expert_gate_up_proj));
    return Matrix(down, width, fp8, &out.expert_down_proj);
  }

  // One matrix of stacked parts for each entry of `matrices`, all of one shape.
  absl::Status Matrix(const std::vector<std::vector<Part>>& matrices, int64_t cols, bool may_be_fp8,
                      DeviceMatrix* out) {
    out->format = may_be_fp8 ? FormatOf(config_, matrices[0]) : WeightFormat::kBf16;
    out->in_features = cols;
    out->out_features = 0;
    for (const Part& part : matrices[0]) out->out_features += part.rows;
    out->num_matrices = static_cast<int>(matrices.size());
    const bool fp8 = out->format == WeightFormat::kFp8Block128;
    const int64_t matrix_bytes = out->out_features * cols * out->value_bytes();
    const int64_t scale_bytes = fp8 ? ScaleBytes(out->out_features, cols) : 0;
    char* values = nullptr;
    char* scales = nullptr;
    RETURN_IF_ERROR(Allocate(matrix_bytes * out->num_matrices, &values));
    RETURN_IF_ERROR(Allocate(scale_bytes * out->num_matrices, &scales));
    if (source_ == nullptr) return absl::OkStatus();
    out->values = values;
    out->scales = reinterpret_cast<const float*>(scales);
    for (const std::vector<Part>& parts : matrices) {
      for (const Part& part : parts) {
        if (fp8) {
          RETURN_IF_ERROR(source_->Fp8(part, cols, reinterpret_cast<uint8_t*>(values),
                                       reinterpret_cast<float*>(scales)));
          scales += ScaleBytes(part.rows, cols);
        } else {
          RETURN_IF_ERROR(source_->Bf16(part, cols, reinterpret_cast<BFloat16*>(values)));
        }
        values += part.rows * cols * out->value_bytes();
      }
    }
    return absl::OkStatus();
  }

  absl::Status Norm(const std::string& name, int64_t size, const float** out) {
    char* memory = nullptr;
    RETURN_IF_ERROR(Allocate(size * static_cast<int64_t>(sizeof(float)), &memory));
    *out = reinterpret_cast<const float*>(memory);
    return source_ == nullptr ? absl::OkStatus()
                              : source_->Norm(name, size, reinterpret_cast<float*>(memory));
  }

  absl::Status Allocate(int64_t bytes, char** out) {
    bytes_ += bytes;
    if (source_ == nullptr || bytes == 0) return absl::OkStatus();
    ASSIGN_OR_RETURN(DeviceMemory memory, DeviceMemory::Allocate(static_cast<size_t>(bytes)));
    *out = memory.As<char>();
    weights.memory.push_back(std::move(memory));
    return absl::OkStatus();
  }

  const Qwen3Config& config_;
  Source* const source_;
  const int64_t total_;
  const CudaLoadProgress& progress_;
  int64_t bytes_ = 0;
  DeviceMatrix embedding_;
};

absl::StatusOr<CudaWeights> BuildFrom(Source& source, const Qwen3Config& config, bool with_experts,
                                      const CudaLoadProgress& progress) {
  Builder builder(config, &source, CudaWeightBytes(config, with_experts), progress);
  const absl::Status built = builder.Build(with_experts);
  // Copies under way must not outlive what they copy to.
  const absl::Status finished = source.Finish();
  RETURN_IF_ERROR(built);
  RETURN_IF_ERROR(finished);
  return std::move(builder.weights);
}

}  // namespace

int64_t CudaWeightBytes(const Qwen3Config& config, bool with_experts) {
  const CudaLoadProgress no_progress;
  Builder builder(config, nullptr, 0, no_progress);
  return builder.Build(with_experts).ok() ? builder.bytes() : 0;
}

absl::StatusOr<CudaWeights> LoadCudaWeights(const Checkpoint& checkpoint, const Qwen3Config& config,
                                            bool with_experts, const CudaLoadProgress& progress) {
  ASSIGN_OR_RETURN(const std::unique_ptr<CheckpointSource> source,
                   CheckpointSource::Create(checkpoint));
  return BuildFrom(*source, config, with_experts, progress);
}

absl::StatusOr<CudaWeights> MakeDummyCudaWeights(const Qwen3Config& config, bool with_experts,
                                                 uint64_t seed) {
  ASSIGN_OR_RETURN(cuda::Stream stream, cuda::Stream::Create());
  DummySource source(std::move(stream), seed);
  return BuildFrom(source, config, with_experts, {});
}

}  // namespace conclave
