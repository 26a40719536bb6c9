#include "checkpoint/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <utility>

#include "base/random.h"
#include "checkpoint/safetensors_header.h"
#include "checkpoint/test_files.h"

namespace lserve {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr const char* kModel = LSERVE_SOURCE_DIR "/models/needle-7m";
constexpr const char* kGoldens = LSERVE_SOURCE_DIR "/tests/goldens";

// The error of opening one file of that header and data; fails the test if it opens.
std::string OpenError(std::string_view header, std::string_view data) {
  const TemporaryFolder folder;
  const auto opened =
      Checkpoint::OpenFile(folder.Write("x.safetensors", SafetensorsFile(header, data)));
  EXPECT_FALSE(opened.ok()) << header;
  return opened.ok() ? "" : opened.status().message();
}

TEST(CheckpointTest, ReadsTheBundledModel) {
  const auto checkpoint = Checkpoint::Open(kModel);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status().message();
  EXPECT_EQ(checkpoint->Names().size(), 56u);
  EXPECT_EQ(checkpoint->total_bytes(), 2 * 6950144);
  const std::array<int64_t, 2> shape = {4096, 256};
  const auto embedding = checkpoint->Get("model.embed_tokens.weight", shape);
  ASSERT_TRUE(embedding.ok()) << embedding.status().message();
  EXPECT_EQ((*embedding)->dtype, DType::kBFloat16);
  EXPECT_EQ((*embedding)->bytes.size(), 2u * 4096 * 256);
  const auto values = checkpoint->ReadFloats("model.embed_tokens.weight");
  ASSERT_TRUE(values.ok());
  // Trained from a deviation of 256^-0.5: neither zeros nor noise of another format.
  double square_sum = 0;
  for (const float value : *values) {
    square_sum += static_cast<double>(value) * static_cast<double>(value);
  }
  EXPECT_GT(square_sum / static_cast<double>(values->size()), 1e-4);
  EXPECT_LT(square_sum / static_cast<double>(values->size()), 1.0);
}

TEST(CheckpointTest, ReadsTheGoldens) {
  for (const char* name :
       {"tiny-llama2", "tiny-llama31", "tiny-mistral", "tiny-qwen2", "tiny-qwen3"}) {
    const std::string folder = JoinPath(kGoldens, name);
    EXPECT_TRUE(Checkpoint::Open(folder).ok()) << name;
    const auto golden = Checkpoint::OpenFile(JoinPath(folder, "golden.safetensors"));
    ASSERT_TRUE(golden.ok()) << name;
    const auto ids = golden->ReadIntegers("ids");
    ASSERT_TRUE(ids.ok()) << ids.status().message();
    EXPECT_EQ(ids->size(), 384u);
    EXPECT_THAT(*ids, testing::Each(testing::AllOf(testing::Ge(0), testing::Lt(512))));
    EXPECT_EQ(golden->Find("logits")->shape, (std::vector<int64_t>{24, 512}));
  }
}

TEST(CheckpointTest, ConvertsEveryElementType) {
  // Two elements of each: 1 and the largest or a telling value.
  const std::string header = R"({"b":{"dtype":"BOOL","shape":[2],"data_offsets":[0,2]},)"
                             R"("i8":{"dtype":"I8","shape":[2],"data_offsets":[2,4]},)"
                             R"("u16":{"dtype":"U16","shape":[2],"data_offsets":[4,8]},)"
                             R"("i16":{"dtype":"I16","shape":[2],"data_offsets":[8,12]},)"
                             R"("u32":{"dtype":"U32","shape":[2],"data_offsets":[12,20]},)"
                             R"("i32":{"dtype":"I32","shape":[2],"data_offsets":[20,28]},)"
                             R"("i64":{"dtype":"I64","shape":[2],"data_offsets":[28,44]},)"
                             R"("u64":{"dtype":"U64","shape":[2],"data_offsets":[44,60]},)"
                             R"("f16":{"dtype":"F16","shape":[2],"data_offsets":[60,64]},)"
                             R"("bf16":{"dtype":"BF16","shape":[2],"data_offsets":[64,68]},)"
                             R"("f32":{"dtype":"F32","shape":[2],"data_offsets":[68,76]},)"
                             R"("f64":{"dtype":"F64","shape":[2],"data_offsets":[76,92]},)"
                             R"("__metadata__":{"format":"pt"}}  )";
  const auto ones = [](size_t bytes) { return std::string(bytes, '\xff'); };
  const auto one = [](size_t bytes) {
    std::string little_endian(bytes, '\0');
    little_endian[0] = '\x01';
    return little_endian;
  };
  using std::string_literals::operator""s;
  const std::string data = one(1) + "\0"s + one(1) + ones(1) + one(2) + ones(2) + one(2) + ones(2) +
                           one(4) + ones(4) + one(4) + ones(4) + one(8) + ones(8) + one(8) +
                           ones(8) + "\x00\x3c\x01\x00"s + "\x80\x3f\x20\xc1"s +
                           "\x00\x00\x80\x3f\x00\x00\x20\xc1"s +
                           "\x00\x00\x00\x00\x00\x00\xf0\x3f\x00\x00\x00\x00\x00\x00\x24\xc0"s;
  const TemporaryFolder folder;
  const auto checkpoint = Checkpoint::OpenFile(folder.Write("x", SafetensorsFile(header, data)));
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status().message();
  EXPECT_THAT(*checkpoint->ReadIntegers("b"), ElementsAre(1, 0));
  EXPECT_THAT(*checkpoint->ReadIntegers("i8"), ElementsAre(1, -1));
  EXPECT_THAT(*checkpoint->ReadIntegers("u16"), ElementsAre(1, 65535));
  EXPECT_THAT(*checkpoint->ReadIntegers("i16"), ElementsAre(1, -1));
  EXPECT_THAT(*checkpoint->ReadIntegers("u32"), ElementsAre(1, 4294967295));
  EXPECT_THAT(*checkpoint->ReadIntegers("i32"), ElementsAre(1, -1));
  EXPECT_THAT(*checkpoint->ReadIntegers("i64"), ElementsAre(1, -1));
  EXPECT_THAT(checkpoint->ReadIntegers("u64").status().message(), HasSubstr("2^63"));
  EXPECT_THAT(*checkpoint->ReadFloats("f16"), ElementsAre(1.0f, 0x1p-24f));
  EXPECT_THAT(*checkpoint->ReadFloats("bf16"), ElementsAre(1.0f, -10.0f));
  EXPECT_THAT(*checkpoint->ReadFloats("f32"), ElementsAre(1.0f, -10.0f));
  EXPECT_THAT(*checkpoint->ReadFloats("f64"), ElementsAre(1.0f, -10.0f));
  EXPECT_THAT(checkpoint->ReadFloats("i32").status().message(), HasSubstr("\"i32\""));
  EXPECT_THAT(checkpoint->ReadIntegers("f32").status().message(), HasSubstr("F32"));
  EXPECT_EQ(checkpoint->ReadIntegers("absent").status().code(), StatusCode::kNotFound);
  EXPECT_EQ(checkpoint->Find("i64"), nullptr);
  EXPECT_EQ(checkpoint->Find("i32")->dtype, DType::kInt32);
  EXPECT_EQ(checkpoint->total_bytes(), 92);
}

TEST(CheckpointTest, GetNamesWhatIsWrong) {
  const TemporaryFolder folder;
  const std::string header = R"({"w":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},)"
                             R"("n":{"dtype":"I32","shape":[1],"data_offsets":[24,28]}})";
  const auto checkpoint =
      Checkpoint::OpenFile(folder.Write("x", SafetensorsFile(header, std::string(28, 0))));
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status().message();
  const std::array<int64_t, 2> right = {2, 3};
  const std::array<int64_t, 2> turned = {3, 2};
  const std::array<int64_t, 1> one = {1};
  EXPECT_TRUE(checkpoint->Get("w", right).ok());
  const Status wrong = checkpoint->Get("w", turned).status();
  EXPECT_EQ(wrong.code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(wrong.message(), HasSubstr("\"w\" must have the shape [3, 2], not [2, 3]"));
  EXPECT_THAT(checkpoint->Get("w", one).status().message(), HasSubstr("[1], not [2, 3]"));
  EXPECT_THAT(checkpoint->Get("n", one).status().message(), HasSubstr("not I32"));
  const Status absent = checkpoint->Get("v", one).status();
  EXPECT_EQ(absent.code(), StatusCode::kNotFound);
  EXPECT_THAT(absent.message(), HasSubstr("\"v\""));
}

TEST(CheckpointTest, PointersOutliveAMoveOfTheCheckpoint) {
  Checkpoint first = Checkpoint::Open(kModel).value();
  const TensorInfo* norm = first.Find("model.norm.weight");
  ASSERT_NE(norm, nullptr);
  const std::byte* bytes = norm->bytes.data();
  const Checkpoint second = std::move(first);
  EXPECT_EQ(second.Find("model.norm.weight"), norm);
  EXPECT_EQ(norm->bytes.data(), bytes);
  EXPECT_THAT(second.ReadFloats("model.norm.weight")->size(), 256u);
}

TEST(CheckpointTest, AlignsTensorsOfAnUnpaddedHeader) {
  std::string header = R"({"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})";
  using std::string_literals::operator""s;
  for (int padding = 0; padding < 4; ++padding) {
    const TemporaryFolder folder;
    const auto checkpoint =
        Checkpoint::OpenFile(folder.Write("x", SafetensorsFile(header, "\x00\x00\x20\xc1"s)));
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status().message();
    const TensorInfo* tensor = checkpoint->Find("w");
    EXPECT_EQ(reinterpret_cast<uintptr_t>(tensor->bytes.data()) % alignof(float), 0u) << padding;
    EXPECT_EQ(*reinterpret_cast<const float*>(tensor->bytes.data()), -10.0f) << padding;
    header += ' ';
  }
}

