#include "worker/cuda/cuda_decoder.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "absl/time/clock.h"
#include "common/check.h"
#include "common/limits.h"
#include "common/status_macros.h"
#include "kernels/cuda/moe_routing.h"
#include "kernels/cuda/rows.h"
#include "worker/cuda/cuda_buffers.h"

namespace conclave {

using cuda::DeviceAttentionSequence;

CudaDecoder::CudaDecoder(const Qwen3Config& config, CudaWeights weights,
                         const CudaDecoderOptions& options, ExpertExchange* experts)
    : config_(config), weights_(std::move(weights)), options_(options), experts_(experts) {}

// Nothing may run on the device that uses what is about to be freed.
CudaDecoder::~CudaDecoder() {
  if (buffers_ != nullptr) buffers_->stream.Synchronize().IgnoreError();
}

absl::StatusOr<std::unique_ptr<CudaDecoder>> CudaDecoder::Create(const Qwen3Config& config,
                                                                 CudaWeights weights,
                                                                 const CudaDecoderOptions& options,
                                                                 ExpertExchange* experts) {
  CudaDecoderOptions placed = options;
  placed.experts_here = weights.experts != nullptr;
  placed.experts_elsewhere = experts != nullptr;
  auto decoder =
      std::unique_ptr<CudaDecoder>(new CudaDecoder(config, std::move(weights), placed, experts));
  RETURN_IF_ERROR(decoder->Allocate());
  return decoder;
}

absl::Status CudaDecoder::Allocate() {
  RETURN_IF_ERROR(cuda::UseDevice(options_.device));
  ASSIGN_OR_RETURN(cuda::Stream stream, cuda::Stream::Create(options_.programmatic_launch));
  buffers_ = std::make_unique<Buffers>(std::move(stream));
  ASSIGN_OR_RETURN(buffers_->sent, cuda::Event::Create());
  RETURN_IF_ERROR(buffers_->Allocate(config_, options_));
  if (!options_.deterministic) {
    ASSIGN_OR_RETURN(library_,
                     cuda::LibraryGemm::Create(CudaLibraryGemmOptions(config_, options_)));
  }
  const bool mixed = options_.experts_here && options_.experts_elsewhere;
  return buffers_->Fill(config_, mixed ? weights_.experts->expert_ids : std::vector<int>());
}

bool CudaDecoder::IsGraphStep(const StepBatch& batch) const {
  if (!options_.graphs || experts_ != nullptr) return false;
  return batch.sequences.size() == batch.ids.size() && batch.logit_rows.size() == batch.ids.size();
}

CudaDecoder::StepShape CudaDecoder::Pack(const StepBatch& batch, bool padded) {
  Buffers& b = *buffers_;
  const int group = config_.num_attention_heads / config_.num_key_value_heads;
  StepShape shape;
  const auto num_rows = static_cast<int64_t>(batch.ids.size());
  shape.num_rows = num_rows;
  shape.num_logit_rows = static_cast<int64_t>(batch.logit_rows.size());
  std::copy(batch.ids.begin(), batch.ids.end(), b.ids.host);
  std::copy(batch.positions.begin(), batch.positions.end(), b.positions.host);
  std::copy(batch.slot_mapping.begin(), batch.slot_mapping.end(), b.slot_mapping.host);
  std::copy(batch.logit_rows.begin(), batch.logit_rows.end(), b.logit_rows.host);
  *b.num_valid.host = static_cast<int32_t>(num_rows);

  // A decode takes one thread block a segment, and room for its parts; what has more rows than
  // that, or finds no room, is a prefill, with the same bits.
  std::vector<DeviceAttentionSequence> decodes, prefills;
  int64_t tables = 0, segments = 0;
  for (const AttentionSequence& sequence : batch.sequences) {
    const int context = static_cast<int>(sequence.first_position + sequence.num_tokens);
    const int num_segments = cuda::NumAttentionSegments(context);
    const int num_blocks = (context + limits::kKvBlockTokens - 1) / limits::kKvBlockTokens;
    std::copy(sequence.block_table, sequence.block_table + num_blocks, b.tables.host + tables);
    DeviceAttentionSequence packed;
    packed.first_row = static_cast<int32_t>(sequence.first_row);
    packed.num_tokens = static_cast<int32_t>(sequence.num_tokens);
    packed.first_position = static_cast<int32_t>(sequence.first_position);
    packed.table_begin = static_cast<int32_t>(tables);
    tables += num_blocks;
    if (sequence.num_tokens * group <= cuda::kDecodeRows &&
        segments + num_segments <= b.max_segments) {
      packed.segment_begin = static_cast<int32_t>(segments);
      segments += num_segments;
      shape.max_decode_tokens = std::max(shape.max_decode_tokens, packed.num_tokens);
      shape.max_decode_context = std::max(shape.max_decode_context, context);
      decodes.push_back(packed);
    } else {
      shape.max_prefill_tokens = std::max(shape.max_prefill_tokens, packed.num_tokens);
      shape.max_prefill_context = std::max(shape.max_prefill_context, context);
      prefills.push_back(packed);
    }
  }
  b.tables_used = tables;
  shape.num_decodes = static_cast<int>(decodes.size());
  shape.num_prefills = static_cast<int>(prefills.size());
  if (padded && prefills.empty()) {
    shape.padded = true;
    // Rounded up to powers of two: few graphs, and at most twice the thread blocks, which end at
    // once.
    shape.num_rows = std::min<int64_t>(std::bit_ceil(static_cast<uint64_t>(num_rows)), b.max_rows);
    shape.num_decodes = static_cast<int>(shape.num_rows);
    shape.num_logit_rows = shape.num_rows;
    shape.max_decode_context = static_cast<int>(std::bit_ceil(
        static_cast<uint32_t>(std::max(shape.max_decode_context, cuda::kAttentionSegment))));
    decodes.resize(shape.num_rows);
    for (int64_t row = num_rows; row < shape.num_rows; ++row) {
      b.ids.host[row] = 0;
      b.positions.host[row] = 0;
      b.slot_mapping.host[row] = -1;
      b.logit_rows.host[row] = row;
    }
  }
  std::copy(decodes.begin(), decodes.end(), b.sequences.host);
  std::copy(prefills.begin(), prefills.end(), b.sequences.host + decodes.size());
  return shape;
}

absl::Status CudaDecoder::Upload() {
  Buffers& b = *buffers_;
  // The tables, last and longest, go as far as they are used.
  const size_t bytes = b.step_bytes_before_tables + b.tables_used * sizeof(int32_t);
  return cuda::CopyToDevice(b.step_device.As<char>(), b.step_host.As<char>(), bytes, b.stream);
}

absl::Status CudaDecoder::Forward(const StepBatch& batch) {
  const absl::Time start = absl::Now();
  times_ = StepTimes();
  CHECK_LE(static_cast<int64_t>(batch.ids.size()), buffers_->max_rows);
  CHECK_LE(batch.sequences.size(), static_cast<size_t>(buffers_->max_rows));
  RETURN_IF_ERROR(cuda::UseDevice(options_.device));
  // The last step's copy must have left the pinned memory.
  RETURN_IF_ERROR(buffers_->stream.Synchronize());
  if (batch.ids.empty()) return absl::OkStatus();
  const StepShape shape = Pack(batch, IsGraphStep(batch));
  RETURN_IF_ERROR(Upload());
  RETURN_IF_ERROR(shape.padded ? LaunchGraph(shape) : Enqueue(shape));
  times_.attention = absl::Now() - start;
  return absl::OkStatus();
}

size_t CudaDecoder::num_graphs() const {
  return std::count_if(graphs_.begin(), graphs_.end(),
                       [](const auto& graph) { return graph.second.recorded(); });
}

absl::Status CudaDecoder::LaunchGraph(const StepShape& shape) {
  const auto [found, is_new] = graphs_.try_emplace({shape.num_rows, shape.max_decode_context});
  // What is recorded is not run: the library must have chosen, and loaded, its kernels before.
  if (is_new && library_ != nullptr) return Enqueue(shape);
  cuda::Graph& graph = found->second;
  if (!graph.recorded()) {
    ASSIGN_OR_RETURN(graph, cuda::Graph::Record(buffers_->stream, [&] { return Enqueue(shape); }));
  }
  return graph.Launch(buffers_->stream);
}

absl::Status CudaDecoder::Enqueue(const StepShape& shape) {
  Buffers& b = *buffers_;
  RETURN_IF_ERROR(cuda::FillBytes(b.bad_token, 0, sizeof(int32_t), b.stream));
  RETURN_IF_ERROR(cuda::Embedding({.ids = b.ids.device,
                                   .table = weights_.embed_tokens,
                                   .residual = b.residual,
                                   .num_tokens = shape.num_rows,
                                   .hidden_size = config_.hidden_size},
                                  b.stream));
  for (int layer = 0; layer < config_.num_hidden_layers; ++layer) {
    RETURN_IF_ERROR(AttentionLayer(shape, layer));
    RETURN_IF_ERROR(config_.IsSparseLayer(layer) ? SparseMlp(shape, layer)
                                                 : DenseMlp(shape, weights_.layers[layer]));
  }
  return Norm(b.residual, shape.num_logit_rows, b.logit_rows.device, weights_.norm, b.last_hidden);
}

absl::Status CudaDecoder::Norm(const float* input, int64_t num_rows, const int64_t* row_ids,
                               const float* weight, BFloat16* output) {
  return cuda::RmsNorm({.input = input,
                        .weight = weight,
                        .output = output,
                        .num_rows = num_rows,
                        .hidden_size = config_.hidden_size,
                        .rms_norm_eps = static_cast<float>(config_.rms_norm_eps)},
                       row_ids, buffers_->stream);
}

absl::Status CudaDecoder::Multiply(const BFloat16* input, const cuda::DeviceMatrix& weight,
                                   float* output, int64_t num_rows, bool accumulate) {
  const cuda::DeviceLinearArgs args = {.input = input,
                                       .weight = weight,
                                       .output = output,
                                       .num_rows = num_rows,
                                       .accumulate = accumulate};
  if (library_ != nullptr) {
    ASSIGN_OR_RETURN(const bool done, library_->Linear(args, buffers_->stream));
    if (done) return absl::OkStatus();
  }
  return cuda::Linear(args, buffers_->stream);
}

cuda::DeviceKvCacheLayer CudaDecoder::KvLayer(int layer) const {
  BFloat16* const k = buffers_->kv_cache + 2 * layer * buffers_->kv_values_per_array;
  return {.k = k,
          .v = k + buffers_->kv_values_per_array,
          .num_key_value_heads = config_.num_key_value_heads,
          .block_tokens = limits::kKvBlockTokens,
          .head_dim = config_.head_dim};
}

absl::Status CudaDecoder::AttentionLayer(const StepShape& shape, int layer) {
  Buffers& b = *buffers_;
  const CudaLayerWeights& weights = weights_.layers[layer];
  RETURN_IF_ERROR(
      Norm(b.residual, shape.num_rows, nullptr, weights.input_layernorm, b.hidden_states));
  RETURN_IF_ERROR(Multiply(b.hidden_states, weights.qkv_proj, b.qkv, shape.num_rows));
  RETURN_IF_ERROR(cuda::NormRope({.qkv = b.qkv,
                                  .q_norm = weights.q_norm,
                                  .k_norm = weights.k_norm,
                                  .rope_cos = b.rope_cos,
                                  .rope_sin = b.rope_sin,
                                  .positions = b.positions.device,
                                  .slot_mapping = b.slot_mapping.device,
                                  .q = b.q,
                                  .kv_cache = KvLayer(layer),
                                  .num_tokens = shape.num_rows,
                                  .num_attention_heads = config_.num_attention_heads,
                                  .rms_norm_eps = static_cast<float>(config_.rms_norm_eps)},
                                 b.stream));
  cuda::DeviceAttentionArgs attention;
  attention.q = b.q;
  attention.kv_cache = KvLayer(layer);
  attention.block_tables = b.tables.device;
  attention.output = b.attention;
  attention.num_attention_heads = config_.num_attention_heads;
  attention.scale = 1.0f / std::sqrt(static_cast<float>(config_.head_dim));
  attention.workspace = b.attention_workspace;
  attention.sequences = b.sequences.device;
  attention.num_sequences = shape.num_decodes;
  attention.max_tokens = shape.max_decode_tokens;
  attention.max_context = shape.max_decode_context;
  RETURN_IF_ERROR(cuda::AttentionDecode(attention, b.stream));
  attention.sequences += shape.num_decodes;
  attention.num_sequences = shape.num_prefills;
  attention.max_tokens = shape.max_prefill_tokens;
  attention.max_context = shape.max_prefill_context;
  RETURN_IF_ERROR(cuda::AttentionPrefill(attention, b.stream));
  RETURN_IF_ERROR(Multiply(b.attention, weights.o_proj, b.residual, shape.num_rows, true));
  return Norm(b.residual, shape.num_rows, nullptr, weights.post_attention_layernorm,
              b.hidden_states);
}

absl::Status CudaDecoder::DenseMlp(const StepShape& shape, const CudaLayerWeights& weights) {
  Buffers& b = *buffers_;
  RETURN_IF_ERROR(Multiply(b.hidden_states, weights.gate_up_proj, b.gate_up, shape.num_rows));
  RETURN_IF_ERROR(cuda::SwiGlu({.gate_up = b.gate_up,
                                .output = b.intermediate,
                                .num_rows = shape.num_rows,
                                .intermediate_size = config_.intermediate_size},
                               b.stream));
  return Multiply(b.intermediate, weights.down_proj, b.residual, shape.num_rows, true);
}

absl::Status CudaDecoder::SparseMlp(const StepShape& shape, int layer) {
  Buffers& b = *buffers_;
  const CudaLayerWeights& weights = weights_.layers[layer];
  // Never the library's: it is small, and which experts run should not depend on the batch as well.
  RETURN_IF_ERROR(cuda::Linear({.input = b.hidden_states,
                                .weight = weights.gate,
                                .output = b.gate_logits,
                                .num_rows = shape.num_rows},
                               b.stream));
  cuda::DeviceMoeGateArgs gate;
  gate.args = {.gate_logits = b.gate_logits,
               .topk_ids = b.topk_ids,
               .topk_weights = b.topk_weights,
               .num_tokens = shape.num_rows,
               .num_experts = config_.num_experts,
               .num_experts_per_tok = config_.num_experts_per_tok,
               .norm_topk_prob = config_.norm_topk_prob};
  gate.num_valid_rows = shape.padded ? b.num_valid.device : nullptr;
  gate.bad_token = b.bad_token;
  RETURN_IF_ERROR(cuda::MoeGate(gate, b.stream));
  const bool here = options_.experts_here, elsewhere = options_.experts_elsewhere;
  // What is needed elsewhere leaves first; the experts here run while it travels.
  if (elsewhere) RETURN_IF_ERROR(SendElsewhere(shape));
  if (here) RETURN_IF_ERROR(ExpertsHere(shape, layer));
  if (elsewhere) RETURN_IF_ERROR(ExpertsElsewhere(shape, layer));
  const bool mixed = here && elsewhere;
  return cuda::Combine({.expert_rows = here ? b.expert_rows : b.OtherRows(shape.num_rows),
                        .pair_of_slot = here ? b.pair_of_slot : b.others,
                        .other_of_slot = mixed ? b.others : nullptr,
                        .other_rows = mixed ? b.OtherRows(shape.num_rows) : nullptr,
                        .topk_weights = b.topk_weights,
                        .residual = b.residual,
                        .num_tokens = shape.num_rows,
                        .num_experts_per_tok = config_.num_experts_per_tok,
                        .hidden_size = config_.hidden_size},
                       b.stream);
}

absl::Status CudaDecoder::ExpertsHere(const StepShape& shape, int layer) {
  Buffers& b = *buffers_;
  const CudaExpertLayer& weights = weights_.experts->layers[layer];
  const auto num_experts = static_cast<int>(weights_.experts->expert_ids.size());
  RETURN_IF_ERROR(
      cuda::SortPairs({.topk_ids = b.topk_ids,
                       .place_of_expert = options_.experts_elsewhere ? b.place_of_expert : nullptr,
                       .expert_offsets = b.expert_offsets,
                       .pair_rows = b.pair_rows,
                       .pair_of_slot = b.pair_of_slot,
                       .num_tokens = shape.num_rows,
                       .num_experts = num_experts,
                       .num_experts_per_tok = config_.num_experts_per_tok},
                      b.stream));
  return cuda::ExpertFfn({.hidden_states = b.hidden_states,
                          .pair_rows = b.pair_rows,
                          .expert_offsets = b.expert_offsets,
                          .gate_up_proj = weights.gate_up_proj,
                          .down_proj = weights.down_proj,
                          .intermediate = b.expert_intermediate,
                          .output = b.expert_rows,
                          .max_pairs = shape.num_rows * config_.num_experts_per_tok,
                          .may_use_wgmma = !options_.deterministic && options_.compute_major == 9},
                         b.stream);
}

absl::Status CudaDecoder::SendElsewhere(const StepShape& shape) {
  Buffers& b = *buffers_;
  RETURN_IF_ERROR(cuda::CopyToHost(b.host_hidden_states, b.hidden_states,
                                   shape.num_rows * config_.hidden_size * sizeof(BFloat16),
                                   b.stream));
  RETURN_IF_ERROR(cuda::CopyToHost(b.host_topk_ids, b.topk_ids,
                                   shape.num_rows * config_.num_experts_per_tok * sizeof(int32_t),
                                   b.stream));
  RETURN_IF_ERROR(cuda::CopyToHost(b.host_bad_token, b.bad_token, sizeof(int32_t), b.stream));
  return b.sent->Record(b.stream);
}

absl::Status CudaDecoder::ExpertsElsewhere(const StepShape& shape, int layer) {
  Buffers& b = *buffers_;
  // The one place of a layer where the host must wait for the device. It waits for the rows alone,
  // not for the experts behind them. The last layer's upload is done by then too: it was enqueued
  // before.
  RETURN_IF_ERROR(b.sent->Synchronize());
  RETURN_IF_ERROR(b.CheckGate());
  const int64_t num_slots = shape.num_rows * config_.num_experts_per_tok;
  const size_t row_bytes = config_.hidden_size * sizeof(BFloat16);
  expert_rows_.resize(num_slots);
  RETURN_IF_ERROR(experts_->Run({.layer = layer,
                                 .hidden_states = b.host_hidden_states,
                                 .topk_ids = b.host_topk_ids,
                                 .num_rows = shape.num_rows},
                                expert_rows_));
  char* const host_rows =
      reinterpret_cast<char*>(b.host_others) + b.OtherRowsOffset(shape.num_rows);
  int32_t num_others = 0;
  for (int64_t slot = 0; slot < num_slots; ++slot) {
    b.host_others[slot] = expert_rows_[slot] == nullptr ? -1 : num_others;
    if (expert_rows_[slot] == nullptr) continue;  // computed here
    std::memcpy(host_rows + num_others++ * row_bytes, expert_rows_[slot], row_bytes);
  }
  return cuda::CopyToDevice(b.others, b.host_others,
                            b.OtherRowsOffset(shape.num_rows) + num_others * row_bytes, b.stream);
}

absl::Status CudaDecoder::ComputeLogits(int64_t first, int64_t count) {
  Buffers& b = *buffers_;
  RETURN_IF_ERROR(
      Multiply(b.last_hidden + first * config_.hidden_size, weights_.lm_head, b.logits, count));
  return cuda::CopyToHost(b.host_bad_token, b.bad_token, sizeof(int32_t), b.stream);
}

absl::Status CudaDecoder::Logits(int64_t first, int64_t count, float* logits) {
  const absl::Time start = absl::Now();
  Buffers& b = *buffers_;
  // Slices of what fits into the buffer.
  for (int64_t done = 0; done < count;) {
    const int64_t rows = std::min(count - done, b.max_logit_rows);
    const size_t bytes = rows * int64_t{config_.vocab_size} * sizeof(float);
    RETURN_IF_ERROR(ComputeLogits(first + done, rows));
    RETURN_IF_ERROR(cuda::CopyToHost(b.host_logits, b.logits, bytes, b.stream));
    RETURN_IF_ERROR(b.stream.Synchronize());
    RETURN_IF_ERROR(b.CheckGate());
    std::memcpy(logits + done * config_.vocab_size, b.host_logits, bytes);
    done += rows;
  }
  times_.attention += absl::Now() - start;
  return absl::OkStatus();
}

absl::StatusOr<bool> CudaDecoder::Draw(int64_t first, absl::Span<const SampleArgs> args,
                                       absl::Span<SampleResult> results) {
  const absl::Time start = absl::Now();
  Buffers& b = *buffers_;
  if (static_cast<int64_t>(args.size()) > b.max_logit_rows || args.empty()) return false;
  ASSIGN_OR_RETURN(const bool can_draw, b.sampler.Pack(args));
  if (!can_draw) return false;
  RETURN_IF_ERROR(ComputeLogits(first, static_cast<int64_t>(args.size())));
  RETURN_IF_ERROR(b.sampler.Enqueue(b.logits, args[0].vocab_size, args[0].num_ids, b.stream));
  RETURN_IF_ERROR(b.stream.Synchronize());
  RETURN_IF_ERROR(b.CheckGate());
  RETURN_IF_ERROR(b.sampler.Unpack(results));
  times_.attention += absl::Now() - start;
  return true;
}

}  // namespace conclave
