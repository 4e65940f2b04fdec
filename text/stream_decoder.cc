#include "text/stream_decoder.h"

namespace conclave {

std::string StreamDecoder::Push(uint32_t id) {
  std::string text;
  if (skip_special_ && vocabulary_->IsSpecial(id)) return text;
  repairer_.Append(vocabulary_->Bytes(id), &text);
  return text;
}

std::string StreamDecoder::Flush() {
  std::string text;
  repairer_.Flush(&text);
  return text;
}

}  // namespace conclave
