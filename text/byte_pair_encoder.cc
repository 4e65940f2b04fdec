#include "text/byte_pair_encoder.h"

#include <algorithm>
#include <bit>
#include <cstring>

namespace conclave {
namespace {

constexpr uint64_t kEmptySlot = UINT64_MAX;
constexpr uint64_t kRankMask = (uint64_t{1} << 24) - 1;
constexpr uint64_t kHashFactor = 0x9E3779B97F4A7C15u;  // 2^64 / golden ratio
// Up to here scanning a small array for its minimum beats a heap.
constexpr size_t kMaxShortBytes = 96;

uint64_t PairKey(uint32_t left, uint32_t right) {
  return uint64_t{left} << 44 | uint64_t{right} << 24;
}

}  // namespace

BytePairEncoder::BytePairEncoder(const std::array<uint32_t, 256>& byte_ids,
                                 const std::vector<Merge>& merges)
    : byte_ids_(byte_ids), byte_ranks_(256 * 256, kNoRank) {
  const size_t num_slots = std::bit_ceil(std::max<size_t>(merges.size() * 2, 16));
  slot_shift_ = 64 - std::countr_zero(num_slots);
  slots_.assign(num_slots, kEmptySlot);
  results_.reserve(merges.size());
  for (size_t rank = 0; rank < merges.size(); ++rank) {
    const uint64_t key = PairKey(merges[rank].left, merges[rank].right);
    size_t slot = (key * kHashFactor) >> slot_shift_;
    while (slots_[slot] != kEmptySlot && (slots_[slot] & ~kRankMask) != key) {
      slot = (slot + 1) & (num_slots - 1);
    }
    slots_[slot] = key | rank;
    results_.push_back(merges[rank].result);
  }
  for (size_t left = 0; left < 256; ++left) {
    for (size_t right = 0; right < 256; ++right) {
      byte_ranks_[left << 8 | right] = Rank(byte_ids_[left], byte_ids_[right]);
    }
  }
}

uint32_t BytePairEncoder::Rank(uint32_t left, uint32_t right) const {
  const uint64_t key = PairKey(left, right);
  for (size_t slot = (key * kHashFactor) >> slot_shift_;; slot = (slot + 1) & (slots_.size() - 1)) {
    const uint64_t found = slots_[slot];
    if ((found & ~kRankMask) == key) return static_cast<uint32_t>(found & kRankMask);
    if (found == kEmptySlot) return kNoRank;
  }
}

void BytePairEncoder::Encode(absl::string_view bytes, std::vector<uint32_t>* ids) const {
  if (bytes.size() <= kMaxShortBytes) {
    EncodeShort(bytes, ids);
  } else {
    EncodeLong(bytes, ids);
  }
}

void BytePairEncoder::EncodeShort(absl::string_view bytes, std::vector<uint32_t>* ids) const {
  // tokens[i] and ranks[i], the rank of merging tokens i and i + 1.
  uint32_t tokens[kMaxShortBytes];
  uint32_t ranks[kMaxShortBytes + 1];
  size_t n = bytes.size();
  if (n == 0) return;
  for (size_t i = 0; i < n; ++i) tokens[i] = byte_ids_[static_cast<uint8_t>(bytes[i])];
  for (size_t i = 0; i + 1 < n; ++i) {
    ranks[i] = byte_ranks_[size_t{static_cast<uint8_t>(bytes[i])} << 8 |
                           static_cast<uint8_t>(bytes[i + 1])];
  }
  ranks[n - 1] = kNoRank;
  while (true) {
    const size_t i = static_cast<size_t>(std::min_element(ranks, ranks + n) - ranks);
    if (ranks[i] == kNoRank) break;
    tokens[i] = results_[ranks[i]];
    --n;
    std::memmove(tokens + i + 1, tokens + i + 2, (n - i - 1) * sizeof(uint32_t));
    std::memmove(ranks + i, ranks + i + 1, (n - i) * sizeof(uint32_t));
    ranks[i] = i + 1 < n ? Rank(tokens[i], tokens[i + 1]) : kNoRank;
    if (i > 0) ranks[i - 1] = Rank(tokens[i - 1], tokens[i]);
  }
  ids->insert(ids->end(), tokens, tokens + n);
}

void BytePairEncoder::EncodeLong(absl::string_view bytes, std::vector<uint32_t>* ids) const {
  // A linked list over the byte positions; a heap of (rank, position), lowest first. An entry
  // whose position died or merged since, which changed its rank, is passed over.
  struct Node {
    uint32_t token;
    uint32_t rank;  // of merging with the next node
    size_t previous;
    size_t next;
  };
  struct Candidate {
    uint32_t rank;
    size_t position;
    bool operator<(const Candidate& other) const {  // std heaps put the largest on top
      return rank != other.rank ? rank > other.rank : position > other.position;
    }
  };
  const size_t n = bytes.size();
  std::vector<Node> nodes(n);
  std::vector<Candidate> heap;
  for (size_t i = 0; i < n; ++i) {
    const uint8_t byte = static_cast<uint8_t>(bytes[i]);
    nodes[i] = {byte_ids_[byte], kNoRank, i - 1, i + 1};
    if (i + 1 == n) break;
    nodes[i].rank = byte_ranks_[size_t{byte} << 8 | static_cast<uint8_t>(bytes[i + 1])];
    if (nodes[i].rank != kNoRank) heap.push_back({nodes[i].rank, i});
  }
  std::make_heap(heap.begin(), heap.end());
  const auto rerank = [&](size_t i) {
    const size_t next = nodes[i].next;
    nodes[i].rank = next < n ? Rank(nodes[i].token, nodes[next].token) : kNoRank;
    if (nodes[i].rank == kNoRank) return;
    heap.push_back({nodes[i].rank, i});
    std::push_heap(heap.begin(), heap.end());
  };
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end());
    const Candidate best = heap.back();
    heap.pop_back();
    Node& node = nodes[best.position];
    if (node.rank != best.rank) continue;
    Node& eaten = nodes[node.next];
    node.token = results_[best.rank];
    eaten.rank = kNoRank;
    node.next = eaten.next;
    if (node.next < n) nodes[node.next].previous = best.position;
    rerank(best.position);
    if (best.position > 0) rerank(node.previous);
  }
  for (size_t i = 0; i < n; i = nodes[i].next) ids->push_back(nodes[i].token);
}

}  // namespace conclave
