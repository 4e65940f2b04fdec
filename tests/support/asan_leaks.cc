// What LeakSanitizer must not report: leaks of the libraries we are given.

extern "C" const char* __lsan_default_suppressions();  // NOLINT: the sanitizer's name

// gRPC 1.51 leaves c-ares's library state (20 bytes) behind after it resolved a name.
extern "C" const char* __lsan_default_suppressions() { return "leak:libcares\n"; }