TEST(CheckpointTest, TakesEmptyTensorsScalarsAndEmptyFiles) {
  const TemporaryFolder folder;
  const std::string header = R"({"scalar":{"dtype":"F32","shape":[],"data_offsets":[0,4]},)"
                             R"("none":{"dtype":"F32","shape":[3,0],"data_offsets":[4,4]},)"
                             R"("never":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}})";
  const auto some = Checkpoint::OpenFile(folder.Write("x", SafetensorsFile(header, "1234")));
  ASSERT_TRUE(some.ok()) << some.status().message();
  EXPECT_THAT(some->Names(), ElementsAre("never", "none", "scalar"));
  EXPECT_TRUE(Checkpoint::OpenFile(folder.Write("y", SafetensorsFile("{}", ""))).ok());
}

struct BrokenHeader {
  const char* what;
  std::string header;
  size_t data_bytes;
  const char* error;  // a part of the message
};

class BrokenFileTest : public testing::TestWithParam<BrokenHeader> {};

TEST_P(BrokenFileTest, IsRefusedByName) {
  const BrokenHeader& broken = GetParam();
  const std::string error = OpenError(broken.header, std::string(broken.data_bytes, 0));
  EXPECT_THAT(error, HasSubstr(broken.error));
  EXPECT_THAT(error, HasSubstr("x.safetensors"));
  EXPECT_THAT(error, Not(HasSubstr("\n")));
}

