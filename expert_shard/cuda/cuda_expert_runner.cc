#include <cstring>
#include <utility>

#include "common/limits.h"
#include "common/status_macros.h"
#include "expert_shard/cuda/cuda_experts.h"

namespace conclave {
namespace {

constexpr int64_t kMaxPairs = limits::kMaxExpertBatchPairs;

int64_t Aligned(int64_t bytes) { return (bytes + 255) / 256 * 256; }

// What is copied to the device for one batch, one after another, each as long as it is used.
struct UploadLayout {
  UploadLayout(int64_t num_slots, int64_t num_pairs, int64_t num_rows, int64_t hidden_size)
      : pair_rows(Aligned((num_slots + 1) * int64_t{sizeof(int32_t)})),
        rows(pair_rows + Aligned(num_pairs * int64_t{sizeof(int32_t)})),
        end(rows + num_rows * hidden_size * int64_t{sizeof(BFloat16)}) {}
  int64_t pair_rows, rows, end;  // the expert offsets lie first
};

struct Sizes {
  Sizes(const Qwen3Config& config, int64_t num_slots)
      // Each pair's row is one of its own at worst.
      : upload(UploadLayout(num_slots, kMaxPairs, kMaxPairs, config.hidden_size).end),
        intermediate(kMaxPairs * config.moe_intermediate_size * int64_t{sizeof(BFloat16)}),
        output(kMaxPairs * config.hidden_size * int64_t{sizeof(BFloat16)}) {}
  int64_t upload, intermediate, output;
};

class CudaExpertRunner final : public ExpertRunner {
 public:
  CudaExpertRunner(const Qwen3Config& config, std::shared_ptr<const CudaExperts> experts,
                   int device, bool may_use_wgmma, cuda::Stream stream)
      : ExpertRunner(config, experts->expert_ids,
                     config.quantization == WeightQuantization::kFp8Block128 ? WeightDtype::kFp8
                                                                             : WeightDtype::kBf16),
        config_(config),
        experts_(std::move(experts)),
        device_(device),
        may_use_wgmma_(may_use_wgmma),
        stream_(std::move(stream)) {}
  // Nothing may run on the device that uses what is about to be freed.
  ~CudaExpertRunner() override { stream_.Synchronize().IgnoreError(); }

  absl::Status Allocate() {
    const Sizes sizes(config_, static_cast<int64_t>(expert_ids().size()));
    ASSIGN_OR_RETURN(upload_host_, cuda::PinnedMemory::Allocate(sizes.upload));
    ASSIGN_OR_RETURN(upload_, cuda::DeviceMemory::Allocate(sizes.upload));
    ASSIGN_OR_RETURN(intermediate_, cuda::DeviceMemory::Allocate(sizes.intermediate));
    ASSIGN_OR_RETURN(output_, cuda::DeviceMemory::Allocate(sizes.output));
    ASSIGN_OR_RETURN(output_host_, cuda::PinnedMemory::Allocate(sizes.output));
    return absl::OkStatus();
  }

  size_t weight_bytes() const override { return static_cast<size_t>(experts_->bytes); }

  absl::StatusOr<std::unique_ptr<ExpertRunner>> Share() const override {
    return MakeCudaExpertRunner(config_, experts_, device_, may_use_wgmma_);
  }

 protected:
  absl::Status RunGroups(const Pairs& pairs) override {
    // The device is the calling thread's own choice, and a batcher has a thread of its own.
    RETURN_IF_ERROR(cuda::UseDevice(device_));
    const auto num_pairs = static_cast<int64_t>(pairs.rows.size());
    const UploadLayout layout = PackUpload(pairs);
    RETURN_IF_ERROR(
        cuda::CopyToDevice(upload_.As<char>(), upload_host_.As<char>(), layout.end, stream_));
    const CudaExpertLayer& weights = experts_->layers[pairs.layer];
    RETURN_IF_ERROR(cuda::ExpertFfn({.hidden_states = upload_.As<BFloat16>(layout.rows),
                                     .pair_rows = upload_.As<int32_t>(layout.pair_rows),
                                     .expert_offsets = upload_.As<int32_t>(),
                                     .gate_up_proj = weights.gate_up_proj,
                                     .down_proj = weights.down_proj,
                                     .intermediate = intermediate_.As<BFloat16>(),
                                     .output = output_.As<BFloat16>(),
                                     .max_pairs = num_pairs,
                                     .may_use_wgmma = may_use_wgmma_},
                                    stream_));
    const size_t bytes = num_pairs * static_cast<size_t>(hidden_size()) * sizeof(BFloat16);
    RETURN_IF_ERROR(cuda::CopyToHost(output_host_.As<char>(), output_.As<char>(), bytes, stream_));
    RETURN_IF_ERROR(stream_.Synchronize());
    std::memcpy(pairs.output, output_host_.As<char>(), bytes);
    return absl::OkStatus();
  }

 private:
  // Only the rows that a pair uses, each once.
  UploadLayout PackUpload(const Pairs& pairs) {
    const auto num_slots = static_cast<int64_t>(expert_ids().size());
    const auto num_pairs = static_cast<int64_t>(pairs.rows.size());
    int32_t* const offsets = upload_host_.As<int32_t>();
    int64_t slot = 0;
    for (const Group& group : pairs.groups) {
      for (; slot <= group.slot; ++slot) offsets[slot] = static_cast<int32_t>(group.first_pair);
    }
    for (; slot <= num_slots; ++slot) offsets[slot] = static_cast<int32_t>(num_pairs);

    const UploadLayout before_rows(num_slots, num_pairs, 0, hidden_size());
    auto* const pair_rows = upload_host_.As<int32_t>(before_rows.pair_rows);
    auto* const rows = upload_host_.As<BFloat16>(before_rows.rows);
    row_idx_.assign(pairs.num_rows, -1);
    int32_t num_rows = 0;
    for (int64_t pair = 0; pair < num_pairs; ++pair) {
      int32_t& idx = row_idx_[pairs.rows[pair]];
      if (idx < 0) {
        idx = num_rows++;
        std::memcpy(rows + int64_t{idx} * hidden_size(),
                    pairs.hidden_states + int64_t{pairs.rows[pair]} * hidden_size(),
                    hidden_size() * sizeof(BFloat16));
      }
      pair_rows[pair] = idx;
    }
    return UploadLayout(num_slots, num_pairs, num_rows, hidden_size());
  }

  const Qwen3Config config_;
  const std::shared_ptr<const CudaExperts> experts_;
  const int device_;
  const bool may_use_wgmma_;
  const cuda::Stream stream_;
  cuda::PinnedMemory upload_host_, output_host_;
  cuda::DeviceMemory upload_, intermediate_, output_;
  std::vector<int32_t> row_idx_;  // of a batch's rows: place among the rows uploaded, or -1
};

}  // namespace

int64_t CudaExpertWorkspaceBytes(const Qwen3Config& config) {
  const Sizes sizes(config, config.num_experts);
  return sizes.upload + sizes.intermediate + sizes.output;
}

absl::StatusOr<std::unique_ptr<ExpertRunner>> MakeCudaExpertRunner(
    const Qwen3Config& config, std::shared_ptr<const CudaExperts> experts, int device,
    bool may_use_wgmma) {
  RETURN_IF_ERROR(cuda::UseDevice(device));
  ASSIGN_OR_RETURN(cuda::Stream stream, cuda::Stream::Create());
  auto runner = std::make_unique<CudaExpertRunner>(config, std::move(experts), device,
                                                   may_use_wgmma, std::move(stream));
  RETURN_IF_ERROR(runner->Allocate());
  return runner;
}

}  // namespace conclave
