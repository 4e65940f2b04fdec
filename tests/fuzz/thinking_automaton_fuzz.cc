// The automaton obeys the rules of its header whatever the ids, the options, and the moments at
// which a client asks for something or the request moves.
#include <string>

#include "common/check.h"
#include "tests/fuzz/automaton_checker.h"
#include "tests/fuzz/byte_source.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  conclave::ByteSource source(data, size);
  const std::string violation = conclave::DriveAutomaton(
      [&](uint32_t bound) { return source.Below(bound); }, [&] { return !source.empty(); });
  CHECK(violation.empty()) << violation;
  return 0;
}
