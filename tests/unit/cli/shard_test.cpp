#include "cli/shard.h"

#include <gmock/gmock.h>

#include <map>
#include <string>

#include "support/error_text.h"

namespace gemma::cli {
namespace {

using testing::HasSubstr;

std::optional<Rank> rank_in(const std::map<std::string, std::string>& variables) {
  return find_rank([&](const char* name) {
    const auto found = variables.find(name);
    return found == variables.end() ? nullptr : found->second.c_str();
  });
}

TEST(Shard, TakesEveryNthPromptAndAllTogetherTakeEachOnce) {
  for (std::uint64_t count = 1; count < 6; ++count) {
    for (std::uint64_t prompts = 0; prompts < 20; ++prompts) {
      std::uint64_t sum = 0;
      for (std::uint64_t number = 1; number <= count; ++number) {
        const Shard shard{.number = number, .count = count};
        std::uint64_t taken = 0;
        for (std::uint64_t index = 0; index < prompts; ++index) {
          if (!shard.has(index)) continue;
          EXPECT_EQ(shard.place(index), taken++);
          EXPECT_EQ(shard.index(shard.place(index)), index);
        }
        EXPECT_EQ(shard.size(prompts), taken);
        sum += taken;
      }
      EXPECT_EQ(sum, prompts);
    }
  }
}

TEST(Shard, IsWrittenAsNumberAndCountFromOneOn) {
  Shard shard;
  EXPECT_EQ(parse_shard("2/8", shard), "");
  EXPECT_EQ(shard, (Shard{.number = 2, .count = 8}));
  EXPECT_EQ(to_text(shard), "2/8");
  for (const char* text : {"0/8", "9/8", "-1/8", "1/0", "1", "/", "a/b", "1/8/9", "1/99999999999", "1 / 8", ""}) {
    EXPECT_NE(parse_shard(text, shard), "") << text;
  }
}

TEST(Shard, NamesItsOutputBeforeTheEnding) {
  EXPECT_EQ(shard_path("a.b/out.jsonl", {.number = 2, .count = 8}), "a.b/out.shard-2-of-8.jsonl");
  EXPECT_EQ(shard_path("out", {.number = 1, .count = 2}), "out.shard-1-of-2");
  EXPECT_EQ(shard_path("out.jsonl", {}), "out.jsonl");
}

TEST(Rank, ComesFromWhateverStartedTheProcess) {
  const auto slurm = rank_in({{"SLURM_PROCID", "1"}, {"SLURM_NTASKS", "4"}, {"SLURM_LOCALID", "0"}});
  ASSERT_TRUE(slurm);
  EXPECT_EQ(slurm->shard, (Shard{.number = 2, .count = 4}));
  EXPECT_EQ(slurm->on_machine, 0);
  EXPECT_EQ(slurm->launcher, "Slurm");
  const auto open_mpi =
      rank_in({{"OMPI_COMM_WORLD_RANK", "7"}, {"OMPI_COMM_WORLD_SIZE", "8"}, {"OMPI_COMM_WORLD_LOCAL_RANK", "3"}});
  ASSERT_TRUE(open_mpi);
  EXPECT_EQ(open_mpi->shard, (Shard{.number = 8, .count = 8}));
  EXPECT_EQ(open_mpi->on_machine, 3);
  const auto mpich = rank_in({{"PMI_RANK", "0"}, {"PMI_SIZE", "2"}});
  ASSERT_TRUE(mpich);
  EXPECT_EQ(mpich->shard, (Shard{.number = 1, .count = 2}));
  EXPECT_EQ(mpich->on_machine, std::nullopt);
}

TEST(Rank, IsNoneForASingleProcess) {
  EXPECT_FALSE(rank_in({}));
  EXPECT_FALSE(rank_in({{"SLURM_PROCID", "0"}, {"SLURM_NTASKS", "1"}}));
  EXPECT_FALSE(rank_in({{"SLURM_NTASKS", "4"}}));
}

TEST(Rank, IsNoneInTheScriptOfASlurmJobWhichRunsOnceHoweverManyTasksTheJobHas) {
  std::map<std::string, std::string> script = {{"SLURM_JOB_ID", "5"}, {"SLURM_PROCID", "0"}, {"SLURM_NTASKS", "4"}};
  EXPECT_FALSE(rank_in(script));
  script["SLURM_STEP_ID"] = "0";
  EXPECT_TRUE(rank_in(script));
}

TEST(Rank, RefusesVariablesThatMakeNoSense) {
  const auto error = [](const char* rank, const char* size) {
    return error_text([&] { rank_in({{"PMI_RANK", rank}, {"PMI_SIZE", size}}); });
  };
  EXPECT_THAT(error("4", "4"), HasSubstr("$PMI_RANK is 4"));
  EXPECT_THAT(error("x", "4"), HasSubstr("$PMI_RANK is 'x'"));
  EXPECT_THAT(error("1", "-4"), HasSubstr("$PMI_SIZE is '-4'"));
}

}  // namespace
}  // namespace gemma::cli
