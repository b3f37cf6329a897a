#include "cli/batch_merge.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <set>
#include <string_view>
#include <system_error>

#include "cli/batch_identity.h"
#include "cli/final_file.h"
#include "cli/line_reader.h"
#include "cli/result_line.h"
#include "cli/shard.h"
#include "gemma/error.h"
#include "model/quote.h"

namespace gemma::cli {
namespace {

constexpr std::size_t kLongestLine = std::size_t{1} << 30;
constexpr std::size_t kMemoryForReading = std::size_t{64} << 20;
constexpr std::size_t kSmallestBlock = std::size_t{16} << 10;

/// A shard's output while it is being read.
struct Source {
  std::filesystem::path path;
  ShardRecord record;
  Shard shard;
  std::unique_ptr<InputFile> file;
  std::unique_ptr<LineReader> lines;
};

[[noreturn]] void fail(const std::filesystem::path& path, const std::string& problem) {
  throw Error("cannot merge " + in_quotes(path.native()) + ": " + problem);
}

Source open_source(const std::filesystem::path& path, std::size_t block) {
  Source source{.path = path, .file = std::make_unique<InputFile>(path)};
  std::optional<ShardRecord> record = read_record(path);
  if (!record) fail(path, "there is no " + in_quotes(record_path(path).native()) + ", which a finished shard has");
  source.record = std::move(*record);
  const Json& identity = source.record.identity;
  const bool has_shard = identity.contains("shard") && identity["shard"].is_string() && identity.contains("prompts") &&
                         identity["prompts"].is_number_unsigned() &&
                         parse_shard(identity["shard"].get<std::string>(), source.shard).empty();
  if (!has_shard) fail(path, in_quotes(record_path(path).native()) + " is damaged");
  source.lines = std::make_unique<LineReader>(*source.file, kLongestLine, block);
  return source;
}

/// The sources by the number of their shard.
std::vector<Source> open_sources(const std::vector<std::filesystem::path>& paths) {
  const std::size_t block = std::clamp(kMemoryForReading / paths.size(), kSmallestBlock, LineReader::kLargestBlock);
  std::vector<std::optional<Source>> places(paths.size());
  std::optional<std::filesystem::path> first;
  Json identity;
  for (const std::filesystem::path& path : paths) {
    Source source = open_source(path, block);
    if (source.shard.count != paths.size()) {
      fail(path, "it is shard " + to_text(source.shard) + ", but there are " + std::to_string(paths.size()) + " files");
    }
    if (!first) {
      first = path;
      identity = source.record.identity;
    }
    const std::string difference = differences(identity, source.record.identity, {"shard", "device"});
    if (!difference.empty()) fail(path, "it is of another run than " + in_quotes(first->native()) + ": " + difference);
    std::optional<Source>& place = places[static_cast<std::size_t>(source.shard.number - 1)];
    if (place) fail(path, "it is shard " + to_text(source.shard) + ", and so is " + in_quotes(place->path.native()));
    place = std::move(source);
  }
  std::vector<Source> sources;
  for (std::optional<Source>& place : places) sources.push_back(std::move(*place));
  return sources;
}

void require_whole(Source& source) {
  Line line;
  const bool is_whole = !source.lines->next(line) && source.lines->bytes() == source.record.bytes &&
                        source.lines->hash() == source.record.hash;
  if (!is_whole) fail(source.path, "it has changed since it was finished; make it again with --overwrite");
}

}  // namespace

std::vector<std::filesystem::path> find_shards(const std::filesystem::path& output) {
  const std::string start = output.stem().native() + ".shard-";
  const std::string middle = "-of-";
  const std::filesystem::path folder = output.has_parent_path() ? output.parent_path() : ".";
  std::error_code error;
  std::set<std::uint64_t> counts;
  for (const auto& entry : std::filesystem::directory_iterator(folder, error)) {
    std::string name = entry.path().filename().native();
    if (name.ends_with(".partial")) name.resize(name.size() - std::string_view(".partial").size());
    const std::size_t at = name.find(middle, std::min(start.size(), name.size()));
    if (!name.starts_with(start) || at == std::string::npos || !name.ends_with(output.extension().native())) continue;
    const std::size_t end = name.size() - output.extension().native().size();
    Shard shard;
    const std::string number = name.substr(start.size(), at - start.size());
    const std::size_t count_at = at + middle.size();
    if (count_at >= end || !parse_shard(number + "/" + name.substr(count_at, end - count_at), shard).empty()) continue;
    counts.insert(shard.count);
  }
  if (error) throw Error("cannot read " + in_quotes(folder.native()) + ": " + error.message());
  if (counts.empty()) {
    throw Error("there are no shards of " + in_quotes(output.native()) + "; they are called such as " +
                in_quotes(shard_path(output, {.number = 1, .count = 2}).filename().native()));
  }
  if (counts.size() > 1) {
    throw Error(in_quotes(output.native()) + " has been split both into " + std::to_string(*counts.begin()) + " and " +
                std::to_string(*counts.rbegin()) + " shards; name the files to merge");
  }
  std::vector<std::filesystem::path> paths;
  Shard shard{.number = 1, .count = *counts.begin()};
  for (; shard.number <= shard.count; ++shard.number) {
    paths.push_back(shard_path(output, shard));
    if (!std::filesystem::exists(paths.back(), error)) {
      throw Error("shard " + to_text(shard) + " is not finished: there is no " + in_quotes(paths.back().native()) +
                  "; run it again as before with --shard " + to_text(shard));
    }
  }
  return paths;
}

Merged merge_shards(const std::filesystem::path& output, const std::vector<std::filesystem::path>& shards,
                    const std::function<bool(std::uint64_t, std::uint64_t)>& on_progress) {
  std::vector<Source> sources = open_sources(shards);
  const std::uint64_t prompts = sources.front().record.identity["prompts"];
  Merged merged{.shards = sources.size()};
  FinalFile file(output);
  Line line;
  for (std::uint64_t index = 0; index < prompts; ++index) {
    Source& source = sources[static_cast<std::size_t>(index % sources.size())];
    const bool has_line = source.lines->next(line) && line.is_complete && !line.is_too_long;
    if (!has_line || index_of(line.text) != index) {
      fail(source.path, "the result of prompt " + std::to_string(index) + " is missing");
    }
    if (is_error_line(line.text)) ++merged.failed;
    file.write(line.text);
    file.write("\n");
    if (!on_progress(index + 1, prompts)) return {};
  }
  for (Source& source : sources) {
    require_whole(source);
    merged.has_mixed_devices |= source.record.identity["device"] != sources.front().record.identity["device"];
  }
  file.finish();
  file.commit();
  merged.prompts = prompts;
  return merged;
}

}  // namespace gemma::cli
