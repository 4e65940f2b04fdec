#include "model/synthetic.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/types/span.h"
#include "common/errors.h"
#include "common/status_macros.h"
#include "common/thread_pool.h"
#include "model/output_directory.h"
#include "model/synthetic_tokenizer.h"
#include "model/synthetic_weights.h"
#include "nlohmann/json.hpp"

namespace conclave {
namespace {

// Large enough that a write costs little against the copy, small enough to stay near the caches.
constexpr int64_t kChunkElements = 8 << 20;
constexpr int64_t kGrainElements = 1 << 17;  // a multiple of 4, as FillSynthetic wants

int64_t BytesOf(const SyntheticTensor& tensor) {
  int64_t bytes = static_cast<int64_t>(DTypeSize(tensor.entry.dtype));
  for (const int64_t dimension : tensor.entry.shape) bytes *= dimension;
  return bytes;
}

// Writes the tensors of a checkpoint part by part and reports how far it is.
class WeightWriter {
 public:
  WeightWriter(OutputDirectory& out, const SyntheticOptions& options, int64_t total_bytes)
      : out_(out), options_(options), total_bytes_(total_bytes), pool_(options.num_threads) {}

  absl::Status WritePart(const std::string& name, absl::Span<const SyntheticTensor> tensors) {
    std::vector<SafetensorsEntry> entries;
    for (const SyntheticTensor& tensor : tensors) entries.push_back(tensor.entry);
    const std::string header = FormatSafetensorsHeader(entries);
    RETURN_IF_ERROR(out_.Open(name));
    RETURN_IF_ERROR(out_.Append(header.data(), header.size()));
    for (const SyntheticTensor& tensor : tensors) RETURN_IF_ERROR(WriteTensor(tensor));
    return out_.Close();
  }

 private:
  absl::Status WriteTensor(const SyntheticTensor& tensor) {
    const int64_t size = static_cast<int64_t>(DTypeSize(tensor.entry.dtype));
    const int64_t elements = BytesOf(tensor) / size;
    for (int64_t begin = 0; begin < elements; begin += kChunkElements) {
      const int64_t count = std::min(kChunkElements, elements - begin);
      if (chunk_.size() < static_cast<size_t>(count * size)) chunk_.resize(count * size);
      pool_.ParallelFor(count, kGrainElements, [&](int64_t first, int64_t last) {
        FillSynthetic(tensor, options_.seed, begin + first, last - first,
                      chunk_.data() + first * size);
      });
      RETURN_IF_ERROR(out_.Append(chunk_.data(), static_cast<size_t>(count * size)));
      done_bytes_ += count * size;
      if (options_.progress) options_.progress(done_bytes_, total_bytes_);
    }
    return absl::OkStatus();
  }

