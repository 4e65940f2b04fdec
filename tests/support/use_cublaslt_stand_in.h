#pragma once

#include <dlfcn.h>

#include <memory>

#include "common/check.h"
#include "kernels/cuda/emulation/emulator.h"
#include "tests/support/cublaslt_stand_in.h"

namespace conclave::cuda {

// For tests of programs that link conclave_cublaslt_stand_in: what cuBLASLt's stand-in computes
// goes through the emulator's streams.
class CublasLtStandIn {
 public:
  CublasLtStandIn() {
    void* const file = dlopen("libcublasLt.so.13", RTLD_NOW | RTLD_LOCAL);
    CHECK(file != nullptr) << dlerror();
    const auto set_enqueue = reinterpret_cast<void (*)(cublaslt::EnqueueFunction)>(
        dlsym(file, "ConclaveStandInSetEnqueue"));
    counts_ = reinterpret_cast<cublaslt::StandInCounts (*)()>(dlsym(file, "ConclaveStandInCounts"));
    CHECK(set_enqueue != nullptr && counts_ != nullptr) << "this is not the stand-in";
    set_enqueue([](void* stream, void (*run)(const void*), std::shared_ptr<const void> argument) {
      emulation::Enqueue(stream, [run, argument = std::move(argument)] { run(argument.get()); });
    });
  }
  cublaslt::StandInCounts counts() const { return counts_(); }

 private:
  cublaslt::StandInCounts (*counts_)() = nullptr;
};

}  // namespace conclave::cuda
