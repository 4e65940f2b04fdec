#pragma once

#include <cstdint>
#include <vector>

// Passes over a row of logits of the vocabulary's length. One code for every CPU: sampling gives
// the same ids wherever a request runs.
namespace conclave::cpu {

struct Candidate {
  float value = 0;  // logit or weight
  uint32_t id = 0;
};

// The order of sampling: falling value, ties to the lower id.
inline bool Before(const Candidate& a, const Candidate& b) {
  return a.value > b.value || (a.value == b.value && a.id < b.id);
}

// Index of the first value that is infinite or not a number; -1 if all are finite.
int64_t FirstNotFinite(const float* values, int64_t size);

// -infinity for an empty row. No value may be NaN.
float MaxOf(const float* values, int64_t size);

// The first `count` ids in the order of sampling (all, if there are fewer), sorted.
std::vector<Candidate> Largest(const float* values, int64_t size, int64_t count);

// Sum in double, in an order that depends on `size` alone.
double SumOf(const float* values, int64_t size);

// log of the sum of e^values.
double LogSumExp(const float* values, int64_t size);

}  // namespace conclave::cpu
