#include "client/terminal_plot.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace conclave {
namespace {

constexpr int kEqualSteps = 10;
// Below this no clock of ours resolves: a microsecond, in milliseconds.
constexpr double kLeastEdge = 1e-3;

// The largest of ..., 0.5, 1, 2, 5, 10, ... that is not above `value`, and the next above it.
double NiceFloor(double value) {
  const double power = std::pow(10, std::floor(std::log10(value)));
  // Quotients such as 4.9999999 of 5 / 1 belong to the upper step.
  const double lead = value / power * (1 + 1e-9);
  return power * (lead >= 5 ? 5 : lead >= 2 ? 2 : 1);
}
double NextNice(double edge) {
  const double power = std::pow(10, std::floor(std::log10(edge) + 1e-9));
  const double lead = edge / power;
  return power * (lead < 1.5 ? 2 : lead < 3 ? 5 : 10);
}

// Rising; the first is not above `low`, the last is above `high`.
std::vector<double> Edges(double low, double high) {
  std::vector<double> edges;
  if (low > 0 && high < 4 * low) {
    const double step = NextNice(std::max((high - low) / kEqualSteps, kLeastEdge));
    for (double edge = std::floor(low / step) * step; edge <= high; edge += step) {
      edges.push_back(edge);
    }
    edges.push_back(edges.back() + step);
    return edges;
  }
  for (double edge = NiceFloor(std::max(low, kLeastEdge)); edge <= high; edge = NextNice(edge)) {
    edges.push_back(edge);
  }
  if (edges.empty()) edges.push_back(kLeastEdge);  // all are less
  edges.push_back(NextNice(edges.back()));
  edges.front() = std::min(edges.front(), low);
  return edges;
}

}  // namespace

std::string PlotBars(absl::string_view title, absl::Span<const PlotBar> bars, int width) {
  size_t label_width = 0;
  double most = 0;
  for (const PlotBar& bar : bars) {
    label_width = std::max(label_width, bar.label.size());
    most = std::max(most, bar.value);
  }
  std::string text = absl::StrCat(title, "\n");
  for (const PlotBar& bar : bars) {
    const int length =
        most > 0 ? static_cast<int>(std::lround(bar.value / most * std::max(1, width))) : 0;
    absl::StrAppendFormat(&text, "  %*s |%s%s%.6g\n", static_cast<int>(label_width), bar.label,
                          std::string(length, '#'), length > 0 ? " " : "", bar.value);
  }
  return text;
}

std::string PlotHistogram(absl::string_view title, absl::Span<const double> values, int width) {
  if (values.empty()) return "";
  const auto [low, high] = std::minmax_element(values.begin(), values.end());
  const std::vector<double> edges = Edges(*low, *high);
  std::vector<PlotBar> bars(edges.size() - 1);
  for (size_t i = 0; i < bars.size(); ++i) {
    bars[i].label = absl::StrFormat("%.6g-%.6g", edges[i], edges[i + 1]);
  }
  for (const double value : values) {
    const auto above = std::upper_bound(edges.begin(), edges.end(), value);
    const auto bar =
        std::clamp<int64_t>(above - edges.begin() - 1, 0, static_cast<int64_t>(bars.size()) - 1);
    bars[bar].value += 1;
  }
  return PlotBars(title, bars, width);
}

}  // namespace conclave