std::string One(std::string_view dtype, std::string_view shape, std::string_view offsets) {
  return fmt::format(R"({{"w":{{"dtype":{},"shape":{},"data_offsets":{}}}}})", dtype, shape,
                     offsets);
}

INSTANTIATE_TEST_SUITE_P(
    Headers, BrokenFileTest,
    testing::Values(
        BrokenHeader{"NotJson", "{\"w\":", 4, "not valid JSON"},
        BrokenHeader{"NotUtf8", "{\"\xff\":1}", 4, "not valid JSON"},
        BrokenHeader{"TooDeep", std::string(100, '[') + std::string(100, ']'), 0, "nested deeper"},
        BrokenHeader{"NotAnObject", "[]", 0, "must be a JSON object, not []"},
        BrokenHeader{"TensorTwice",
                     R"({"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                     R"("w":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
                     2, "the key \"w\" twice"},
        BrokenHeader{"EntryNotAnObject", R"({"w":7})", 0, "must be an object, not 7"},
        BrokenHeader{"NoDtype", R"({"w":{"shape":[1],"data_offsets":[0,4]}})", 4, "\"dtype\""},
        BrokenHeader{"NoShape", R"({"w":{"dtype":"F32","data_offsets":[0,4]}})", 4, "\"shape\""},
        BrokenHeader{"NoOffsets", R"({"w":{"dtype":"F32","shape":[1]}})", 4, "\"data_offsets\""},
        BrokenHeader{"UnknownDtype", One("\"F12\"", "[1]", "[0,4]"), 4, "unknown dtype \"F12\""},
        BrokenHeader{"DtypeNotAString", One("32", "[1]", "[0,4]"), 4, "unknown dtype 32"},
        BrokenHeader{"ShapeNotAList", One("\"F32\"", "1", "[0,4]"), 4, "must be a list"},
        BrokenHeader{"NegativeDimension", One("\"F32\"", "[-1]", "[0,4]"), 4, "dimension -1"},
        BrokenHeader{"FractionalDimension", One("\"F32\"", "[1.0]", "[0,4]"), 4, "dimension 1.0"},
        BrokenHeader{"HugeDimension", One("\"F32\"", "[18446744073709551615]", "[0,4]"), 4,
                     "dimension 18446744073709551615"},
        BrokenHeader{"OverflowingShape", One("\"F32\"", "[4294967296,4294967296]", "[0,0]"), 0,
                     "[4294967296,4294967296] overflows"},
        BrokenHeader{"OverflowByElementSize", One("\"F32\"", "[4611686018427387904]", "[0,0]"), 0,
                     "overflows"},
        BrokenHeader{"OffsetsNotAPair", One("\"F32\"", "[1]", "[0,4,8]"), 8, "[0,4,8]"},
        BrokenHeader{"OffsetsNotAList", One("\"F32\"", "[1]", "\"0-4\""), 4, "0-4"},
        BrokenHeader{"NegativeOffset", One("\"F32\"", "[1]", "[-4,0]"), 4, "[-4,0]"},
        BrokenHeader{"BeginAfterEnd", One("\"F32\"", "[1]", "[4,0]"), 4, "[4,0]"},
        BrokenHeader{"HugeOffsets",
                     One("\"F32\"", "[1]", "[18446744073709551612,18446744073709551616]"), 4,
                     "18446744073709551612"},
        BrokenHeader{"SpanAboveShape", One("\"F32\"", "[1]", "[0,8]"), 8,
                     "span 8 bytes, shape [1] of F32 takes 4"},
        BrokenHeader{"SpanBelowShape", One("\"BF16\"", "[3,5]", "[0,28]"), 28, "takes 30"},
        BrokenHeader{"Truncated", One("\"F32\"", "[2]", "[0,8]"), 7,
                     "\"w\": ends at byte 8 of the data, of which the file has 7"},
        BrokenHeader{"FarBeyondTheFile",
                     One("\"U8\"", "[1]", "[9223372036854775806,9223372036854775807]"), 1,
                     "ends at byte 9223372036854775807"},
        BrokenHeader{"TrailingBytes", One("\"F32\"", "[1]", "[0,4]"), 5, "1 bytes after the last"},
        BrokenHeader{"NoTensorButData", "{}", 3, "3 bytes after the last"},
        BrokenHeader{"GapBefore", One("\"F32\"", "[1]", "[4,8]"), 8,
                     "4 bytes before tensor \"w\" belong to no tensor"},
        BrokenHeader{"GapBetween",
                     R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                     R"("b":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}})",
                     3, "1 bytes before tensor \"b\""},
        BrokenHeader{"Overlap",
                     R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},)"
                     R"("b":{"dtype":"U8","shape":[4],"data_offsets":[3,7]}})",
                     7, "\"b\" begins at byte 3 and overlaps \"a\", which ends at 4"},
        BrokenHeader{"SameBytesTwice",
                     R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},)"
                     R"("b":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})",
                     4, "overlaps"},
        BrokenHeader{"NewlineInAName",
                     R"({"a\nb":{"dtype":"F99","shape":[],"data_offsets":[0,0]}})", 0,
                     R"("a\nb")"}),
    [](const auto& tested) { return tested.param.what; });

