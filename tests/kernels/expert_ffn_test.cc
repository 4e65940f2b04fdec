#include "kernels/expert_ffn.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/kernels/kernel_test_support.h"
#include "tests/support/status_matchers.h"

namespace conclave {
namespace {

using testing::HasSubstr;

struct Problem {
  // pairs_per_expert[e] pairs of expert e, of random rows.
  Problem(int64_t rows, int64_t hidden, int64_t intermediate, std::vector<int64_t> pairs_per_expert,
          uint64_t seed, WeightDtype dtype = WeightDtype::kBf16)
      : num_rows(rows),
        hidden_size(hidden),
        intermediate_size(intermediate),
        hidden_states(RandomBf16(rows * hidden, seed)) {
    std::mt19937_64 generator(seed);
    experts.resize(pairs_per_expert.size());
    for (size_t e = 0; e < experts.size(); ++e) {
      const float scale = 1 / std::sqrt(static_cast<float>(hidden));
      experts[e] = {
          .gate_up_proj =
              RandomMatrix(dtype, 2 * intermediate, hidden, seed + 10 * e + 1, 2 * scale),
          .down_proj = RandomMatrix(dtype, hidden, intermediate, seed + 10 * e + 2, scale)};
      groups.push_back({.weights = &experts[e],
                        .first_pair = static_cast<int64_t>(pair_rows.size()),
                        .num_pairs = pairs_per_expert[e]});
      for (int64_t i = 0; i < pairs_per_expert[e]; ++i) {
        pair_rows.push_back(static_cast<uint32_t>(generator() % rows));
      }
    }
  }

  ExpertFfnArgs Args(BFloat16* output, ExpertFfnWorkspace* workspace) const {
    return {.hidden_states = hidden_states.data(),
            .pair_rows = pair_rows,
            .groups = groups,
            .output = output,
            .num_rows = num_rows,
            .hidden_size = hidden_size,
            .moe_intermediate_size = intermediate_size,
            .workspace = workspace};
  }

  std::vector<BFloat16> Run(const Device* device, ExpertFfnWorkspace* workspace) const {
    std::vector<BFloat16> output(pair_rows.size() * hidden_size, ToBFloat16(99));
    const ExpertFfnArgs args = Args(output.data(), workspace);
    EXPECT_OK(device == nullptr ? ExpertFfnReference(args) : ExpertFfn(args, *device));
    return output;
  }

