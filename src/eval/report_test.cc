#include "eval/report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "eval/html_report.h"
#include "eval/svg.h"

namespace lserve {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::SizeIs;

Question Ask(const std::string& kind, int64_t length, const std::string& id) {
  Question question;
  question.id = id;
  question.kind = kind;
  question.length = length;
  question.expected = {"1"};
  question.scoring = Scoring::kValues;
  return question;
}

RunAnswers Answers(const std::string& name, int64_t budget, const std::vector<double>& scores) {
  RunAnswers answers;
  answers.run.name = name;
  answers.run.attention = name == "dense" ? "dense" : "lserve";
  answers.run.settings.token_budget = budget;
  answers.scores = scores;
  answers.answers.predictions.assign(scores.size(), "<b>it's \"1\" & more</b>");
  return answers;
}

// Two tasks, two lengths; "vt" comes first among the questions and last in the alphabet.
EvalReport Sample() {
  EvalReport report;
  report.model = "tiny<model>";
  report.commit = "abc";
  report.device = {{"backend", "cpu"}, {"name", "A & B"}};
  report.command = "lserve eval 'x' --suite <all>";
  report.questions = {Ask("vt", 4096, "v0"), Ask("vt", 2048, "v1"), Ask("niah", 2048, "n0"),
                      Ask("niah", 2048, "n1")};
  report.questions[2].depth = 0;
  report.questions[3].depth = 1;
  report.runs = {Answers("dense", 4096, {1, 1, 1, 0.5}), Answers("lserve@256", 256, {0, 1, 1, 1}),
                 Answers("lserve@512", 512, {1, 1, 1, 0.5})};
  report.plan = HeadPlan::FromGates({{0.25, 0.75}, {1, 0}}, 0.5);
  report.gates = {{0.25, 0.75}, {1, 0}};
  return report;
}

void AddForced(EvalReport* report) {
  ForcedDocument document;
  document.id = "text-1";
  document.kind = "text";
  document.length = 2048;
  document.decode_from = 0;
  document.is_answer = {false, false, true, true};
  ForcedTrace dense;
  dense.run = "dense";
  dense.loss = {1, 2, 3};
  ForcedTrace sparse;
  sparse.run = "lserve@256";
  sparse.loss = {1, 2, 6};
  sparse.kl = {0.1, 0.2, 0.6};
  sparse.agrees = {true, true, false};
  ForcedTrace wide = sparse;
  wide.run = "lserve@512";
  report->forced = {document, document};
  report->traces = {{dense, sparse, wide}, {dense, sparse, wide}};
}

TEST(CompareTest, GroupsByTaskInOrderAndLengthAscending) {
  const EvalReport report = Sample();
  const std::vector<Comparison> comparisons = Compare(report);
  ASSERT_THAT(comparisons, SizeIs(2));
  const Comparison& first = comparisons[0];
  EXPECT_EQ(first.sparse->name, "lserve@256");
  EXPECT_EQ(first.overall.total, 4);
  EXPECT_EQ(first.overall.lost, 1);
  EXPECT_EQ(first.overall.gained, 1);
  ASSERT_THAT(first.groups, SizeIs(3));
  EXPECT_EQ(first.groups[0].kind, "vt");
  EXPECT_EQ(first.groups[0].length, 2048);
  EXPECT_EQ(first.groups[1].length, 4096);
  EXPECT_EQ(first.groups[1].tally.lost, 1);
  EXPECT_EQ(first.groups[2].kind, "niah");
  EXPECT_EQ(first.groups[2].tally.dense_score, 1.5);
  EXPECT_EQ(comparisons[1].overall.lost + comparisons[1].overall.gained, 0);
}

TEST(CompareTest, NothingWithoutADenseRun) {
  EvalReport report = Sample();
  report.runs.erase(report.runs.begin());
  EXPECT_THAT(Compare(report), SizeIs(0));
}

TEST(ReportJsonTest, OneRunStandsAtTheTopLevel) {
  EvalReport report = Sample();
  report.runs.resize(1);
  const OrderedJson json = ToJson(report);
  EXPECT_EQ(json["settings"]["token_budget"], 4096);
  EXPECT_EQ(json["commit"], "abc");
  EXPECT_EQ(json["overall"]["right"], 3);
  EXPECT_EQ(json["overall"]["total"], 4);
  EXPECT_EQ(json["by_kind_length"][0]["kind"], "niah");
  EXPECT_EQ(json["by_kind_length"][0]["right"], 1);
  EXPECT_EQ(json["rows"][3]["id"], "n1");
  EXPECT_EQ(json["rows"][3]["correct"], false);
  EXPECT_EQ(json["rows"][3]["score"], 0.5);
  EXPECT_FALSE(json.contains("comparisons"));
}

TEST(ReportJsonTest, SeveralRunsStandBesideTheirComparisons) {
  const OrderedJson json = ToJson(Sample());
  EXPECT_THAT(json["runs"], SizeIs(3));
  EXPECT_EQ(json["runs"][1]["settings"]["token_budget"], 256);
  ASSERT_THAT(json["comparisons"], SizeIs(2));
  const OrderedJson& overall = json["comparisons"][0]["overall"];
  EXPECT_EQ(overall["lost"], 1);
  EXPECT_EQ(overall["mcnemar_p"], 1.0);
  EXPECT_EQ(overall["dense_mean_score"], 3.5 / 4);
}

TEST(SummariseTest, PoolsTheRowsOfDocumentsOfOneKindAndLength) {
  EvalReport report = Sample();
  AddForced(&report);
  const std::vector<ForcedSummary> summaries = Summarise(report);
  ASSERT_THAT(summaries, SizeIs(3));
  EXPECT_EQ(summaries[0].run, "dense");
  EXPECT_EQ(summaries[0].rows, 6);
  EXPECT_DOUBLE_EQ(summaries[0].loss, 2.0);
  EXPECT_FALSE(summaries[0].mean_kl.has_value());
  EXPECT_DOUBLE_EQ(*summaries[0].answer_loss, 2.5);  // rows 1 and 2 predict tokens 2 and 3
  EXPECT_DOUBLE_EQ(*summaries[1].mean_kl, 0.3);
  EXPECT_DOUBLE_EQ(*summaries[1].largest_kl, 0.6);
  EXPECT_DOUBLE_EQ(*summaries[1].agreement, 2.0 / 3);
  EXPECT_DOUBLE_EQ(*summaries[1].answer_agreement, 0.5);
  ASSERT_THAT(summaries[1].spans, SizeIs(3));
  EXPECT_EQ(summaries[1].spans[2].first, 2);
  EXPECT_EQ(summaries[1].spans[2].rows, 2);
  EXPECT_DOUBLE_EQ(summaries[1].spans[2].mean_kl, 0.6);
}

TEST(TableTest, NamesEveryTaskAndLength) {
  EvalReport report = Sample();
  AddForced(&report);
  const std::string table = ToTable(report);
  EXPECT_THAT(table, HasSubstr("dense: 3 of 4 right (75.0 %)"));
  EXPECT_THAT(table, HasSubstr("lserve@512"));
  EXPECT_THAT(table, HasSubstr("vt                    4096     1      1            0  -100.0"));
  EXPECT_THAT(table, HasSubstr("text"));
}

TEST(EscapeHtmlTest, EscapesWhatHtmlReads) {
  EXPECT_EQ(EscapeHtml("<a href=\"x\">'&'</a>\n"),
            "&lt;a href=&quot;x&quot;&gt;&#39;&amp;&#39;&lt;/a&gt;\n");
  EXPECT_EQ(EscapeHtml(std::string("a\0b\x1b\xff", 5)), "a\uFFFDb\uFFFD\uFFFD");
  EXPECT_EQ(EscapeHtml("gr\u00fc\u00df"), "gr\u00fc\u00df");
}

TEST(HtmlReportTest, EscapesAllText) {
  EvalReport report = Sample();
  AddForced(&report);
  for (Question& question : report.questions) {
    question.kind = "<i>" + question.kind;
  }
  for (RunAnswers& answers : report.runs) {
    answers.run.name = "<u>" + answers.run.name;
  }
  report.device["name"] = "<script>alert(1)</script>";
  const std::string html = ToHtml(report);
  for (const char* raw : {"tiny<model>", "<all>", "<i>", "<u>", "<script"}) {
    EXPECT_THAT(html, Not(HasSubstr(raw)));
  }
  EXPECT_THAT(html, HasSubstr("tiny&lt;model&gt;"));
  EXPECT_THAT(html, HasSubstr("&lt;i&gt;vt"));
}

TEST(HtmlReportTest, LoadsNothingFromElsewhere) {
  EvalReport report = Sample();
  AddForced(&report);
  const std::string html = ToHtml(report);
  for (const char* reference : {"http:", "https:", "//", "src=", "url(", "@import", "<script"}) {
    EXPECT_THAT(html, Not(HasSubstr(reference)));
  }
}

TEST(HtmlReportTest, HasEverySection) {
  EvalReport report = Sample();
  AddForced(&report);
  const std::string html = ToHtml(report);
  for (const char* section :
       {"By task and length", "Single needle, by depth", "Accuracy against budget",
        "The same text through every mode", "Head plan", "Settings", "The same again"}) {
    EXPECT_THAT(html, HasSubstr(std::string("<h2>") + section + "</h2>"));
  }
  EXPECT_THAT(html, HasSubstr("2 of 4 KV heads retrieve"));
  EXPECT_THAT(html, HasSubstr("layer 0, KV head 1: retrieval, gate 0.750"));
  EXPECT_THAT(html, HasSubstr("layer 1, KV head 1: streaming, gate 0.000"));
}

TEST(HtmlReportTest, ATaskThatNobodyAnswersSaysNothing) {
  EvalReport report = Sample();
  for (RunAnswers& answers : report.runs) {
    answers.scores = {0, 0, 1, 1};
  }
  const std::string html = ToHtml(report);
  EXPECT_THAT(html, HasSubstr("none right"));
  EXPECT_THAT(html, HasSubstr("Of tasks that neither mode answers: 2 questions"));
}

}  // namespace
}  // namespace lserve
