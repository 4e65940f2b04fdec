// conclave: the command line. Each Add... below declares one subcommand's flags and returns what
// runs it; everything else is in the file of that command.

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <csignal>
#include <functional>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "client/bench_command.h"
#include "client/chat_command.h"
#include "client/generate_command.h"
#include "client/input_files.h"
#include "client/plan_command.h"
#include "client/render_command.h"
#include "client/score_command.h"
#include "client/status_command.h"
#include "client/status_watch.h"
#include "client/synth_command.h"
#include "client/tokenize_command.h"
#include "client/up_command.h"
#include "client/up_flags.h"
#include "common/flags.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "rpc/shutdown_signals.h"

namespace conclave {
namespace {

struct Command {
  CLI::App* app;
  std::function<absl::Status()> run;
};

void AddRouterFlags(CLI::App* app, RouterOptions* options) {
  app->add_option("--endpoint", options->endpoint, "Router to ask, as a gRPC target")
      ->capture_default_str();
  app->add_option("--timeout_seconds", options->timeout_seconds, "Longest time a request may take")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
}

void AddSamplingFlags(CLI::App* app, SamplingFlags* flags) {
  app->add_option("--max_tokens", flags->max_tokens,
                  "Most tokens to generate, thinking included (default: what the context leaves)");
  app->add_option("--temperature", flags->temperature,
                  "0..2; 0 always takes the likeliest token (default: the model's)")
      ->check(CLI::Range(0.0, 2.0));
  app->add_option("--top_p", flags->top_p,
                  "Sample from the likeliest tokens that make up this share, up to 1 "
                  "(default: the model's)")
      ->check(CLI::Range(0.0, 1.0));
  app->add_option("--top_k", flags->top_k,
                  "Sample from this many likeliest tokens; 0: all (default: the model's)");
  app->add_option("--seed", flags->seed,
                  "Equal seeds give equal answers (default: drawn by the router)");
  app->add_option("--stop", flags->stop, "Text at which to stop; may be given several times")
      ->allow_extra_args(false);
}

Command AddUp(CLI::App* app) {
  auto options = std::make_shared<UpOptions>();
  return {AddUpFlags(app, options.get()), [options] { return RunUp(*options); }};
}

Command AddChat(CLI::App* app) {
  auto options = std::make_shared<ChatCommandOptions>();
  CLI::App* chat = app->add_subcommand(
      "chat",
      "Ask a question and stream the answer, thinking dimmed. Without a question, hold a "
      "conversation: one line a turn, :help for its commands.");
  chat->add_option("prompt", options->prompt, "The question");
  AddRouterFlags(chat, &options->router);
  CLI::Option* think = chat->add_flag_callback(
      "--think", [options] { options->enable_thinking = true; }, "Think before answering");
  chat->add_flag_callback(
          "--no_think", [options] { options->enable_thinking = false; }, "Answer at once")
      ->excludes(think);
  chat->add_option("--thinking_budget", options->thinking_budget,
                   "Most tokens of thinking; 0: none, -1: no limit");
  AddSamplingFlags(chat, &options->sampling);
  chat->add_option("--system", options->system, "System message");
  chat->add_option("--tools", options->tools_file,
                   "File with a JSON list of tools in OpenAI's form; -: standard input");
  chat->add_option("--messages", options->messages_file,
                   "File with a JSON list of messages in OpenAI's form, before the question; "
                   "-: standard input");
  chat->add_option("--model", options->model, "Model to ask for (default: the one served)");
  chat->add_flag("--json", options->json,
                 "Print one object instead: thinking, content, tool_calls, usage, "
                 "thinking_report");
  chat->add_flag("--stats", options->stats,
                 "Print tokens, time to first token and tokens/s on standard error");
  return {chat, [options] { return RunChat(*options); }};
}

Command AddGenerate(CLI::App* app) {
  auto options = std::make_shared<GenerateCommandOptions>();
  auto prompt = std::make_shared<std::optional<std::string>>();
  CLI::App* generate = app->add_subcommand(
      "generate", "Continue a text or token ids as they are, without a chat template.");
  generate->add_option("prompt", *prompt, "Text to continue (default: all of standard input)");
  AddRouterFlags(generate, &options->router);
  AddSamplingFlags(generate, &options->sampling);
  generate->add_flag(
      "--ids", options->ids,
      "The prompt is token ids, separated by commas or spaces, and so is the output");
  generate->add_flag("--prompt_logprobs", options->prompt_logprobs,
                     "Also print the natural log probability of each prompt token but the first; "
                     "with --max_tokens 0 nothing is generated");
  generate->add_flag("--ignore_eos", options->ignore_eos,
                     "Generate max_tokens whatever comes, for measurements");
  generate->add_option("--model", options->model, "Model to ask for (default: the one served)");
  generate->add_flag("--json", options->json,
                     "Print one object: text, ids, prompt_logprobs, finish_reason, usage");
  return {generate, [options, prompt]() -> absl::Status {
            if (*prompt) {
              options->prompt = **prompt;
            } else {
              ASSIGN_OR_RETURN(options->prompt, ReadInput("-"));
            }
            return RunGenerate(*options, std::cout);
          }};
}

void AddLoadFlags(CLI::App* bench, BenchOptions* options) {
  bench->add_option("--num_requests", options->num_requests, "Requests to measure")
      ->capture_default_str();
  bench->add_option("--concurrency", options->concurrency,
                    "Requests in flight at most (default: 16; with --rate: 4096)");
  bench->add_option("--rate", options->rate,
                    "Requests a second, arriving at random (Poisson) whether or not earlier ones "
                    "have ended; default: the next one is sent when one ends");
  bench
      ->add_option("--input_len", options->input_len,
                   "Tokens of a prompt; of a chat, without its template's")
      ->capture_default_str();
  bench->add_option("--output_len", options->output_len, "Tokens to generate")
      ->capture_default_str();
  bench
      ->add_option("--range_ratio", options->range_ratio,
                   "Lengths vary evenly by up to this share of the two, 0 up to 1")
      ->capture_default_str();
  bench
      ->add_option("--shared_prefix_len", options->shared_prefix_len,
                   "First tokens of --input_len that all prompts have in common")
      ->capture_default_str();
  bench->add_option("--think_share", options->think_share,
                    "Send chats, of which this share, 0..1, think and the others do not; default: "
                    "raw token ids");
  bench->add_option("--thinking_budget", options->thinking_budget,
                    "Most tokens of thinking; -1: no limit (default: half of the output)");
  bench->add_option(
      "--prompts", options->prompts_file,
      "File with a question a line to send as chats, in turn, instead of random text");
  bench->add_flag("--respect_eos", options->respect_eos,
                  "Let the model end an answer before --output_len");
  bench
      ->add_option("--temperature", options->temperature,
                   "0..2; 0 always takes the likeliest token (default: the model's)")
      ->check(CLI::Range(0.0, 2.0));
  bench->add_option("--seed", options->seed, "Equal seeds give equal requests and arrival times")
      ->capture_default_str();
  bench->add_option("--warmup", options->warmup, "Requests sent before the measured ones")
      ->capture_default_str();
}

Command AddBench(CLI::App* app) {
  auto options = std::make_shared<BenchOptions>();
  CLI::App* bench = app->add_subcommand(
      "bench",
      "Send a cluster many requests and measure throughput, time to first token and to the first "
      "token of the answer, and inter-token latency. Ctrl-C prints what was measured so far. Exits "
      "0 only if every request finished.");
  AddRouterFlags(bench, &options->router);
  AddLoadFlags(bench, options.get());
  bench->add_option("--slo_ttft_ms", options->slo.ttft_ms,
                    "Goodput counts requests whose first token came within this");
  bench->add_option("--slo_ttfat_ms", options->slo.ttfat_ms,
                    "... whose first token of the answer came within this");
  bench->add_option("--slo_itl_ms", options->slo.itl_ms,
                    "... whose mean inter-token latency is at most this");
  bench
      ->add_option("--plot", options->plots,
                   "Plots below the figures: ttft, ttfat, itl, e2e (histograms), throughput, none")
      ->delimiter(',')
      ->capture_default_str();
  bench->add_option("--model", options->model, "Model to ask for (default: the one served)");
  bench->add_flag("--json", options->json, "Print one JSON object, without plots");
  return {bench, [options]() -> absl::Status {
            // Before any thread of gRPC's. What it would log of a Ctrl-C is no news to who pressed.
            RETURN_IF_ERROR(InitLog("conclave", "error"));
            const ShutdownSignals signals;
            return RunBench(*options, std::cout, std::cerr, isatty(STDERR_FILENO) == 1,
                            [&signals] { return signals.Requested(); });
          }};
}

Command AddStatus(CLI::App* app) {
  auto options = std::make_shared<StatusCommandOptions>();
  CLI::App* status = app->add_subcommand(
      "status", "Show the processes of a cluster and their load. Exits 0 only if it serves.");
  status->add_option("--endpoint", options->router.endpoint, "Router to ask, as a gRPC target")
      ->capture_default_str();
  status
      ->add_option("--wait", options->wait_seconds,
                   "Seconds to wait for the cluster to serve; 0: ask once")
      ->check(CLI::Range(0.0, 86400.0))
      ->capture_default_str();
  CLI::Option* json = status->add_flag("--json", options->json, "Print one JSON object");
  auto watch = std::make_shared<bool>(false);
  status
      ->add_flag("--watch", *watch,
                 "Show it on the whole terminal, anew each second, until Ctrl-C; where standard "
                 "output is no terminal, once")
      ->excludes(json);
  return {status, [options, watch]() -> absl::Status {
            if (!*watch || isatty(STDOUT_FILENO) != 1) return RunStatus(*options, std::cout);
            RETURN_IF_ERROR(InitLog("conclave", "error"));
            const ShutdownSignals signals;  // before any thread of gRPC's
            return WatchStatus(
                options->router.endpoint, std::cout, [&signals] { return signals.Requested(); },
                TerminalRows);
          }};
}

Command AddSynth(CLI::App* app) {
  auto options = std::make_shared<SynthOptions>();
  CLI::App* synth = app->add_subcommand(
      "synth",
      "Write a checkpoint with random weights and a known model's shape, for tests and "
      "measurements.");
  synth
      ->add_option("--config", options->config_name,
                   "Model whose shape to take, such as Qwen3-30B-A3B, or tiny-dense or tiny-moe, "
                   "or a config.json")
      ->required();
  synth->add_option("--layers", options->num_layers, "Keep the first layers only; 0: all")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  synth->add_option("--out", options->out_dir, "Folder to write; must be empty or new")->required();
  synth->add_option("--seed", options->seed, "Equal seeds give equal files")->capture_default_str();
  return {synth, [options] {
            const bool terminal = isatty(STDERR_FILENO) == 1;
            const absl::Status status = RunSynth(*options, [terminal](int64_t done, int64_t total) {
              if (!terminal || total <= 0) return;
              std::cerr << "\r" << done / 1000000 << " of " << total / 1000000 << " MB"
                        << (done == total ? "\n" : "") << std::flush;
            });
            return status;
          }};
}

Command AddPlan(CLI::App* app) {
  auto options = std::make_shared<PlanOptions>();
  auto bandwidth_gbs = std::make_shared<std::optional<double>>();
  CLI::App* plan = app->add_subcommand(
      "plan",
      "Compute what a model takes on given cards or CPU servers: the layout, bytes by kind, KV "
      "tokens left, the floor of a decode step and of prefill, and the flags that start it. Exits "
      "1 with the reason if it does not fit.");
  plan->add_option("--config", options->config,
                   "Known model such as Qwen3-235B-A22B, a config.json, or a folder with one")
      ->required();
  plan->add_option("--dtype", options->dtype,
                   "Weights: bf16 or fp8, with --cpu also int8 or int4, as --weight_dtype keeps "
                   "them (default: as the checkpoint is stored)");
  plan->add_option("--gpu", options->device.gpu, "Kind of the cards: " + KnownGpuNames());
  plan->add_option("--gpus", options->gpus, "Cards (default: 1)");
  plan->add_option("--gpu_memory_gib,--host_memory_gib", options->device.memory_gib,
                   "GiB of a card, or of a host (default with --cpu: what is available here)");
  CLI::Option* bandwidth = plan->add_option("--gpu_bandwidth_tbs", options->device.bandwidth_tbs,
                                            "Its memory's read bandwidth, 10^12 bytes/s");
  plan->add_option("--gpu_tflops,--host_tflops", options->device.tflops,
                   "Its dense multiply-adds, 10^12 FLOP/s: a card's of that type, a host's of BF16 "
                   "(int8's are twice as many)");
  plan->add_flag("--cpu", options->device.cpu, "Plan for CPU servers instead of cards");
  plan->add_option("--hosts", options->hosts, "CPU servers (default: 1)");
  plan->add_option("--host_bandwidth_gbs", *bandwidth_gbs,
                   "Read bandwidth of a host's memory, 10^9 bytes/s")
      ->excludes(bandwidth);
  plan->add_option("--context", options->context, "Tokens of KV of each sequence")
      ->capture_default_str();
  plan->add_option("--batch", options->batch, "Sequences at a time")->capture_default_str();
  plan->add_option("--gpu_memory_utilization,--host_memory_utilization",
                   options->memory_utilization, "Share of the memory that Conclave may take")
      ->capture_default_str();
  plan->add_option("--hop_us", options->hop_us,
                   "One way between attention and experts elsewhere, in microseconds")
      ->capture_default_str();
  plan->add_flag("--json", options->json, "Print one JSON object");
  return {plan, [options, bandwidth_gbs] {
            if (*bandwidth_gbs) options->device.bandwidth_tbs = **bandwidth_gbs / 1e3;
            return RunPlan(*options, std::cout);
          }};
}

Command AddTokenize(CLI::App* app) {
  auto options = std::make_shared<TokenizeOptions>();
  CLI::App* tokenize = app->add_subcommand(
      "tokenize",
      "Turn texts into token ids: one JSON object a line from standard input, {\"text\"} "
      "to {\"ids\"}. Needs no cluster.");
  tokenize->add_option("--model", options->model_dir, "Folder with tokenizer.json")->required();
  tokenize->add_flag("--plain", options->plain,
                     "Control tokens written in a text, such as <|im_end|>, are ordinary text");
  tokenize->add_flag("--decode", options->decode, "The other way: {\"ids\"} to {\"text\"}");
  return {tokenize, [options] { return RunTokenize(*options, std::cin, std::cout); }};
}

Command AddRender(CLI::App* app) {
  auto options = std::make_shared<RenderOptions>();
  auto chat_template = std::make_shared<std::string>("auto");
  CLI::App* render = app->add_subcommand(
      "render",
      "Show the prompt a chat becomes: one JSON object a line from standard input, "
      "{\"messages\", \"tools\", \"enable_thinking\"} to {\"text\", \"ids\"}. Needs no "
      "cluster.");
  render->add_option("--model", options->model_dir, "Folder with the tokenizer's files")
      ->required();
  render
      ->add_option("--chat_template", *chat_template,
                   "Template of chat prompts; auto: the checkpoint's own")
      ->capture_default_str();
  return {render, [options, chat_template]() -> absl::Status {
            if (*chat_template != "auto") {
              ASSIGN_OR_RETURN(options->chat_template, ParseTemplateKind(*chat_template));
            }
            return RunRender(*options, std::cin, std::cout);
          }};
}

Command AddScore(CLI::App* app) {
  auto options = std::make_shared<ScoreOptions>();
  CLI::App* score = app->add_subcommand(
      "score",
      "Log probabilities of given token ids: one JSON object a line from standard input, "
      "{\"ids\"} to {\"logprobs\"}. Starts a worker of its own and stops it at the end.");
  score->add_option("--model", options->model, "Folder of a Qwen3 checkpoint")->required();
  score->add_option("--threads", options->threads, "Compute threads; 0: one per core")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  score
      ->add_option("--cpu_isa", options->cpu_isa,
                   "Instructions of the kernels; auto: the best here")
      ->capture_default_str();
  score
      ->add_option("--weight_dtype", options->weight_dtype,
                   "How weights are kept: auto (as in the checkpoint), bf16, int8 or int4")
      ->check(CLI::IsMember({"auto", "bf16", "fp8", "int8", "int4"}))
      ->capture_default_str();
  score->add_option("--ready_seconds", options->ready_seconds, "Seconds to load the model within")
      ->check(CLI::Range(1, 86400))
      ->capture_default_str();
  score->add_option("--timeout_seconds", options->timeout_seconds, "Longest time of one line")
      ->check(CLI::Range(1, 86400))
      ->capture_default_str();
  score->add_option("--bin_dir", options->bin_dir)->group("");  // hidden: for tests
  return {score, [options] { return RunScore(*options, std::cin, std::cout); }};
}

// What is wrong with the arguments, in one line; empty: nothing.
std::string Parse(CLI::App& app, CLI::App& up, int argc, char** argv) {
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success&) {
    throw;  // --help
  } catch (const CLI::ExtrasError& unknown) {
    return unknown.what();
  } catch (const CLI::ParseError& wrong) {
    const bool value = dynamic_cast<const CLI::ValidationError*>(&wrong) != nullptr ||
                       dynamic_cast<const CLI::ConversionError*>(&wrong) != nullptr ||
                       dynamic_cast<const CLI::RequiredError*>(&wrong) != nullptr;
    if (!value || !up.parsed() || !app.remaining().empty()) return wrong.what();
  }
  if (!up.parsed()) return "";
  // What the command line lacks, the environment or a file may give; and one error tells all.
  return std::string(
      CompleteFlags(up, kUpVariables, [] { return std::vector<absl::Status>(); }).message());
}

int Main(int argc, char** argv) {
  CLI::App app{
      "conclave: serve Qwen3 models with a cluster of small gRPC services, and talk to one."};
  app.name("conclave");
  app.require_subcommand(1);
  app.set_help_all_flag("--help_all", "Help for every command");
  const std::vector<Command> commands = {
      AddUp(&app),   AddChat(&app),  AddGenerate(&app), AddStatus(&app),   AddBench(&app),
      AddPlan(&app), AddScore(&app), AddSynth(&app),    AddTokenize(&app), AddRender(&app)};
  try {
    const std::string error = Parse(app, *commands.front().app, argc, argv);
    if (!error.empty()) {
      std::cerr << "conclave: " << error << std::endl;
      return 2;
    }
  } catch (const CLI::Success& help) {
    return app.exit(help);
  }
  std::signal(SIGPIPE, SIG_IGN);  // a reader that left is a failed write, not our end
  for (const Command& command : commands) {
    if (!command.app->parsed()) continue;
    const absl::Status status = command.run();
    if (status.ok()) return 0;
    std::cerr << "conclave " << command.app->get_name() << ": " << status.message() << std::endl;
    return 1;
  }
  return 2;
}

}  // namespace
}  // namespace conclave

int main(int argc, char** argv) { return conclave::Main(argc, argv); }
