#pragma once

#include <optional>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace conclave {

// A heading of --help and the flags under it, each with its dashes.
struct FlagGroup {
  std::string title;
  std::vector<std::string> flags;
};

// Gives each flag of `app` an environment variable (--max_inflight of "CONCLAVE_ROUTER" is
// CONCLAVE_ROUTER_MAX_INFLIGHT), adds --config FILE, sorts --help into `groups` and shows units
// where a name ends in one. Call after the last flag was added.
void PrepareFlags(CLI::App& app, const std::string& env_prefix,
                  const std::vector<FlagGroup>& groups);

// `status` saying which flag it is about: "--listen: address is ..".
absl::Status ForFlag(absl::string_view flag, const absl::Status& status);

// After parsing, whether or not that threw: takes what the command line left open from the
// environment, then from the file of --config (TOML or INI: max_inflight = 64), and checks
// everything again. One InvalidArgument with all that is wrong: values, flags that are missing,
// names that no flag has, and the errors that `check`, which looks at values together, adds.
absl::Status CompleteFlags(CLI::App& app, const std::string& env_prefix,
                           absl::FunctionRef<std::vector<absl::Status>()> check);

// All of it for a program without subcommands. An exit code if the program is to end: 0 after
// --help, 2 after printing "PROGRAM: what is wrong" as one line.
std::optional<int> ParseFlags(CLI::App& app, const std::string& program,
                              const std::string& env_prefix, const std::vector<FlagGroup>& groups,
                              absl::FunctionRef<std::vector<absl::Status>()> check, int argc,
                              char** argv);

}  // namespace conclave