  OutputDirectory& out_;
  const SyntheticOptions& options_;
  const int64_t total_bytes_;
  int64_t done_bytes_ = 0;
  ThreadPool pool_;
  std::vector<uint8_t> chunk_;
};

// Consecutive tensors, each group at most max_part_bytes unless it is one tensor alone.
std::vector<absl::Span<const SyntheticTensor>> CutIntoParts(
    const std::vector<SyntheticTensor>& tensors, int64_t max_part_bytes) {
  std::vector<absl::Span<const SyntheticTensor>> parts;
  int64_t bytes = 0;
  size_t begin = 0;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const int64_t tensor_bytes = BytesOf(tensors[i]);
    if (i > begin && bytes + tensor_bytes > max_part_bytes) {
      parts.push_back(absl::MakeConstSpan(tensors).subspan(begin, i - begin));
      begin = i;
      bytes = 0;
    }
    bytes += tensor_bytes;
  }
  parts.push_back(absl::MakeConstSpan(tensors).subspan(begin));
  return parts;
}

absl::Status WriteWeights(const std::vector<SyntheticTensor>& tensors,
                          const SyntheticOptions& options, OutputDirectory& out) {
  int64_t total_bytes = 0;
  for (const SyntheticTensor& tensor : tensors) total_bytes += BytesOf(tensor);
  WeightWriter writer(out, options, total_bytes);
  const auto parts = CutIntoParts(tensors, options.max_part_bytes);
  if (parts.size() == 1) return writer.WritePart("model.safetensors", parts[0]);
  nlohmann::json weight_map = nlohmann::json::object();
  for (size_t i = 0; i < parts.size(); ++i) {
    const std::string name = absl::StrFormat("model-%05d-of-%05d.safetensors", i + 1, parts.size());
    RETURN_IF_ERROR(writer.WritePart(name, parts[i]));
    for (const SyntheticTensor& tensor : parts[i]) weight_map[tensor.entry.name] = name;
  }
  const nlohmann::json index = {{"metadata", {{"total_size", total_bytes}}},
                                {"weight_map", std::move(weight_map)}};
  return out.WriteFile("model.safetensors.index.json", index.dump(2));
}

Qwen3Config TinyConfig() {
  Qwen3Config config;
  config.hidden_size = 64;
  config.intermediate_size = 96;
  config.num_hidden_layers = 2;
  config.num_attention_heads = 4;
  config.num_key_value_heads = 2;
  config.head_dim = 16;
  config.vocab_size = 320;
  config.max_position_embeddings = 4096;
  config.eos_token_ids = {258};  // <|im_end|>
  return config;
}

}  // namespace

Qwen3Config TinyDenseConfig() {
  Qwen3Config config = TinyConfig();
  config.tie_word_embeddings = true;
  return config;
}

Qwen3Config TinyMoeConfig() {
  Qwen3Config config = TinyConfig();
  config.architecture = Qwen3Architecture::kMoe;
  config.num_experts = 8;
  config.num_experts_per_tok = 2;
  config.moe_intermediate_size = 32;
  return config;
}

int64_t SyntheticWeightBytes(const Qwen3Config& config, DType dtype) {
  int64_t bytes = 0;
  for (const SyntheticTensor& tensor : SyntheticTensors(config, dtype)) bytes += BytesOf(tensor);
  return bytes;
}

absl::Status WriteSyntheticCheckpoint(const Qwen3Config& config, const std::string& dir,
                                      const SyntheticOptions& options) {
  RETURN_IF_ERROR(config.Validate());
  if (options.dtype != DType::kBF16 && options.dtype != DType::kF16 &&
      options.dtype != DType::kF32) {
    return errors::OutOfRange("dtype", DTypeName(options.dtype), "BF16, F16 or F32");
  }
  if (options.num_threads < 1)
    return errors::OutOfRange("num_threads", options.num_threads, ">= 1");
  ASSIGN_OR_RETURN(const SyntheticTokenizer tokenizer, MakeSyntheticTokenizer(config.vocab_size));
  const std::vector<SyntheticTensor> tensors = SyntheticTensors(config, options.dtype);
  const nlohmann::json generation_config = {
      {"do_sample", true},
      {"temperature", 0.6},
      {"top_p", 0.95},
      {"top_k", 20},
      {"bos_token_id", tokenizer.endoftext_id},
      {"pad_token_id", tokenizer.endoftext_id},
      {"eos_token_id", {tokenizer.im_end_id, tokenizer.endoftext_id}}};

  OutputDirectory out(dir);
  RETURN_IF_ERROR(out.Make(static_cast<size_t>(SyntheticWeightBytes(config, options.dtype))));
  RETURN_IF_ERROR(WriteWeights(tensors, options, out));
  RETURN_IF_ERROR(out.WriteFile("tokenizer.json", tokenizer.tokenizer_json));
  RETURN_IF_ERROR(out.WriteFile("tokenizer_config.json", tokenizer.tokenizer_config_json));
  RETURN_IF_ERROR(out.WriteFile("generation_config.json", generation_config.dump(2)));
  // Last, so that a directory with a config.json is complete even after a kill.
  RETURN_IF_ERROR(out.WriteFile("config.json", FormatQwen3Config(config)));
  out.Keep();
  return absl::OkStatus();
}

}  // namespace conclave
