#pragma once

#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace conclave {

// Plots in plain text: one line a bar, bars of '#', the longest `width` columns.

struct PlotBar {
  std::string label;  // left of the bar, right-aligned
  double value = 0;   // not negative
};

// Title and bars; each value is printed behind its bar.
std::string PlotBars(absl::string_view title, absl::Span<const PlotBar> bars, int width);

// How many of the values fall between steps of 1, 2 and 5 times powers of ten (of steps of equal
// size where the values span less than a factor of four). Empty text without values.
std::string PlotHistogram(absl::string_view title, absl::Span<const double> values, int width);

}  // namespace conclave
