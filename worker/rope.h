#pragma once

#include "kernels/rope_table.h"
#include "model/qwen3_config.h"

namespace conclave {

// The table of every position the model reaches, YaRN's scaling included.
RopeTable MakeRope(const Qwen3Config& config);

}  // namespace conclave