TEST(CheckpointTest, RefusesBrokenHeaderLengths) {
  const TemporaryFolder folder;
  const auto error = [&](std::string_view content) {
    const auto opened = Checkpoint::OpenFile(folder.Write("x", content));
    EXPECT_FALSE(opened.ok());
    return opened.status().message();
  };
  using std::string_literals::operator""s;
  EXPECT_THAT(error(""), HasSubstr("0 bytes are too few"));
  EXPECT_THAT(error("1234567"), HasSubstr("7 bytes are too few"));
  EXPECT_THAT(error("\x03\0\0\0\0\0\0\0{}"s), HasSubstr("length 3 reaches beyond the file of 10"));
  EXPECT_THAT(error("\0\0\0\0\0\0\0\0"s), HasSubstr("not valid JSON"));
  EXPECT_THAT(error(std::string(16, '\xff')), HasSubstr("18446744073709551615 is above"));
  EXPECT_THAT(error("\x01\xe1\xf5\x05\0\0\0\0{}"s), HasSubstr("100000001 is above"));
}

// Every cut of a valid file is refused, and none reads out of bounds.
TEST(CheckpointTest, RefusesEveryTruncation) {
  const std::string header = R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
                             R"("b":{"dtype":"BF16","shape":[3],"data_offsets":[8,14]}})";
  const std::string whole = SafetensorsFile(header, std::string(14, 'x'));
  const TemporaryFolder folder;
  ASSERT_TRUE(Checkpoint::OpenFile(folder.Write("x", whole)).ok());
  for (size_t size = 0; size < whole.size(); ++size) {
    const std::string path = folder.Write("x", std::string_view(whole).substr(0, size));
    EXPECT_EQ(Checkpoint::OpenFile(path).status().code(), StatusCode::kInvalidArgument) << size;
  }
}

