// Linked into a program on the CUDA emulator: SIGUSR1 makes its device fail, as one does that falls
// off the bus.

#include <signal.h>

#include "kernels/cuda/emulation/emulator.h"

namespace {

const auto previous_handler =
    signal(SIGUSR1, [](int) { conclave::cuda::emulation::FailCalls(true); });

}  // namespace
