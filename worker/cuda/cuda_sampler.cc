#include "worker/cuda/cuda_sampler.h"

#include <cmath>
#include <cstring>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "common/status_macros.h"

namespace conclave {
namespace {

size_t Aligned(size_t bytes) { return (bytes + 255) / 256 * 256; }

// Where the arrays lie in both memories.
struct Layout {
  Layout(size_t num_rows, size_t num_counts, size_t num_biases)
      : counts(Aligned(num_rows * sizeof(cuda::SamplerRow))),
        biases(counts + Aligned(num_counts * sizeof(cuda::SamplerCount))),
        ids(biases + Aligned(num_biases * sizeof(cuda::SamplerBias))),
        failures(ids + Aligned(num_rows * sizeof(uint32_t))),
        end(failures + Aligned(num_rows * sizeof(int32_t))) {}
  size_t counts, biases, ids, failures, end;
};

}  // namespace

absl::StatusOr<bool> CudaSampler::Pack(absl::Span<const SampleArgs> args) {
  rows_.clear();
  counts_.clear();
  biases_.clear();
  for (const SampleArgs& arg : args) {
    RETURN_IF_ERROR(arg.params->Validate());
    absl::StatusOr<cuda::SamplerRow> row =
        cuda::MakeSamplerRow(*arg.params, arg.position, arg.num_ids);
    if (absl::IsUnimplemented(row.status())) return false;
    RETURN_IF_ERROR(row.status());
    row->first_count = static_cast<int32_t>(counts_.size());
    if (arg.counts != nullptr) {
      for (const auto& [id, count] : arg.counts->output) counts_.push_back({id, count});
      for (const auto& [id, count] : arg.counts->prompt) {
        if (!arg.counts->output.contains(id)) counts_.push_back({id, 0});
      }
    }
    row->num_counts = static_cast<int32_t>(counts_.size()) - row->first_count;
    row->first_bias = static_cast<int32_t>(biases_.size());
    // The kernel adds each in a thread of its own, so that an id may come once. What the host would
    // refuse it shall refuse itself.
    absl::flat_hash_map<uint32_t, size_t> seen;
    for (const auto& [id, bias] : arg.logit_bias) {
      if (id >= arg.num_ids || std::isnan(bias) || bias == HUGE_VALF) return false;
      const auto [at, is_new] = seen.emplace(id, biases_.size());
      if (is_new) {
        biases_.push_back({id, bias});
      } else if (std::isinf(bias) || std::isinf(biases_[at->second].bias)) {
        biases_[at->second].bias = -HUGE_VALF;
      } else {
        return false;  // two sums, each rounded: the host's
      }
    }
    row->num_biases = static_cast<int32_t>(biases_.size()) - row->first_bias;
    rows_.push_back(*row);
  }
  const Layout layout(rows_.size(), counts_.size(), biases_.size());
  RETURN_IF_ERROR(Reserve(layout.end));
  const auto copy = [&](const auto& values, size_t at) {
    if (!values.empty()) {
      std::memcpy(host_.As<char>(at), values.data(), values.size() * sizeof(values[0]));
    }
  };
  copy(rows_, 0);
  copy(counts_, layout.counts);
  copy(biases_, layout.biases);
  return true;
}

absl::Status CudaSampler::Reserve(size_t bytes) {
  if (host_.bytes() >= bytes) return absl::OkStatus();
  // Twice what is asked for: penalties grow by a token a step.
  ASSIGN_OR_RETURN(host_, cuda::PinnedMemory::Allocate(2 * bytes));
  ASSIGN_OR_RETURN(device_, cuda::DeviceMemory::Allocate(2 * bytes));
  return absl::OkStatus();
}

absl::Status CudaSampler::Enqueue(float* logits, int64_t vocab_size, int64_t num_ids,
                                  const cuda::Stream& stream) {
  const Layout layout(rows_.size(), counts_.size(), biases_.size());
  RETURN_IF_ERROR(cuda::CopyToDevice(device_.As<char>(), host_.As<char>(), layout.ids, stream));
  RETURN_IF_ERROR(cuda::Sample({.logits = logits,
                                .rows = device_.As<cuda::SamplerRow>(),
                                .counts = device_.As<cuda::SamplerCount>(layout.counts),
                                .biases = device_.As<cuda::SamplerBias>(layout.biases),
                                .ids = device_.As<uint32_t>(layout.ids),
                                .failures = device_.As<int32_t>(layout.failures),
                                .num_rows = static_cast<int>(rows_.size()),
                                .vocab_size = vocab_size,
                                .num_ids = num_ids},
                               stream));
  return cuda::CopyToHost(host_.As<char>(layout.ids), device_.As<char>(layout.ids),
                          layout.end - layout.ids, stream);
}

absl::Status CudaSampler::Unpack(absl::Span<SampleResult> results) const {
  const Layout layout(rows_.size(), counts_.size(), biases_.size());
  for (size_t i = 0; i < rows_.size(); ++i) {
    RETURN_IF_ERROR(
        cuda::ToStatus(static_cast<cuda::SampleFailure>(host_.As<int32_t>(layout.failures)[i])));
    results[i] = SampleResult();
    results[i].id = host_.As<uint32_t>(layout.ids)[i];
  }
  return absl::OkStatus();
}

}  // namespace conclave
