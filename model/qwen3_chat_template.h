#pragma once

namespace conclave {

// The Jinja chat template that the first hybrid-thinking Qwen3 models carry in
// tokenizer_config.json, unchanged. Copyright Alibaba Cloud, Apache License 2.0; see NOTICE.
extern const char kQwen3ChatTemplate[];

}  // namespace conclave
