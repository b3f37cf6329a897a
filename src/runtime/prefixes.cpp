#include "runtime/prefixes.h"

#include <algorithm>
#include <cassert>
#include <iterator>

namespace gemma {
namespace {

/// What a fork must save before it is worth a copy of a ring.
constexpr int kMinShared = 64;

int size_of(std::span<const TextToken> text) { return static_cast<int>(text.size()); }

/// A text that waits: what it has in common with the one that starts, and with the prefixes that there are.
struct Follower {
  int common = 0;
  int found = 0;
};

/// The length of a prefix that saves the followers most, all together; 0 if there is none worth it.
int best_length(const std::vector<Follower>& followers) {
  int best = 0;
  int most_saved = 0;
  for (const Follower& candidate : followers) {
    int saved = 0;
    for (const Follower& other : followers) {
      const int gain = candidate.common - other.found;
      if (other.common >= candidate.common && gain >= kMinShared) saved += gain;
    }
    if (saved > most_saved) {
      most_saved = saved;
      best = candidate.common;
    }
  }
  return best;
}

}  // namespace

int common_length(std::span<const TextToken> a, std::span<const TextToken> b) {
  const auto [end, other] = std::mismatch(a.begin(), a.end(), b.begin(), b.end());
  return static_cast<int>(end - a.begin());
}

Prefixes::Match Prefixes::find(Text text) const {
  Match best;
  for (const Prefix& prefix : prefixes_) {
    const int common = std::min(common_length(prefix.text, text), size_of(text) - 1);
    if (common < kMinShared) continue;
    const bool can_fork = prefix.sequence ? cache_.has_window_before(*prefix.sequence, common)
                                          : cache_.will_have_window_before(common, size_of(prefix.text));
    if (!can_fork) continue;
    const bool is_there_sooner = common == best.length && prefix.sequence && !best.sequence;
    if (common > best.length || is_there_sooner) best = {prefix.sequence, common};
  }
  return best;
}

KvCache::Id Prefixes::fork(const Match& match, int max_length) {
  assert(match.sequence);
  const auto used = std::find_if(prefixes_.begin(), prefixes_.end(),
                                 [&](const Prefix& prefix) { return prefix.sequence == match.sequence; });
  prefixes_.splice(prefixes_.end(), prefixes_, used);
  return cache_.fork(*match.sequence, match.length, max_length);
}

bool Prefixes::make_room(int pages, std::optional<KvCache::Id> but) {
  std::vector<KvCache::Id> given_up;
  auto next = prefixes_.begin();
  while (cache_.free_pages_without(given_up) < pages) {
    next = std::find_if(next, prefixes_.end(), [&](const Prefix& p) { return p.sequence && p.sequence != but; });
    if (next == prefixes_.end()) return false;
    given_up.push_back(*next->sequence);
    ++next;
  }
  for (const KvCache::Id sequence : given_up) drop(sequence);
  return true;
}

void Prefixes::plan(Reader reader, Text text, int known, const std::vector<Text>& waiting) {
  if (most_ == 0) return;
  std::vector<Follower> followers;
  for (const Text other : waiting) {
    const int common = std::min({common_length(text, other), size_of(text) - 1, size_of(other) - 1});
    if (common >= known + kMinShared) followers.push_back({common, find(other).length});
  }
  const int length = best_length(followers);
  if (length == 0) return;
  if (std::ssize(prefixes_) == most_ && !drop_one_without_use(waiting)) return;
  prefixes_.push_back({{text.begin(), text.begin() + length}, reader, {}});
}

bool Prefixes::drop_one_without_use(const std::vector<Text>& waiting) {
  std::vector<std::optional<KvCache::Id>> useful;
  for (const Text text : waiting) useful.push_back(find(text).sequence);
  const auto unused = std::find_if(prefixes_.begin(), prefixes_.end(), [&](const Prefix& prefix) {
    return prefix.sequence && std::find(useful.begin(), useful.end(), prefix.sequence) == useful.end();
  });
  if (unused == prefixes_.end()) return false;
  drop(*unused->sequence);
  return true;
}

std::list<Prefixes::Prefix>::iterator Prefixes::being_read_by(Reader reader) {
  return std::find_if(prefixes_.begin(), prefixes_.end(),
                      [&](const Prefix& prefix) { return prefix.reader == reader && !prefix.sequence; });
}

std::optional<int> Prefixes::planned_length(Reader reader) {
  const auto prefix = being_read_by(reader);
  if (prefix == prefixes_.end()) return std::nullopt;
  return size_of(prefix->text);
}

void Prefixes::after_reading(Reader reader, KvCache::Id sequence) {
  const int length = cache_.length(sequence);
  if (planned_length(reader) != length) return;
  if (cache_.can_fork(sequence, length)) {
    being_read_by(reader)->sequence = cache_.fork(sequence, length);
  } else {
    end_reading(reader);
  }
}

void Prefixes::end_reading(Reader reader) {
  const auto prefix = being_read_by(reader);
  if (prefix != prefixes_.end()) prefixes_.erase(prefix);
}

void Prefixes::drop(KvCache::Id sequence) {
  cache_.remove(sequence);
  prefixes_.remove_if([&](const Prefix& prefix) { return prefix.sequence == sequence; });
}

void Prefixes::drop_kept() {
  for (const Prefix& prefix : prefixes_) {
    if (prefix.sequence) cache_.remove(*prefix.sequence);
  }
  prefixes_.remove_if([](const Prefix& prefix) { return prefix.sequence.has_value(); });
}

void Prefixes::drop_all() {
  drop_kept();
  prefixes_.clear();
}

}  // namespace gemma
