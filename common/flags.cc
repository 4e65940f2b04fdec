#include "common/flags.h"

#include <unistd.h>

#include <filesystem>
#include <iostream>
#include <system_error>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"

namespace conclave {
namespace {

constexpr char kConfigFlag[] = "--config";

std::string EnvironmentName(const std::string& prefix, const CLI::Option& option) {
  return absl::StrCat(prefix, "_", absl::AsciiStrToUpper(option.get_lnames().front()));
}

bool IsOurs(const CLI::App& app, const CLI::Option* option) {
  return !option->get_lnames().empty() && option != app.get_help_ptr() &&
         option != app.get_help_all_ptr();
}

// What a value is counted in, where the name says so.
void ShowUnit(CLI::Option* option) {
  const std::string& name = option->get_lnames().front();
  for (const char* unit : {"seconds", "tokens", "bytes", "threads", "percent"}) {
    if (absl::EndsWith(name, absl::StrCat("_", unit)) || name == unit) {
      option->type_name(absl::AsciiStrToUpper(unit));
    }
  }
}

void TakeEnvironment(CLI::App& app) {
  for (CLI::Option* option : app.get_options()) {
    if (option->count() > 0 || option->get_envname().empty()) continue;
    const char* value = getenv(option->get_envname().c_str());
    if (value != nullptr && *value != '\0') option->add_result(value);
  }
}

// A variable that looks like a flag's and is none is a mistake in writing.
void FindUnknownVariables(const CLI::App& app, const std::string& prefix,
                          std::vector<std::string>& errors) {
  for (char** entry = environ; *entry != nullptr; ++entry) {
    absl::string_view name(*entry);
    name = name.substr(0, name.find('='));
    if (!absl::StartsWith(name, absl::StrCat(prefix, "_"))) continue;
    bool known = false;
    for (const CLI::Option* option : app.get_options()) known |= option->get_envname() == name;
    if (!known) errors.push_back(absl::StrCat(name, " is set, and there is no such flag"));
  }
}

void TakeFile(CLI::App& app, std::vector<std::string>& errors) {
  const CLI::Option* config = app.get_option_no_throw(kConfigFlag);
  if (config->count() == 0) return;
  const std::string path = config->results().back();
  std::error_code ignored;
  if (std::filesystem::is_directory(path, ignored)) {  // which opens, and reads as an empty file
    errors.push_back(absl::StrCat("--config: ", path, " is a folder, want a file"));
    return;
  }
  std::vector<CLI::ConfigItem> items;
  try {
    items = CLI::ConfigTOML().from_file(path);
  } catch (const CLI::Error& error) {
    errors.push_back(absl::StrCat("--config: ", error.what()));
    return;
  }
  for (const CLI::ConfigItem& item : items) {
    if (item.name == "++" || item.name == "--") continue;  // CLI11's marks of a section's ends
    CLI::Option* option = item.parents.empty() && item.name != "config" && item.name != "help"
                              ? app.get_option_no_throw(absl::StrCat("--", item.name))
                              : nullptr;
    if (option == nullptr) {
      errors.push_back(absl::StrCat(path, " sets ",
                                    absl::CHexEscape(item.fullname()).substr(0, 100),
                                    ", and there is no such flag"));
    } else if (option->count() == 0) {
      option->add_result(item.inputs);
    }
  }
}

// CLI11 stops at the first value it does not like; here each option is asked by itself.
void CheckEach(CLI::App& app, std::vector<std::string>& errors) {
  for (CLI::Option* option : app.get_options()) {
    if (!IsOurs(app, option)) continue;
    if (option->count() == 0) {
      if (option->get_required())
        errors.push_back(absl::StrCat(option->get_name(), " is required"));
      continue;
    }
    try {
      option->run_callback();
    } catch (const CLI::Error& error) {
      errors.push_back(error.what());
    }
  }
  for (const std::string& word : app.remaining()) {
    errors.push_back(absl::StrCat("unknown: ", word));
  }
}

}  // namespace

void PrepareFlags(CLI::App& app, const std::string& env_prefix,
                  const std::vector<FlagGroup>& groups) {
  // Read by CompleteFlags: CLI11's own would let the file win over the environment.
  app.add_option(
         kConfigFlag, [](const CLI::results_t&) { return true; },
         "TOML or INI file of these flags, without dashes; the command line comes first, "
         "then the environment, then the file")
      ->type_name("FILE");
  for (CLI::Option* option : app.get_options()) {
    if (!IsOurs(app, option) || option->get_group().empty()) continue;
    option->envname(EnvironmentName(env_prefix, *option));
    ShowUnit(option);
    for (const FlagGroup& group : groups) {
      for (const std::string& flag : group.flags) {
        if (option->check_name(flag)) option->group(group.title);
      }
    }
  }
}

absl::Status ForFlag(absl::string_view flag, const absl::Status& status) {
  if (status.ok()) return status;
  return absl::Status(status.code(), absl::StrCat(flag, ": ", status.message()));
}

absl::Status CompleteFlags(CLI::App& app, const std::string& env_prefix,
                           absl::FunctionRef<std::vector<absl::Status>()> check) {
  std::vector<std::string> errors;
  TakeEnvironment(app);
  FindUnknownVariables(app, env_prefix, errors);
  TakeFile(app, errors);
  CheckEach(app, errors);
  for (const absl::Status& status : check()) {
    if (!status.ok()) errors.emplace_back(status.message());
  }
  if (errors.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrJoin(errors, "; "));
}

std::optional<int> ParseFlags(CLI::App& app, const std::string& program,
                              const std::string& env_prefix, const std::vector<FlagGroup>& groups,
                              absl::FunctionRef<std::vector<absl::Status>()> check, int argc,
                              char** argv) {
  PrepareFlags(app, env_prefix, groups);
  std::string unreadable;
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& help) {
    return app.exit(help);
  } catch (const CLI::ValidationError&) {  // these four are found again, with all others
  } catch (const CLI::ConversionError&) {
  } catch (const CLI::RequiredError&) {
  } catch (const CLI::ExtrasError&) {
  } catch (const CLI::Error& error) {
    unreadable = error.what();
  }
  absl::Status status = CompleteFlags(app, env_prefix, check);
  if (!unreadable.empty()) {
    status = absl::InvalidArgumentError(
        absl::StrCat(unreadable, status.ok() ? "" : "; ", std::string(status.message())));
  }
  if (status.ok()) return std::nullopt;
  std::cerr << program << ": " << status.message() << std::endl;
  return 2;
}

}  // namespace conclave
