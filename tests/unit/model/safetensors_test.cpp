#include "model/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "support/error_text.h"

namespace gemma {
namespace {

using testing::HasSubstr;

// A file of this header and so many bytes of data.
std::string file_of(const std::string& header, std::size_t data_bytes, std::uint64_t claimed_length) {
  std::string file(8, '\0');
  for (std::size_t i = 0; i < 8; ++i) file[i] = static_cast<char>(claimed_length >> (8 * i) & 0xff);
  return file + header + std::string(data_bytes, 'd');
}
std::string file_of(const std::string& header, std::size_t data_bytes) {
  return file_of(header, data_bytes, header.size());
}

SafetensorsHeader parse(const std::string& file) {
  return SafetensorsHeader::parse(std::as_bytes(std::span(file)), file.size(), "test");
}

TEST(Safetensors, ReadsTensorsInTheOrderOfTheirOffsets) {
  const SafetensorsHeader header =
      parse(file_of(R"({"b":{"dtype":"F32","shape":[2,3],"data_offsets":[4,28]},"__metadata__":{"format":"pt"},)"
                    R"("a":{"shape":[2],"data_offsets":[0,4],"dtype":"BF16"},)"
                    R"("scalar":{"dtype":"U8","shape":[],"data_offsets":[28,29]},)"
                    R"("nothing":{"dtype":"F16","shape":[0,7],"data_offsets":[28,28]}})",
                    29));
  ASSERT_EQ(header.tensors.size(), 4u);
  EXPECT_EQ(header.tensors[0].name, "a");
  EXPECT_EQ(header.tensors[1].name, "b");
  EXPECT_EQ(header.tensors[1].shape, (std::vector<std::int64_t>{2, 3}));
  EXPECT_EQ(header.tensors[1].offset, header.data_offset + 4);
  EXPECT_EQ(header.tensors[2].name, "nothing");
  EXPECT_EQ(header.tensors[3].name, "scalar");
  EXPECT_EQ(header.metadata.at("format"), "pt");
  EXPECT_EQ(header.find("b"), &header.tensors[1]);
  EXPECT_EQ(header.find("c"), nullptr);
}

TEST(Safetensors, ReadsBackWhatItSerialises) {
  const std::vector<TensorInfo> tensors = {
      {.name = "x", .type = DType::kI8, .shape = {5}, .bytes = 5},
      {.name = "a \"quoted\" name", .type = DType::kF64, .shape = {1}, .bytes = 8}};
  const std::string text = serialize_header(tensors, {{"key", "value"}}, 64);
  EXPECT_EQ(text.size() % 64, 0u);
  const SafetensorsHeader header = parse(text + std::string(13, 'd'));
  ASSERT_EQ(header.tensors.size(), 2u);
  EXPECT_EQ(header.tensors[0].name, "x");
  EXPECT_EQ(header.tensors[1].name, tensors[1].name);
  EXPECT_EQ(header.tensors[1].type, DType::kF64);
  EXPECT_EQ(header.tensors[1].offset, text.size() + 5);
  EXPECT_EQ(header.metadata.at("key"), "value");
}

TEST(Safetensors, RefusesEveryHeaderThatTheFormatForbids) {
  struct Case {
    const char* header;
    const char* problem;
  };
  const Case cases[] = {
      {"", "does not begin with '{'"},
      {"[]", "does not begin with '{'"},
      {" {}", "does not begin with '{'"},
      {"{", "not valid JSON"},
      {"{} x", "not valid JSON"},
      {"{\"\xff\":1}", "not valid JSON"},
      {R"({"a":1})", "number where none may be"},
      {R"({"a":"text"})", "text where none may be"},
      {R"({"a":[1]})", "list where none may be"},
      {R"({"a":null})", "null"},
      {R"({"a":{}})", "a dtype, a shape and data_offsets"},
      {R"({"a":{"dtype":"U8","shape":[4]}})", "a dtype, a shape and data_offsets"},
      {R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4],"more":1}})", "unknown member 'more'"},
      {R"({"a":{"dtype":"U8","dtype":"U8","shape":[4],"data_offsets":[0,4]}})", "two members 'dtype'"},
      {R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"a":{}})", "the name 'a' twice"},
      {R"({"__metadata__":{"k":"1","k":"2"}})", "the metadata 'k' twice"},
      {R"({"__metadata__":{"k":1}})", "number where none may be"},
      {R"({"__metadata__":{"k":{"l":"m"}}})", "nested too deeply"},
      {R"({"__metadata__":{},"__metadata__":{}})", "the name '__metadata__' twice"},
      {R"({"a":{"dtype":"F8_E4M3","shape":[4],"data_offsets":[0,4]}})", "type 'F8_E4M3', which is not supported"},
      {R"({"a":{"dtype":4,"shape":[4],"data_offsets":[0,4]}})", "number where none may be"},
      {R"({"a":{"dtype":"U8","shape":[-4],"data_offsets":[0,4]}})", "negative"},
      {R"({"a":{"dtype":"U8","shape":[4.0],"data_offsets":[0,4]}})", "not whole"},
      {R"({"a":{"dtype":"U8","shape":[18446744073709551615],"data_offsets":[0,4]}})", "too large"},
      {R"({"a":{"dtype":"U8","shape":[4294967296,4294967297],"data_offsets":[0,4]}})", "shape that is too large"},
      {R"({"a":{"dtype":"F32","shape":[4611686018427387905],"data_offsets":[0,4]}})", "shape that is too large"},
      {R"({"a":{"dtype":"U8","shape":[[4]],"data_offsets":[0,4]}})", "list where none may be"},
      {R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0]}})", "two data_offsets"},
      {R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4,4]}})", "number where none may be"},
      {R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[4,0]}})", "do not agree"},
      {R"({"a":{"dtype":"F32","shape":[4],"data_offsets":[0,4]}})", "do not agree"},
      {R"({"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]}})", "ends beyond the end"},
      {R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[18446744073709551615,0]}})", "do not agree"},
      {R"({"a":{"dtype":"U8","shape":[3],"data_offsets":[1,4]}})", "a hole before tensor 'a'"},
      {R"({"a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]}})", "1 bytes follow the last tensor"},
      {"{}", "4 bytes follow the last tensor"},
      {R"({"a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]},"b":{"dtype":"U8","shape":[2],"data_offsets":[2,4]}})",
       "'b' overlaps"},
      {R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})",
       "overlaps"},
  };
  for (const Case& bad : cases) {
    const std::string message = error_text([&] { parse(file_of(bad.header, 4)); });
    EXPECT_THAT(message, HasSubstr(bad.problem)) << bad.header;
    EXPECT_THAT(message, HasSubstr("cannot load 'test'")) << bad.header;
  }
}

TEST(Safetensors, RefusesAHeaderLongerThanItsFileWithoutAllocatingIt) {
  for (const std::uint64_t claimed :
       {std::uint64_t{1} << 60, ~std::uint64_t{0}, std::uint64_t{100'000'001}, std::uint64_t{7}}) {
    EXPECT_THAT(error_text([&] { parse(file_of("{}", 4, claimed)); }),
                HasSubstr("claims a header of " + std::to_string(claimed) + " bytes"));
  }
  for (std::size_t size = 0; size < 8; ++size) {
    EXPECT_THAT(error_text([&] { parse(std::string(size, '\0')); }), HasSubstr("too short")) << size;
  }
}

TEST(Safetensors, RefusesDeepNestingWithoutRecursion) {
  const std::string lists(5'000'000, '[');
  EXPECT_THAT(error_text([&] { parse(file_of("{\"a\":" + lists, 0)); }), HasSubstr("list where none may be"));
  std::string objects;
  for (int i = 0; i < 1'000'000; ++i) objects += "{\"dtype\":";
  EXPECT_THAT(error_text([&] { parse(file_of(objects, 0)); }), HasSubstr("nested too deeply"));
}

}  // namespace
}  // namespace gemma
