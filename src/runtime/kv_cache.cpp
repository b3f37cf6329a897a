#include "runtime/kv_cache.h"

#include <algorithm>
#include <cassert>
#include <iterator>
#include <string>
#include <utility>

#include "device/attention_mask.h"
#include "gemma/error.h"

namespace gemma {
namespace {

bool is_partial(int positions) { return positions % kPagePositions != 0; }

int blocks_for(int positions) { return (positions + kPagePositions - 1) / kPagePositions; }

std::uint64_t bytes_a_position(const Config& config, KvType type) {
  return std::uint64_t{2} * static_cast<std::uint64_t>(config.kv_heads) * head_bytes(type, config.head_dim);
}

}  // namespace

int ring_slots(int window, int context) {
  return kPagePositions * std::min(blocks_for(window) + 1, blocks_for(context));
}

KvBytes kv_bytes(const Config& config, int window, int context, KvType type) {
  const std::uint64_t position = bytes_a_position(config, type);
  const std::uint64_t paged = position * kPagePositions * static_cast<std::uint64_t>(blocks_for(context));
  KvBytes bytes;
  bytes.local = position * static_cast<std::uint64_t>(ring_slots(window, context)) *
                static_cast<std::uint64_t>(config.local_layer_count());
  bytes.global = paged * static_cast<std::uint64_t>(config.global_layer_count());
  bytes.without_window = paged * static_cast<std::uint64_t>(config.layer_count());
  return bytes;
}

KvLayout plan_kv_cache(int window, int context, int sequences, KvType type) {
  KvLayout layout;
  layout.type = type;
  layout.window = window;
  layout.context = context;
  layout.rings = sequences;
  layout.ring_slots = ring_slots(window, context);
  layout.pages = sequences * blocks_for(context);
  return layout;
}

KvCache::KvCache(Device& device) : device_(device), sequences_(static_cast<std::size_t>(device.kv_layout().rings)) {
  const int pages = device.kv_layout().pages;
  page_users_.assign(static_cast<std::size_t>(pages), 0);
  free_.reserve(static_cast<std::size_t>(pages));
  for (int page = pages - 1; page >= 0; --page) free_.push_back(page);
}

int KvCache::pages_for(int positions) { return blocks_for(positions); }

bool KvCache::can_create(int max_length) const {
  return has_unused_sequence() && blocks_for(max_length) <= free_pages();
}

KvCache::Id KvCache::create(int max_length) {
  if (blocks_for(max_length) > free_pages()) {
    throw Error("no room for a sequence of " + std::to_string(max_length) + " positions: it needs " +
                std::to_string(blocks_for(max_length)) + " cache pages, " + std::to_string(free_pages()) + " are free");
  }
  const Id id = unused_sequence();
  sequences_[id].is_alive = true;
  sequences_[id].max_length = max_length;
  return id;
}

void KvCache::remove(Id id) {
  Sequence& sequence = alive(id);
  release_pages(sequence, 0);
  sequence = Sequence{};
}

int KvCache::pages_for_fork(Id id, int length, int max_length) const {
  // Once a partly filled page is shared, each of the two must copy it before it writes to it. One that cannot grow
  // never does.
  const Sequence& parent = alive(id);
  const int child_pages = max_length > length ? blocks_for(max_length) - length / kPagePositions : 0;
  const bool shares_last = blocks_for(length) == blocks_for(parent.length);
  const bool is_parents_copy_due = shares_last && is_partial(parent.length) && parent.length < parent.max_length &&
                                   page_users_[parent.pages.back()] == 1;
  return child_pages + (is_parents_copy_due ? 1 : 0);
}

bool KvCache::can_fork(Id id, int length, int max_length) const {
  return has_unused_sequence() && max_length >= length && has_window_before(id, length) &&
         pages_for_fork(id, length, max_length) <= free_pages();
}

KvCache::Id KvCache::fork(Id id, int length, int max_length) {
  const Sequence& parent = alive(id);
  if (max_length < length) throw Error("a fork cannot be shorter than what it forks from");
  if (!has_window_before(id, length)) {
    throw Error("the cache cannot fork what was " + std::to_string(length) +
                " positions long: what the sliding window needs has been overwritten");
  }
  const int pages = pages_for_fork(id, length, max_length);
  if (pages > free_pages()) {
    throw Error("no room for a fork of " + std::to_string(max_length) + " positions: it needs " +
                std::to_string(pages) + " more cache pages, " + std::to_string(free_pages()) + " are free");
  }
  const Id child = unused_sequence();
  device_.copy_ring(id, child);
  Sequence& copy = sequences_[child];
  copy.is_alive = true;
  copy.max_length = max_length;
  copy.length = length;
  copy.oldest_in_ring = std::min(parent.oldest_in_ring, length);
  copy.pages.assign(parent.pages.begin(), parent.pages.begin() + blocks_for(length));
  for (int page : copy.pages) ++page_users_[page];
  return child;
}

int KvCache::length(Id id) const { return alive(id).length; }

bool KvCache::has_window_before(Id id, int length) const {
  const Sequence& sequence = alive(id);
  return length >= 0 && length <= sequence.length && is_window_within(length, sequence.oldest_in_ring);
}

bool KvCache::will_have_window_before(int earlier, int length) const {
  return is_window_within(earlier, length - device_.kv_layout().ring_slots);
}

bool KvCache::is_window_within(int length, int oldest_in_ring) const {
  const bool is_needed = length > 0 && device_.slot_bytes() > 0;
  return !is_needed || first_visible(length, device_.kv_layout().window) >= std::min(length, oldest_in_ring);
}

SequenceRows KvCache::extend(Id id, int count) {
  Sequence& sequence = alive(id);
  if (count < 1 || count > sequence.max_length - sequence.length) {
    throw Error("a sequence of " + std::to_string(sequence.length) + " positions cannot grow by " +
                std::to_string(count) + ": it was created for at most " + std::to_string(sequence.max_length));
  }
  SequenceRows rows;
  rows.rows = count;
  rows.position = sequence.length;
  rows.ring = id;

  const int oldest_after = sequence.length + count - device_.kv_layout().ring_slots;
  keep_for_checkpoints(id, oldest_after);
  sequence.oldest_in_ring = std::max(sequence.oldest_in_ring, oldest_after);

  if (is_partial(sequence.length) && page_users_[sequence.pages.back()] > 1) {
    const int shared = sequence.pages.back();
    sequence.pages.back() = take_page();
    device_.copy_page(shared, sequence.pages.back());
    --page_users_[shared];
  }
  sequence.length += count;
  while (static_cast<int>(sequence.pages.size()) < blocks_for(sequence.length)) sequence.pages.push_back(take_page());
  rows.pages = sequence.pages;
  return rows;
}

void KvCache::checkpoint(Id id, int length) {
  if (!can_truncate(id, length)) {
    throw Error("the cache cannot go back to " + std::to_string(length) + " positions, now or later");
  }
  std::vector<int>& checkpoints = alive(id).checkpoints;
  const auto place = std::lower_bound(checkpoints.begin(), checkpoints.end(), length);
  if (place == checkpoints.end() || *place != length) checkpoints.insert(place, length);
}

bool KvCache::can_truncate(Id id, int length) const {
  const Sequence& sequence = alive(id);
  if (length < 0 || length > sequence.length) return false;

  // Growing again after going back takes fresh pages where those of now are shared with another sequence.
  int released = 0;
  for (std::size_t i = blocks_for(length); i < sequence.pages.size(); ++i)
    released += page_users_[sequence.pages[i]] == 1;
  if (pages_to_come(sequence, length) - pages_to_come(sequence, sequence.length) > free_pages() + released)
    return false;

  if (length == 0 || device_.slot_bytes() == 0) return true;
  const int missing_end = std::min(length, sequence.oldest_in_ring);
  for (int position = first_visible(length, device_.kv_layout().window); position < missing_end; ++position) {
    if (!is_kept(sequence, position)) return false;
  }
  return true;
}

int KvCache::nearest_length(Id id, int at_most) const {
  const Sequence& sequence = alive(id);
  const int limit = std::min(at_most, sequence.length);
  if (can_truncate(id, limit)) return limit;
  for (auto length = sequence.checkpoints.rbegin(); length != sequence.checkpoints.rend(); ++length) {
    if (*length < limit && can_truncate(id, *length)) return *length;
  }
  return 0;
}

void KvCache::truncate(Id id, int length) {
  if (!can_truncate(id, length)) {
    throw Error("the cache cannot go back from " + std::to_string(alive(id).length) + " to " + std::to_string(length) +
                " positions: what the sliding window needs has been overwritten");
  }
  Sequence& sequence = alive(id);
  const KvLayout& layout = device_.kv_layout();
  const int first = first_visible(length, layout.window);
  for (const auto& [position, kept] : sequence.kept) {
    if (kept.last <= first || position >= std::min(length, sequence.oldest_in_ring)) continue;
    device_.write_slots(id, position % layout.ring_slots, kept.last - position, kept.bytes);
  }
  sequence.oldest_in_ring = std::min(sequence.oldest_in_ring, first);
  sequence.length = length;
  forget_kept_from(id, length);
  release_pages(sequence, blocks_for(length));
  while (!sequence.checkpoints.empty() && sequence.checkpoints.back() > length) sequence.checkpoints.pop_back();
  drop_unneeded(sequence);
}

bool KvCache::drop_oldest_checkpoint(Id id) {
  Sequence& sequence = alive(id);
  if (sequence.checkpoints.empty()) return false;
  sequence.checkpoints.erase(sequence.checkpoints.begin());
  drop_unneeded(sequence);
  return true;
}

std::size_t KvCache::checkpoint_bytes() const {
  std::size_t bytes = 0;
  for (const Sequence& sequence : sequences_) {
    for (const auto& [position, kept] : sequence.kept) bytes += kept.bytes.size();
  }
  return bytes;
}

int KvCache::free_pages_without(std::span<const Id> ids) const {
  int pages = static_cast<int>(free_.size());
  std::vector<int> page_users = page_users_;
  for (const Id id : ids) {
    for (const int page : alive(id).pages) pages += --page_users[page] == 0 ? 1 : 0;
  }
  for (Id id = 0; id < static_cast<Id>(sequences_.size()); ++id) {
    if (!sequences_[id].is_alive || std::find(ids.begin(), ids.end(), id) != ids.end()) continue;
    pages -= pages_to_come(sequences_[id], sequences_[id].length, page_users);
  }
  return pages;
}

int KvCache::pages_to_come(const Sequence& sequence, int length, std::span<const int> page_users) {
  const int held = blocks_for(length);
  const bool may_write = length < sequence.max_length;
  const bool is_copy_due = may_write && is_partial(length) && page_users[sequence.pages[held - 1]] > 1;
  return blocks_for(sequence.max_length) - held + (is_copy_due ? 1 : 0);
}

bool KvCache::is_needed(const Sequence& sequence, int position) const {
  const int window = device_.kv_layout().window;
  return std::any_of(sequence.checkpoints.begin(), sequence.checkpoints.end(), [&](int checkpoint) {
    return position < checkpoint && position >= first_visible(checkpoint, window);
  });
}

void KvCache::keep_for_checkpoints(Id id, int end) {
  Sequence& sequence = alive(id);
  const std::size_t slot_bytes = device_.slot_bytes();
  if (sequence.checkpoints.empty() || slot_bytes == 0) return;
  for (int position = sequence.oldest_in_ring; position < std::min(end, sequence.length); ++position) {
    if (!is_needed(sequence, position) || is_kept(sequence, position)) continue;
    // All that is needed of the block at once: a copy waits for the device, so there had better be few of them.
    const int block_end = (position / kPagePositions + 1) * kPagePositions;
    int last = position + 1;
    while (last < std::min(block_end, sequence.length) && is_needed(sequence, last) && !is_kept(sequence, last)) ++last;
    Kept& kept = sequence.kept[position];
    kept.last = last;
    kept.bytes.resize(static_cast<std::size_t>(last - position) * slot_bytes);
    device_.read_slots(id, position % device_.kv_layout().ring_slots, last - position, kept.bytes);
    position = last - 1;
  }
}

bool KvCache::is_kept(const Sequence& sequence, int position) {
  const auto next = sequence.kept.upper_bound(position);
  return next != sequence.kept.begin() && position < std::prev(next)->second.last;
}

void KvCache::forget_kept_from(Id id, int end) {
  std::map<int, Kept>& all = alive(id).kept;
  const auto behind = all.lower_bound(end);
  if (behind != all.begin()) {
    auto& [position, kept] = *std::prev(behind);
    if (kept.last > end) {
      // The bytes are in the device's order, so they are read once more: what has been put back is in the ring.
      kept.last = end;
      kept.bytes.resize(static_cast<std::size_t>(end - position) * device_.slot_bytes());
      device_.read_slots(id, position % device_.kv_layout().ring_slots, end - position, kept.bytes);
    }
  }
  all.erase(behind, all.end());
}

void KvCache::drop_unneeded(Sequence& sequence) {
  std::erase_if(sequence.kept, [&](const auto& run) {
    for (int position = run.first; position < run.second.last; ++position) {
      if (is_needed(sequence, position)) return false;
    }
    return true;
  });
}

int KvCache::take_page() {
  const int page = free_.back();  // admission has promised it
  free_.pop_back();
  page_users_[page] = 1;
  return page;
}

void KvCache::release_pages(Sequence& sequence, int count) {
  for (std::size_t i = count; i < sequence.pages.size(); ++i) {
    if (--page_users_[sequence.pages[i]] == 0) free_.push_back(sequence.pages[i]);
  }
  sequence.pages.resize(count);
}

bool KvCache::has_unused_sequence() const {
  return std::any_of(sequences_.begin(), sequences_.end(), [](const Sequence& s) { return !s.is_alive; });
}

KvCache::Id KvCache::unused_sequence() const {
  const auto unused = std::find_if(sequences_.begin(), sequences_.end(), [](const Sequence& s) { return !s.is_alive; });
  if (unused == sequences_.end()) {
    throw Error("no room for another sequence: all " + std::to_string(sequences_.size()) + " are in use");
  }
  return static_cast<Id>(unused - sequences_.begin());
}

KvCache::Sequence& KvCache::alive(Id id) { return const_cast<Sequence&>(std::as_const(*this).alive(id)); }

const KvCache::Sequence& KvCache::alive(Id id) const {
  assert(id >= 0 && id < static_cast<Id>(sequences_.size()) && sequences_[id].is_alive);
  return sequences_[id];
}

}  // namespace gemma
