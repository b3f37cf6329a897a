#include "cli/final_file.h"

#include <algorithm>
#include <span>
#include <system_error>
#include <vector>

#include "gemma/error.h"
#include "model/input_file.h"
#include "model/json_fields.h"
#include "model/quote.h"

namespace gemma::cli {
namespace {

constexpr std::size_t kBlock = std::size_t{1} << 20;
constexpr std::uint64_t kLargestRecord = std::uint64_t{16} << 20;

}  // namespace

void FinalFile::write(std::string_view text) {
  held_back_ += text;
  if (held_back_.size() >= kBlock) finish();
}

void FinalFile::finish() {
  const auto block = std::as_bytes(std::span(held_back_));
  file_.write(bytes_, block);
  hasher_.update(block);
  bytes_ += block.size();
  held_back_.clear();
}

std::string file_hash(const std::filesystem::path& path) {
  const InputFile file(path);
  std::vector<std::byte> block(static_cast<std::size_t>(std::min<std::uint64_t>(kBlock, file.size())));
  Hasher hasher;
  for (std::uint64_t offset = 0; offset < file.size(); offset += block.size()) {
    block.resize(static_cast<std::size_t>(std::min<std::uint64_t>(block.size(), file.size() - offset)));
    file.read(offset, block);
    hasher.update(block);
  }
  return hasher.digits();
}

std::filesystem::path record_path(const std::filesystem::path& output) {
  return std::filesystem::path(output.native() + ".run");
}

void write_record(const std::filesystem::path& output, const ShardRecord& record) {
  const std::string text =
      to_line({{"identity", record.identity}, {"bytes", record.bytes}, {"hash", record.hash}}) + "\n";
  AtomicFile file(record_path(output), "batch");
  file.write(0, std::as_bytes(std::span(text)));
  file.commit();
}

std::optional<ShardRecord> read_record(const std::filesystem::path& output) {
  const std::filesystem::path path = record_path(output);
  std::error_code ignored;
  if (!std::filesystem::exists(path, ignored)) return std::nullopt;
  const Json document = Json::parse(read_small_file(path, kLargestRecord), nullptr, /*allow_exceptions=*/false);
  const bool is_whole = document.is_object() && document.contains("identity") && document["identity"].is_object() &&
                        document.contains("bytes") && document["bytes"].is_number_unsigned() &&
                        document.contains("hash") && document["hash"].is_string();
  if (!is_whole) throw Error(in_quotes(path.native()) + " is damaged, or gemma-run has not made it");
  return ShardRecord{document["identity"], document["bytes"], document["hash"]};
}

}  // namespace gemma::cli