// Whatever a damaged header says, what is accepted still covers the file's data exactly.
TEST(SafetensorsHeaderTest, DamagedBytesNeverBreakTheInvariants) {
  const std::string whole =
      SafetensorsFile(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
                      R"("b":{"dtype":"BF16","shape":[1,3],"data_offsets":[8,14]},)"
                      R"("c":{"dtype":"U8","shape":[0],"data_offsets":[14,14]}})",
                      std::string(14, 'x'));
  constexpr std::string_view kLikely = "0123456789[]{},:\"-.eE \xff";
  int accepted = 0;
  for (uint64_t round = 0; round < 20000; ++round) {
    const std::array<uint32_t, 4> random = Philox(7, round);
    std::string damaged = whole;
    damaged[random[0] % (whole.size() - 14)] = kLikely[random[1] % kLikely.size()];
    damaged[8 + random[2] % (whole.size() - 22)] = kLikely[random[3] % kLikely.size()];
    const auto header =
        ParseSafetensorsHeader("x", std::as_bytes(std::span(damaged.data(), damaged.size())));
    if (!header.ok()) {
      EXPECT_EQ(header.status().code(), StatusCode::kInvalidArgument);
      continue;
    }
    ++accepted;
    int64_t covered = 0;
    for (const SafetensorsEntry& entry : header->entries) {
      ASSERT_EQ(entry.begin, covered) << damaged;
      ASSERT_GE(entry.end, entry.begin) << damaged;
      covered = entry.end;
    }
    ASSERT_EQ(header->data_begin + covered, static_cast<int64_t>(whole.size())) << damaged;
  }
  EXPECT_GT(accepted, 0);
}

TEST(CheckpointTest, NamesWhatIsAbsent) {
  const TemporaryFolder folder;
  const Status no_folder = Checkpoint::Open(folder.path() + "/nowhere").status();
  EXPECT_EQ(no_folder.code(), StatusCode::kNotFound);
  EXPECT_THAT(no_folder.message(), HasSubstr("nowhere is not a folder"));
  const Status no_file = Checkpoint::Open(folder.path()).status();
  EXPECT_EQ(no_file.code(), StatusCode::kNotFound);
  EXPECT_THAT(no_file.message(), HasSubstr("model.safetensors.index.json"));
  EXPECT_EQ(Checkpoint::OpenFile(folder.path()).status().code(), StatusCode::kNotFound);
}

// --- shards

