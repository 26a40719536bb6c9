#include "eval/question_files.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <zlib.h>

#include <filesystem>

#include "base/file.h"

namespace lserve {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::SizeIs;

class QuestionFilesTest : public ::testing::Test {
 protected:
  std::string Write(const std::string& name, const std::string& content) const {
    const std::string path = JoinPath(folder_, name);
    std::filesystem::create_directories(std::filesystem::path(path).parent_path());
    CHECK(WriteFileAtomically(path, content).ok());
    return path;
  }
  // The message of reading a file of these lines.
  std::string Error(const std::string& lines) const {
    const Result<QuestionSet> set = ReadQuestionFile(Write("bad.jsonl", lines), {});
    return set.ok() ? "no error" : set.status().message();
  }

  const std::string folder_ = JoinPath(::testing::TempDir(), "question_files_test");
};

constexpr const char* kTwoRows =
    R"({"id":"a","kind":"x","length":1000,"question":"q1","answer":"r1","document":"d","depth":0.5}

{"id":"b","kind":"y","length":2000,"question":"q2","answer":"r2","document":null,"same_document_as":"a"}
)";

TEST_F(QuestionFilesTest, ReadsRowsThatShareADocument) {
  const QuestionSet set = ReadQuestionFile(Write("qa.jsonl", kTwoRows), {}).value();
  EXPECT_THAT(set.documents, ElementsAre("d"));
  ASSERT_THAT(set.questions, SizeIs(2));
  EXPECT_EQ(set.questions[0].depth, 0.5);
  EXPECT_EQ(set.questions[1].id, "b");
  EXPECT_EQ(set.questions[1].document, 0u);
  EXPECT_THAT(set.questions[1].turns, ElementsAre("q2"));
  EXPECT_THAT(set.questions[1].expected, ElementsAre("r2"));
  EXPECT_EQ(set.questions[1].scoring, Scoring::kExact);
}

TEST_F(QuestionFilesTest, ReadsGzip) {
  const std::string path = Write("qa.jsonl.gz", "");
  const gzFile file = ::gzopen(path.c_str(), "wb");
  ::gzputs(file, kTwoRows);
  ::gzclose(file);
  EXPECT_THAT(ReadQuestionFile(path, {}).value().questions, SizeIs(2));
}

TEST_F(QuestionFilesTest, FiltersRows) {
  const std::string path = Write("qa.jsonl", kTwoRows);
  const auto ids = [&](const QuestionFilter& filter) {
    std::vector<std::string> found;
    const QuestionSet set = ReadQuestionFile(path, filter).value();
    for (const Question& question : set.questions) {
      found.push_back(question.id);
    }
    return found;
  };
  EXPECT_THAT(ids({.kinds = {"y"}}), ElementsAre("b"));
  EXPECT_THAT(ids({.kinds = {}, .max_length = 1000}), ElementsAre("a"));
  EXPECT_THAT(ids({.kinds = {}, .limit = 1}), ElementsAre("a"));
  const Result<QuestionSet> none = ReadQuestionFile(path, {.kinds = {"z"}});
  EXPECT_THAT(none.status().message(), HasSubstr("no question of the kinds"));
}

TEST_F(QuestionFilesTest, ErrorsNameLineAndField) {
  EXPECT_THAT(Error(""), HasSubstr("no question"));
  EXPECT_THAT(Error(std::string(kTwoRows) + "{\n"), HasSubstr("line 4"));
  EXPECT_THAT(Error(R"({"id":"a","kind":"x","length":1,"question":7,"answer":"r"})"),
              HasSubstr("line 1: \"question\""));
  EXPECT_THAT(Error(R"({"id":"a","kind":"x","length":1.5,"question":"q","answer":"r"})"),
              HasSubstr("\"length\""));
  EXPECT_THAT(
      Error(
          R"({"id":"a","kind":"x","length":1,"question":"q","answer":"r","same_document_as":"z"})"),
      HasSubstr("\"z\""));
  EXPECT_THAT(Error(std::string(kTwoRows) + kTwoRows), HasSubstr("line 4: id \"a\""));
  EXPECT_EQ(ReadQuestionFile("/no/such", {}).status().code(), StatusCode::kNotFound);
}

TEST_F(QuestionFilesTest, ReadsRulersFolders) {
  const std::string path =
      Write("vt/validation.jsonl",
            R"({"index":4,"input":"prompt","outputs":["A","B"],"length":4012,"truncation":-1})");
  const QuestionSet set = ReadRulerFile(path, {}).value();
  EXPECT_THAT(set.documents, ElementsAre("prompt"));
  ASSERT_THAT(set.questions, SizeIs(1));
  EXPECT_EQ(set.questions[0].id, "vt-4096-4");
  EXPECT_EQ(set.questions[0].kind, "vt");
  EXPECT_EQ(set.questions[0].length, 4096);
  EXPECT_EQ(set.questions[0].scoring, Scoring::kSubstring);
  EXPECT_THAT(set.questions[0].turns, SizeIs(0));
  EXPECT_THAT(set.questions[0].expected, ElementsAre("A", "B"));
}

TEST_F(QuestionFilesTest, AnyOutputCountsInRulersQuestionAnswering) {
  const std::string row = R"({"index":0,"input":"p","outputs":["A"],"length":4096})";
  EXPECT_EQ(ReadRulerFile(Write("qa_1.jsonl", row), {}).value().questions[0].scoring,
            Scoring::kAnySubstring);
}

TEST_F(QuestionFilesTest, RulerErrorsNameLineAndField) {
  const auto error = [&](const std::string& row) {
    return ReadRulerFile(Write("cwe.jsonl", row), {}).status().message();
  };
  EXPECT_THAT(error(R"({"index":0,"input":"p","outputs":[],"length":9})"),
              HasSubstr("line 1: \"outputs\""));
  EXPECT_THAT(error(R"({"index":0,"input":"p","outputs":["a"],"length":-9})"), HasSubstr("-9"));
  EXPECT_THAT(error(R"({"input":"p","outputs":["a"],"length":9})"), HasSubstr("\"index\""));
}

}  // namespace
}  // namespace lserve
