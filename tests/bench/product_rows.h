#pragma once

#include <cstdint>
#include <string>

#include "tests/bench/table.h"

namespace conclave {

struct Shape {
  std::string model;
  int num_layers;
  int64_t hidden_size, intermediate_size, vocab_size;  // intermediate_size 0: MoE
  int num_attention_heads, num_key_value_heads, head_dim;
};

// Rows for the matrix products of a model: those of whole decode steps, of prefill, and the experts
// of an MoE model, with every weight dtype of the options.
void ProductRows(Table& table, const Shape& shape, const Options& options, const Device& device);

}  // namespace conclave
