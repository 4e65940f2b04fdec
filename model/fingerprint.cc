#include "model/fingerprint.h"

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "model/sha256.h"
#include "model/weight_catalog.h"

namespace conclave {
namespace {

constexpr size_t kSampleBytes = 64;
constexpr size_t kDigits = 32;

void AddTensor(const TensorView& tensor, Sha256* sha) {
  sha->Update(absl::StrCat(tensor.name, " ", DTypeName(tensor.dtype), " ",
                           ShapeString(tensor.shape), "\n"));
  if (tensor.bytes <= 3 * kSampleBytes) {
    sha->Update(tensor.data, tensor.bytes);
    return;
  }
  // The end of one tensor and the start of the next are mostly on one page of the file.
  sha->Update(tensor.data, kSampleBytes);
  sha->Update(tensor.data + tensor.bytes / 2, kSampleBytes);
  sha->Update(tensor.data + tensor.bytes - kSampleBytes, kSampleBytes);
}

}  // namespace

absl::StatusOr<std::string> Fingerprint(const Checkpoint& checkpoint, const Qwen3Config& config) {
  RETURN_IF_ERROR(CheckCatalog(checkpoint, config));
  for (const auto& part : checkpoint.parts()) part->Advise(SafetensorsFile::Access::kRandom);
  Sha256 sha;
  sha.Update(FormatQwen3Config(config));
  for (const WeightSpec& spec : WeightCatalog(config)) {
    ASSIGN_OR_RETURN(const TensorView tensor, checkpoint.Find(spec.name));
    AddTensor(tensor, &sha);
    if (tensor.dtype != DType::kF8E4M3) continue;
    ASSIGN_OR_RETURN(const TensorView scales,
                     checkpoint.Find(absl::StrCat(spec.name, "_scale_inv")));
    AddTensor(scales, &sha);
  }
  for (const auto& part : checkpoint.parts()) part->Advise(SafetensorsFile::Access::kNormal);
  return sha.HexDigest().substr(0, kDigits);
}

std::string DummyFingerprint(const Qwen3Config& config) {
  Sha256 sha;
  sha.Update(absl::StrCat("dummy\n", FormatQwen3Config(config)));
  return sha.HexDigest().substr(0, kDigits);
}

}  // namespace conclave