constexpr const char* kIndex = "model.safetensors.index.json";

std::string Shard(std::string_view tensor, char byte) {
  return SafetensorsFile(
      fmt::format(R"({{"{}":{{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}}})", tensor),
      std::string(1, byte));
}

TEST(CheckpointShardsTest, ReadsThemAsOne) {
  const TemporaryFolder folder;
  folder.Write("one.safetensors", Shard("b", 7));
  folder.Write("two.safetensors", Shard("a", 8));
  folder.Write(kIndex, R"({"metadata":{"total_size":2},)"
                       R"("weight_map":{"a":"two.safetensors","b":"one.safetensors"}})");
  const auto checkpoint = Checkpoint::Open(folder.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status().message();
  EXPECT_THAT(checkpoint->Names(), ElementsAre("a", "b"));
  EXPECT_THAT(*checkpoint->ReadIntegers("a"), ElementsAre(8));
  EXPECT_THAT(*checkpoint->ReadIntegers("b"), ElementsAre(7));
  EXPECT_EQ(checkpoint->total_bytes(), 2);
}

TEST(CheckpointShardsTest, OneFileWinsOverAnIndex) {
  const TemporaryFolder folder;
  folder.Write("model.safetensors", Shard("a", 1));
  folder.Write(kIndex, "not even JSON");
  EXPECT_TRUE(Checkpoint::Open(folder.path()).ok());
}

struct BrokenIndex {
  const char* what;
  const char* index;
  const char* error;
};

class BrokenIndexTest : public testing::TestWithParam<BrokenIndex> {};

TEST_P(BrokenIndexTest, IsRefusedByName) {
  const TemporaryFolder folder;
  folder.Write("one", Shard("a", 1));
  folder.Write("two", Shard("b", 2));
  folder.Write("twin", Shard("a", 3));
  folder.Write("broken", "123");
  folder.Write(kIndex, GetParam().index);
  const auto opened = Checkpoint::Open(folder.path());
  ASSERT_FALSE(opened.ok());
  EXPECT_THAT(opened.status().message(), HasSubstr(GetParam().error));
  EXPECT_THAT(opened.status().message(), HasSubstr(folder.path()));
}

INSTANTIATE_TEST_SUITE_P(
    Indexes, BrokenIndexTest,
    testing::Values(
        BrokenIndex{"NotJson", "{", "not valid JSON"},
        BrokenIndex{"NoWeightMap", R"({"metadata":{}})", "\"weight_map\""},
        BrokenIndex{"WeightMapNotAnObject", R"({"weight_map":["one"]})", "\"weight_map\""},
        BrokenIndex{"EmptyWeightMap", R"({"weight_map":{}})", "\"weight_map\""},
        BrokenIndex{"ShardNotAString", R"({"weight_map":{"a":1}})", "\"a\" lies in 1"},
        BrokenIndex{"Absolute", R"({"weight_map":{"a":"/etc/passwd"}})", "\"/etc/passwd\""},
        BrokenIndex{"Upwards", R"({"weight_map":{"a":"../one"}})", "\"../one\""},
        BrokenIndex{"Parent", R"({"weight_map":{"a":".."}})", "\"..\""},
        BrokenIndex{"Empty", R"({"weight_map":{"a":""}})", "no plain file name"},
        BrokenIndex{"EmbeddedNul", R"({"weight_map":{"a":"one\u0000"}})", "no plain file name"},
        BrokenIndex{"AbsentShard", R"({"weight_map":{"a":"three"}})", "three"},
        BrokenIndex{"BrokenShard", R"({"weight_map":{"a":"broken"}})", "3 bytes are too few"},
        BrokenIndex{"AbsentTensor", R"({"weight_map":{"a":"one","c":"one"}})",
                    "\"c\" is not in its shard one"},
        BrokenIndex{"WrongShard", R"({"weight_map":{"a":"two","b":"one"}})",
                    "\"a\" is not in its shard two"},
        BrokenIndex{"TensorTwice", R"({"weight_map":{"a":"one","x":"twin"}})",
                    "\"a\" is in two shards, one and twin"}),
    [](const auto& tested) { return tested.param.what; });

}  // namespace
}  // namespace lserve
