#pragma once

#include <CLI/CLI.hpp>

#include "client/up_command.h"

namespace conclave {

// `conclave up` is a server: its flags are also variables, of this prefix, and lines of a file.
inline constexpr char kUpVariables[] = "CONCLAVE_UP";

// Declares the subcommand `up` and its flags, which are read into `options`.
CLI::App* AddUpFlags(CLI::App* app, UpOptions* options);

}  // namespace conclave
