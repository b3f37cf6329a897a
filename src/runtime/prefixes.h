#pragma once

#include <cstdint>
#include <list>
#include <optional>
#include <span>
#include <vector>

#include "runtime/kv_cache.h"
#include "runtime/text_token.h"

namespace gemma {

/// Tokens that two texts have in common at their beginning.
int common_length(std::span<const TextToken> a, std::span<const TextToken> b);

/// What prompts have in common at their beginning, kept in the cache when it has been read once.
///
/// A prefix is planned when a job starts that others behind it can follow, and kept when that job, its reader, has come
/// to its end. Later jobs are forked from it. Several are kept, so that prompts with different instructions may come in
/// any order; those not used for the longest time go first, when the cache has no room for a job.
class Prefixes {
 public:
  using Text = std::span<const TextToken>;
  using Reader = std::uint64_t;

  /// @param cache  must outlive this, and has a sequence for each of the `most` prefixes kept at once.
  Prefixes(KvCache& cache, int most) : cache_(cache), most_(most) {}

  /// A prefix, and how much of it a text can make use of.
  struct Match {
    std::optional<KvCache::Id> sequence;  ///< to fork from; nullopt as long as it is being read
    int length = 0;                       ///< 0: there is none that is worth a fork
  };
  /// The prefix that saves a text the most. The last token of a text is read in any case.
  Match find(Text text) const;

  /// A sequence that begins with what find() has found in the cache, for which there must be room.
  KvCache::Id fork(const Match& match, int max_length);

  /// Makes room by giving up as few prefixes as will do, those that were used longest ago first; none if that does not
  /// make enough.
  /// @param but  is not given up
  /// @return whether so many pages are free
  bool make_room(int pages, std::optional<KvCache::Id> but = {});

  /// A job starts with `known` tokens of its text in the cache: what is worth keeping for those that wait behind it is
  /// planned, unless that would cost a prefix of which they can make use.
  void plan(Reader reader, Text text, int known, const std::vector<Text>& waiting);

  /// Length at which the reader's sequence must stop once, to be kept; nullopt if it reads no prefix.
  std::optional<int> planned_length(Reader reader);

  /// The reader's sequence has grown: if the prefix has been read, it is kept.
  void after_reading(Reader reader, KvCache::Id sequence);

  /// A job has ended: what it has not read to its end is not kept.
  void end_reading(Reader reader);

  void drop_kept();  ///< all but those that are being read
  void drop_all();

 private:
  struct Prefix {
    std::vector<TextToken> text;
    Reader reader = 0;
    std::optional<KvCache::Id> sequence;  // when it has been read
  };

  std::list<Prefix>::iterator being_read_by(Reader reader);
  bool drop_one_without_use(const std::vector<Text>& waiting);
  void drop(KvCache::Id sequence);

  KvCache& cache_;
  int most_;
  std::list<Prefix> prefixes_;  // that used last comes last
};

}  // namespace gemma
