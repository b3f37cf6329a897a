#include "runtime/room.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace gemma {
namespace {

constexpr Room kMost{.sequences = 8, .prefixes = 3, .chunk = 4096};
constexpr Room kLeast{.sequences = 1, .prefixes = 0, .chunk = 512};

std::string to_text(const Room& room) {
  return std::to_string(room.sequences) + "+" + std::to_string(room.prefixes) + " " + std::to_string(room.chunk);
}

/// A device with so many units of memory, of which a sequence and a prefix take 10 each, and 512 rows of a chunk 1.
Room fitted(int memory, const Room& most = kMost, const Room& least = kLeast) {
  return make_with_room(most, least, [&](const Room& room) {
    if (10 * (room.sequences + room.prefixes) + room.chunk / 512 > memory) throw OutOfMemory("too little");
    return room;
  });
}

TEST(Room, IsAllOfItWhereThereIsMemory) { EXPECT_EQ(to_text(fitted(118)), "8+3 4096"); }

TEST(Room, LosesRowsOfTheChunkBeforePlacesForRequests) {
  EXPECT_EQ(to_text(fitted(117)), "8+3 2048");
  EXPECT_EQ(to_text(fitted(111)), "8+3 512");
}

TEST(Room, LosesPrefixesButOneBeforeSequences) {
  EXPECT_EQ(to_text(fitted(110)), "8+1 4096");
  EXPECT_EQ(to_text(fitted(90)), "4+3 4096");
  EXPECT_EQ(to_text(fitted(21)), "1+1 512");
  EXPECT_EQ(to_text(fitted(20)), "1+0 4096");
}

TEST(Room, HasAtLeastWhatWasAskedFor) {
  EXPECT_EQ(to_text(fitted(58, {6, 0, 4096}, {5, 0, 4096})), "5+0 4096") << "half would be too few";
  EXPECT_THROW(fitted(57, {6, 0, 4096}, {5, 0, 4096}), OutOfMemory);
  EXPECT_THROW(fitted(10), OutOfMemory);
  EXPECT_EQ(to_text(fitted(11)), "1+0 512");
}

TEST(Room, IsNotLookedForAfterOtherErrors) {
  int tries = 0;
  EXPECT_THROW(make_with_room(kMost, kLeast,
                              [&](const Room&) -> int {
                                ++tries;
                                throw Error("a lost GPU");
                              }),
               Error);
  EXPECT_EQ(tries, 1);
}

}  // namespace
}  // namespace gemma
