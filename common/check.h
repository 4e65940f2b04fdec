#pragma once

#include <cstdlib>
#include <iostream>
#include <sstream>

namespace conclave::internal {

// Collects what is streamed into a failed CHECK, prints it and aborts at the end of the statement.
class CheckFailure {
 public:
  CheckFailure(const char* file, int line, const char* condition) {
    stream_ << file << ":" << line << ": CHECK failed: " << condition << " ";
  }
  ~CheckFailure() {
    std::cerr << stream_.str() << std::endl;
    std::abort();
  }
  std::ostream& stream() { return stream_; }

 private:
  std::ostringstream stream_;
};

struct Voidify {
  void operator&(std::ostream&) {}
};

}  // namespace conclave::internal

// For our own bugs only, in every build type; anything a caller, a peer or a file can cause is a
// Status instead.
#define CHECK(condition)                          \
  (condition) ? (void)0                           \
              : ::conclave::internal::Voidify() & \
                    ::conclave::internal::CheckFailure(__FILE__, __LINE__, #condition).stream()
#define CHECK_OP_(a, op, b) CHECK((a)op(b)) << "(" << (a) << " vs " << (b) << ") "
#define CHECK_EQ(a, b) CHECK_OP_(a, ==, b)
#define CHECK_NE(a, b) CHECK_OP_(a, !=, b)
#define CHECK_LT(a, b) CHECK_OP_(a, <, b)
#define CHECK_LE(a, b) CHECK_OP_(a, <=, b)
#define CHECK_GT(a, b) CHECK_OP_(a, >, b)
#define CHECK_GE(a, b) CHECK_OP_(a, >=, b)
