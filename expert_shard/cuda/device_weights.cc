#include "expert_shard/cuda/device_weights.h"

#include <algorithm>
#include <cmath>
#include <cstring>
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
using cuda::WeightFormat;

// Large enough that a copy's start does not count: 16 MiB take 0.3 ms at 55 GB/s.
constexpr size_t kPinnedBytes = 16 << 20;
// Of a dummy model's FP8 bytes.
constexpr float kFp8Deviation = 0.6f;

int64_t BlocksOf(int64_t size) { return (size + kFp8BlockSize - 1) / kFp8BlockSize; }

WeightFormat FormatOf(const Qwen3Config& config, const std::vector<WeightPart>& parts) {
  if (config.quantization != WeightQuantization::kFp8Block128) return WeightFormat::kBf16;
  for (size_t i = 0; i + 1 < parts.size(); ++i) {
    if (parts[i].rows % kFp8BlockSize != 0) return WeightFormat::kBf16;
  }
  return WeightFormat::kFp8Block128;
}

int64_t ScaleBytes(int64_t rows, int64_t cols) {
  return BlocksOf(rows) * BlocksOf(cols) * static_cast<int64_t>(sizeof(float));
}

class CheckpointSource final : public DeviceWeightSource {
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

  absl::Status Bf16(const WeightPart& part, int64_t cols, BFloat16* to) override {
    return InRows(part.rows, cols * 2, to, [&](int64_t begin, int64_t end, char* out) {
      return ReadRows(checkpoint_, part.name, part.rows, cols, begin, end,
                      reinterpret_cast<BFloat16*>(out));
    });
  }

  absl::Status Fp8(const WeightPart& part, int64_t cols, uint8_t* to, float* scales) override {
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

class DummySource final : public DeviceWeightSource {
 public:
  explicit DummySource(cuda::Stream stream) : stream_(std::move(stream)) {}

  // Activations stay near 1, as WriteSyntheticCheckpoint's do.
  absl::Status Bf16(const WeightPart& part, int64_t cols, BFloat16* to) override {
    return cuda::FillRandomBf16(to, part.rows * cols, Deviation(cols), Seed(part), stream_);
  }
  absl::Status Fp8(const WeightPart& part, int64_t cols, uint8_t* to, float* scales) override {
    RETURN_IF_ERROR(cuda::FillRandomFp8(to, part.rows * cols, Seed(part), stream_));
    return Constant(BlocksOf(part.rows) * BlocksOf(cols), Deviation(cols) / kFp8Deviation, scales);
  }
  absl::Status Norm(const std::string&, int64_t size, float* to) override {
    return Constant(size, 1, to);
  }
  absl::Status Finish() override { return stream_.Synchronize(); }

 private:
  // FNV-1a of the name, from the hash's own start.
  static uint64_t Seed(const WeightPart& part) {
    uint64_t hash = 0xcbf29ce484222325u;
    for (const char c : part.name) hash = (hash ^ static_cast<uint8_t>(c)) * 0x100000001b3u;
    return hash;
  }
  static float Deviation(int64_t cols) { return 1 / std::sqrt(static_cast<float>(cols)); }
  absl::Status Constant(int64_t size, float value, float* to) {
    const std::vector<float> values(size, value);
    RETURN_IF_ERROR(cuda::CopyToDevice(to, values.data(), size * sizeof(float), stream_));
    return stream_.Synchronize();
  }

  const cuda::Stream stream_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<DeviceWeightSource>> OpenWeightSource(const Checkpoint* checkpoint) {
  if (checkpoint != nullptr) return CheckpointSource::Create(*checkpoint);
  ASSIGN_OR_RETURN(cuda::Stream stream, cuda::Stream::Create());
  return std::make_unique<DummySource>(std::move(stream));
}

absl::Status DeviceWeightBuilder::Matrix(const std::vector<std::vector<WeightPart>>& matrices,
                                         int64_t cols, bool may_be_fp8, DeviceMatrix* out) {
  out->format = may_be_fp8 ? FormatOf(config_, matrices[0]) : WeightFormat::kBf16;
  out->in_features = cols;
  out->out_features = 0;
  for (const WeightPart& part : matrices[0]) out->out_features += part.rows;
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
  for (const std::vector<WeightPart>& parts : matrices) {
    for (const WeightPart& part : parts) {
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

absl::Status DeviceWeightBuilder::Norm(const std::string& name, int64_t size, const float** out) {
  char* memory = nullptr;
  RETURN_IF_ERROR(Allocate(size * static_cast<int64_t>(sizeof(float)), &memory));
  *out = reinterpret_cast<const float*>(memory);
  return source_ == nullptr ? absl::OkStatus()
                            : source_->Norm(name, size, reinterpret_cast<float*>(memory));
}

absl::Status DeviceWeightBuilder::Experts(int layer, absl::Span<const int> expert_ids,
                                          DeviceMatrix* gate_up_proj, DeviceMatrix* down_proj) {
  const int64_t width = config_.moe_intermediate_size;
  std::vector<std::vector<WeightPart>> gate_up, down;
  for (const int expert : expert_ids) {
    gate_up.push_back({{ExpertWeightName(layer, expert, "gate_proj"), width},
                       {ExpertWeightName(layer, expert, "up_proj"), width}});
    down.push_back({{ExpertWeightName(layer, expert, "down_proj"), config_.hidden_size}});
  }
  // Both or neither in FP8: one kernel launch takes one format.
  const bool fp8 = FormatOf(config_, gate_up[0]) == WeightFormat::kFp8Block128;
  RETURN_IF_ERROR(Matrix(gate_up, config_.hidden_size, fp8, gate_up_proj));
  return Matrix(down, width, fp8, down_proj);
}

absl::Status DeviceWeightBuilder::Allocate(int64_t bytes, char** out) {
  bytes_ += bytes;
  if (source_ == nullptr || bytes == 0) return absl::OkStatus();
  ASSIGN_OR_RETURN(cuda::DeviceMemory memory,
                   cuda::DeviceMemory::Allocate(static_cast<size_t>(bytes)));
  *out = memory.As<char>();
  memory_.push_back(std::move(memory));
  return absl::OkStatus();
}

}  // namespace conclave
