#include "common/id_list.h"

#include <set>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "common/errors.h"
#include "common/status_macros.h"

namespace conclave {
namespace {

absl::StatusOr<int> ParseId(absl::string_view what, absl::string_view text, int end) {
  int id = -1;
  if (!absl::SimpleAtoi(text, &id) || id < 0 || id >= end) {
    return errors::OutOfRange(absl::StrCat(what, " id"), absl::StrCat("\"", text, "\""),
                              absl::StrCat("0..", end - 1));
  }
  return id;
}

}  // namespace

absl::StatusOr<std::vector<int>> ParseIdList(absl::string_view what, absl::string_view text,
                                             int end) {
  std::set<int> ids;
  for (const absl::string_view item : absl::StrSplit(text, ',')) {
    const std::vector<absl::string_view> ends = absl::StrSplit(item, absl::MaxSplits('-', 1));
    ASSIGN_OR_RETURN(const int first, ParseId(what, ends.front(), end));
    ASSIGN_OR_RETURN(const int last, ParseId(what, ends.back(), end));
    if (last < first) {
      return errors::OutOfRange(absl::StrCat(what, " range"), absl::StrCat("\"", item, "\""),
                                "first <= last");
    }
    for (int id = first; id <= last; ++id) {
      if (ids.insert(id).second) continue;
      return errors::OutOfRange(absl::StrCat(what, " list"), absl::StrCat("\"", text, "\""),
                                absl::StrCat("each id once, ", id, " is there twice"));
    }
  }
  return std::vector<int>(ids.begin(), ids.end());
}

std::string FormatIdList(absl::Span<const int> ids) {
  std::vector<std::string> ranges;
  for (size_t begin = 0, end = 0; begin < ids.size(); begin = end) {
    end = begin + 1;
    while (end < ids.size() && ids[end] == ids[end - 1] + 1) ++end;
    ranges.push_back(end - begin == 1 ? absl::StrCat(ids[begin])
                                      : absl::StrCat(ids[begin], "-", ids[end - 1]));
  }
  return absl::StrJoin(ranges, ",");
}

}  // namespace conclave
