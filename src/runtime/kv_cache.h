#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <vector>

#include "device/device.h"
#include "model/config.h"

namespace gemma {

/// How many slots a local layer's ring has: the window in whole blocks and one block of slack, so that a sequence can
/// go back a few tokens; never more than the longest sequence needs.
int ring_slots(int window, int context);

/// Bytes of the cache of one sequence of `context` positions.
struct KvBytes {
  std::uint64_t local = 0;           ///< rings of all local layers
  std::uint64_t global = 0;          ///< pages of all global layers
  std::uint64_t without_window = 0;  ///< what all layers would take if local ones kept every position, too

  std::uint64_t total() const { return local + global; }
};

KvBytes kv_bytes(const Config& config, int window, int context, KvType type);

/// What a device must set aside for `sequences` sequences of up to `context` positions.
KvLayout plan_kv_cache(int window, int context, int sequences, KvType type);

/// Bookkeeping of the cache: which ring and pages belong to which sequence, how far each has got, and how to go back.
/// The keys and values themselves lie on the device.
///
/// A local layer keeps the newest positions in a ring, a global layer keeps all in pages that are taken from the pool
/// as the sequence grows. A checkpoint makes it possible to return to a length whose window has since left the ring:
/// from then on, slots that it needs are copied aside before they are overwritten. A slot that several checkpoints need
/// is kept once: the cost is the tokens between them, not a ring each.
class KvCache {
 public:
  using Id = int;

  /// @param device  must outlive this.
  explicit KvCache(Device& device);

  /// A new, empty sequence that may grow to `max_length` positions; its pages are set aside for it.
  /// @throws Error if no ring is free or the pool cannot promise the pages.
  Id create(int max_length);
  bool can_create(int max_length) const;
  void remove(Id id);

  /// A sequence that has the same past, up to `length`: rings are copied, pages are shared until one of the two writes
  /// to them.
  /// @throws Error if the window before `length` has left the ring, no ring is free or the pool cannot promise the
  ///         pages.
  Id fork(Id id, int length, int max_length);
  Id fork(Id id, int max_length) { return fork(id, length(id), max_length); }
  bool can_fork(Id id, int length, int max_length) const;
  bool can_fork(Id id, int max_length) const { return can_fork(id, length(id), max_length); }

  /// Pages that must be free for a fork: its own, and a copy of the page that both may go on to write.
  int pages_for_fork(Id id, int length, int max_length) const;

  int length(Id id) const;                          ///< positions in the cache
  bool has_window_before(Id id, int length) const;  ///< in the ring: all that the next position sees

  /// Whether a sequence that has grown to `length` still has the window before an earlier length.
  bool will_have_window_before(int earlier, int length) const;

  /// Makes room for `count` more positions. The rows that fill them must go through the device before any other call.
  /// @return what the step's SequenceRows needs: ring, pages and the position of the first row. The pages' span lives
  /// until
  ///         the next call for this sequence.
  /// @throws Error if the sequence would outgrow its max_length.
  SequenceRows extend(Id id, int count);

  /// Remembers a length, the present one or one whose window is still in the ring, as one to which `truncate` can go
  /// back however far the rings move on. (It still says no if it would have to copy a page that a fork shares, and the
  /// pool has none left.)
  /// @throws Error if the sequence could not be truncated to it now.
  void checkpoint(Id id, int length);
  void checkpoint(Id id) { checkpoint(id, length(id)); }

  /// Whether `truncate` to this length is possible: its window is still in the ring, or a checkpoint kept it.
  bool can_truncate(Id id, int length) const;

  /// The greatest length up to `at_most` to which `truncate` is possible: itself, that of a checkpoint, or 0.
  int nearest_length(Id id, int at_most) const;

  /// Goes back to `length` positions; later checkpoints are forgotten.
  /// @throws Error if can_truncate says no.
  void truncate(Id id, int length);

  /// Forgets the oldest checkpoint of a sequence. @return whether there was one.
  bool drop_oldest_checkpoint(Id id);

  std::size_t checkpoint_bytes() const;                      ///< held aside for all checkpoints
  int free_pages() const { return free_pages_without({}); }  ///< pages neither in use nor promised
  int free_pages_without(std::span<const Id> ids) const;     ///< the same if these sequences were removed

  /// Pages that a sequence of so many positions takes.
  static int pages_for(int positions);

 private:
  // Slots [slot of first, slot of last) as they were: neighbours in the ring, all in one block.
  struct Kept {
    int last = 0;  // position behind the last one
    std::vector<std::byte> bytes;
  };
  struct Sequence {
    bool is_alive = false;
    int length = 0;
    int max_length = 0;
    int oldest_in_ring = 0;  // positions [oldest_in_ring, length) are in the ring
    std::vector<int> pages;
    std::vector<int> checkpoints;  // lengths, ascending
    std::map<int, Kept> kept;      // first position -> bytes that checkpoints need and the ring has lost, or soon will
  };

  const Sequence& alive(Id id) const;
  bool is_window_within(int length, int oldest_in_ring) const;
  Sequence& alive(Id id);
  bool has_unused_sequence() const;
  Id unused_sequence() const;

  // Pages that the sequence may still take from the pool once it has `length` positions: those it will grow into, and a
  // copy of its last page if that is partly filled and shared by `page_users`.
  static int pages_to_come(const Sequence& sequence, int length, std::span<const int> page_users);
  int pages_to_come(const Sequence& sequence, int length) const { return pages_to_come(sequence, length, page_users_); }
  int take_page();
  void release_pages(Sequence& sequence, int count);  // all but the first `count`

  // Whether a checkpoint's window has this position in it.
  bool is_needed(const Sequence& sequence, int position) const;
  static bool is_kept(const Sequence& sequence, int position);
  // Copies aside what checkpoints need of the positions before `end`, which are about to leave the ring.
  void keep_for_checkpoints(Id id, int end);
  // The positions from `end` on will be written anew: what is kept of them no longer holds.
  void forget_kept_from(Id id, int end);
  void drop_unneeded(Sequence& sequence);

  Device& device_;
  std::vector<Sequence> sequences_;  // a sequence's id is its ring
  std::vector<int> page_users_;      // how many sequences hold each page
  std::vector<int> free_;            // pages that nobody holds
};

}  // namespace gemma
