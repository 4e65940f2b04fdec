#pragma once

#include <cstddef>
#include <cstdint>
#include <iterator>

// The constants of unicode_tables.cc, which tools/make_unicode_tables.py writes. Read them through
// unicode_properties.h.
namespace conclave::unicode_tables {

// `first` and the code points after it, up to the next run, have these properties.
struct PropertyRun {
  uint32_t first;
  uint16_t properties;
};
extern const PropertyRun kPropertyRuns[];
extern const size_t kNumPropertyRuns;

// Canonical decompositions, complete: code point | length << 24, then that many code points.
// Hangul syllables are not listed: they are computed.
extern const char32_t kDecompositions[];
extern const size_t kDecompositionsLength;

struct Composition {
  char32_t first;
  char32_t second;
  char32_t composed;
};
extern const Composition kCompositions[];
extern const size_t kNumCompositions;

}  // namespace conclave::unicode_tables
