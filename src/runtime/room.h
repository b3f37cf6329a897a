#pragma once

#include <algorithm>

#include "gemma/error.h"

namespace gemma {

/// What a device has memory for.
struct Room {
  int sequences = 1;  ///< requests at once
  int prefixes = 0;   ///< beginnings that prompts share
  int chunk = 1;      ///< rows of a prompt read at once
};

/// Calls make(room) with as much room as fits into memory. The chunk gives way first, then prefixes down to one, then
/// sequences, and the last prefix at the end; each by halves, and with every loss the others are tried in full again.
/// @param least  of sequences and of the chunk; of prefixes it is 0
/// @return what make() returns
/// @throws OutOfMemory if it does so with the least, too
template <class Make>
auto make_with_room(const Room& most, const Room& least, const Make& make) {
  Room room = most;
  for (;;) {
    try {
      return make(room);
    } catch (const OutOfMemory&) {
      if (room.chunk > least.chunk) {
        room.chunk = std::max(room.chunk / 2, least.chunk);
        continue;
      }
      room.chunk = most.chunk;
      if (room.prefixes > 1 || (room.prefixes == 1 && room.sequences == least.sequences)) {
        room.prefixes /= 2;
      } else if (room.sequences > least.sequences) {
        room.sequences = std::max(room.sequences / 2, least.sequences);
        room.prefixes = most.prefixes;
      } else {
        throw;
      }
    }
  }
}

}  // namespace gemma