  int64_t num_rows, hidden_size, intermediate_size;
  std::vector<BFloat16> hidden_states;
  std::vector<ExpertWeights> experts;
  std::vector<ExpertGroup> groups;
  std::vector<uint32_t> pair_rows;
};

TEST(ExpertFfnReferenceTest, HandWorked) {
  // hidden 1, intermediate 16, of which the first two matter: gate weights 1 and -1, up weights 2
  // and 4, down weights 1 and 1. x = 1: silu(1) * 2 = 1.462117 -> BF16 1.4609375 and silu(-1) * 4 =
  // -1.075766 -> BF16 -1.078125; their sum 0.3828125 is a BF16.
  std::vector<float> gate_up(32), down(16);
  gate_up[0] = 1, gate_up[1] = -1, gate_up[16] = 2, gate_up[17] = 4;
  down[0] = down[1] = 1;
  const ExpertWeights weights{.gate_up_proj = Pack(ToBFloat16(gate_up), 1),
                              .down_proj = Pack(ToBFloat16(down), 16)};
  const ExpertGroup group{.weights = &weights, .num_pairs = 1};
  const BFloat16 x = ToBFloat16(1);
  const uint32_t row = 0;
  BFloat16 output;
  ExpertFfnWorkspace workspace;
  const ExpertFfnArgs args{.hidden_states = &x,
                           .pair_rows = {&row, 1},
                           .groups = {&group, 1},
                           .output = &output,
                           .num_rows = 1,
                           .hidden_size = 1,
                           .moe_intermediate_size = 16,
                           .workspace = &workspace};
  ASSERT_OK(ExpertFfnReference(args));
  EXPECT_EQ(ToFloat(output), 0.3828125f);
  for (const CpuIsa isa : TestIsas()) {
    ASSERT_OK(ExpertFfn(args, {.isa = isa}));
    EXPECT_EQ(ToFloat(output), 0.3828125f) << Name(isa);
  }
}

TEST(ExpertFfnTest, MatchesReference) {
  for (const WeightDtype dtype : kTestDtypes) {
    ExpertFfnWorkspace workspace;  // kept from shape to shape, as a shard does
    for (const auto& [hidden, intermediate] :
         {std::pair{17, 16}, {64, 48}, {100, 80}, {256, 112}}) {
      for (const std::vector<int64_t>& pairs :
           {std::vector<int64_t>{1}, {0, 3, 0}, {1, 1, 1, 1, 1, 1, 1, 1}, {7, 13, 1, 100}, {}}) {
        const Problem problem(9, hidden, intermediate, pairs, hidden, dtype);
        const std::vector<BFloat16> expected = problem.Run(nullptr, &workspace);
        for (const CpuIsa isa : TestIsas()) {
          const Device device{.isa = isa};
          // The intermediate may round to the neighbouring BF16 where its FP32 sum differs in the
          // last bits: 2^-8 of one of about 100 terms of magnitude below 1, and few of them do.
          // With integer products such a value may also take the next code, which is 2^-7 of the
          // largest of its group, and random FP8 values have larger extremes.
          const float slack = dtype == WeightDtype::kBf16 ? 8e-3f : 4e-2f;
          EXPECT_TRUE(NearBf16(problem.Run(&device, &workspace), expected, slack))
              << Name(isa) << " " << hidden << " x " << intermediate << " "
              << WeightDtypeName(dtype);
        }
      }
    }
  }
}

TEST(ExpertFfnTest, APairDoesNotDependOnOthersOrThreads) {
  for (const WeightDtype dtype : kTestDtypes) {
    const Problem problem(9, 130, 96, {5, 1, 40, 6}, 21, dtype);
    ExpertFfnWorkspace workspace;
    for (const CpuIsa isa : TestIsas()) {
      const Device alone{.isa = isa};
      const std::vector<BFloat16> batch = problem.Run(&alone, &workspace);
      for (const int threads : {2, 3, 7}) {
        ThreadPool pool(threads);
        const Device device{.isa = isa, .pool = &pool};
        EXPECT_TRUE(SameBits(problem.Run(&device, &workspace), batch)) << Name(isa) << threads;
      }
      for (const ExpertGroup& group : problem.groups) {
        for (int64_t i = 0; i < group.num_pairs; ++i) {
          const int64_t pair = group.first_pair + i;
          const ExpertGroup one{.weights = group.weights, .num_pairs = 1};
          std::vector<BFloat16> output(130);
          ExpertFfnArgs args = problem.Args(output.data(), &workspace);
          args.pair_rows = args.pair_rows.subspan(pair, 1);
          args.groups = {&one, 1};
          ASSERT_OK(ExpertFfn(args, alone));
          EXPECT_TRUE(SameBits(output, std::vector<BFloat16>(batch.begin() + pair * 130,
                                                             batch.begin() + (pair + 1) * 130)))
              << Name(isa) << " pair " << pair;
        }
      }
    }
  }
}

TEST(ExpertFfnTest, RefusesBadArguments) {
  const Problem problem(3, 32, 16, {2, 1}, 1);
  ExpertFfnWorkspace workspace;
  std::vector<BFloat16> output(3 * 32);
  const ExpertFfnArgs good = problem.Args(output.data(), &workspace);
  EXPECT_OK(ExpertFfn(good, {}));
  auto expect = [&](auto change, const char* text) {
    ExpertFfnArgs bad = good;
    change(bad);
    EXPECT_THAT(ExpertFfn(bad, {}), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(text)));
    EXPECT_THAT(ExpertFfnReference(bad),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(text)));
  };
  expect([](ExpertFfnArgs& a) { a.num_rows = -1; }, "num_rows is -1");
  expect([](ExpertFfnArgs& a) { a.num_rows = 0; }, "pair_rows entry is");
  expect([](ExpertFfnArgs& a) { a.hidden_states = nullptr; }, "hidden_states is null");
  expect([](ExpertFfnArgs& a) { a.output = nullptr; }, "output is null");
  expect([](ExpertFfnArgs& a) { a.workspace = nullptr; }, "workspace is null");
  expect([](ExpertFfnArgs& a) { a.hidden_size = 0; }, "hidden_size is 0");
  expect([](ExpertFfnArgs& a) { a.hidden_size = 33; }, "gate_up_proj is [32, 32], want [32, 33]");
  expect([](ExpertFfnArgs& a) { a.moe_intermediate_size = 24; },
         "moe_intermediate_size is 24, want a multiple of 16");
  expect([](ExpertFfnArgs& a) { a.groups = a.groups.subspan(0, 1); },
         "pairs covered by groups is 2, want 3..3");
  expect([](ExpertFfnArgs& a) { a.groups = a.groups.subspan(1, 1); }, "first_pair is 2, want 0..0");
  std::vector<ExpertGroup> groups = problem.groups;
  groups[1].weights = nullptr;
  expect([&](ExpertFfnArgs& a) { a.groups = groups; }, "weights is null");
  const Problem int8(3, 32, 16, {2, 1}, 1, WeightDtype::kInt8);
  groups[1].weights = &int8.experts[1];
  expect([&](ExpertFfnArgs& a) { a.groups = groups; },
         "gate_up_proj.dtype is int8, want bf16 as in the first group");
}

}  // namespace
}  // namespace conclave
