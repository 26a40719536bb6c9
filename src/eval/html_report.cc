#include "eval/html_report.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <set>
#include <utility>

#include "eval/html_page.h"
#include "eval/svg.h"

namespace lserve {
namespace {

// What a tally says, in words.
std::string Verdict(const PairedTally& tally) {
  if (tally.dense_right == 0 && tally.sparse_right == 0) {
    return "Neither mode answered a question, so this run says nothing about sparsity.";
  }
  const auto [low, high] = DifferenceInterval(tally);
  if (tally.lost + tally.gained == 0) {
    return fmt::format(
        "No answer flipped. With this many questions a loss of up to {:.1f} points remains "
        "possible.",
        -low);
  }
  const double p = McNemarExactP(tally.lost, tally.gained);
  const std::string flips =
      fmt::format("{} lost, {} gained. ", Count(tally.lost, "answer"), tally.gained);
  if (p >= 0.05) {
    return flips + fmt::format(
                       "This many questions do not tell the difference from chance "
                       "(p = {:.2f}); a loss of up to {:.1f} points remains possible.",
                       p, std::max(0.0, -low));
  }
  return flips + fmt::format("{} (p {}).",
                             tally.lost > tally.gained ? "Sparse attention costs accuracy here"
                                                       : "Sparse attention answers more here",
                             p < 0.001 ? "&lt; 0.001" : fmt::format("= {:.3f}", p));
}

// Questions of tasks and lengths that neither mode answers at all.
int64_t UnansweredQuestions(const Comparison& comparison) {
  int64_t questions = 0;
  for (const ComparedGroup& group : comparison.groups) {
    const bool none = group.tally.dense_right == 0 && group.tally.sparse_right == 0;
    questions += none ? group.tally.total : 0;
  }
  return questions;
}

void AddSummary(const EvalReport& report, const std::vector<Comparison>& comparisons,
                HtmlPage* page) {
  if (report.questions.empty()) {
    return;
  }
  page->Add("<div class=\"cards\">\n");
  for (const Comparison& comparison : comparisons) {
    const PairedTally& tally = comparison.overall;
    const auto [low, high] = DifferenceInterval(tally);
    const int64_t unanswered = UnansweredQuestions(comparison);
    const std::string unanswered_note =
        unanswered == 0 || unanswered == tally.total
            ? ""
            : fmt::format(" Of tasks that neither mode answers: {}.",
                          Count(unanswered, "question"));
    page->Add(
        "<div class=\"card\"><span class=\"quiet\">{} against dense</span><b>{} points</b>"
        "<span class=\"quiet\">95 % interval {} to {}</span><br>{} right of {}, dense {}"
        "<p class=\"note\">{}{}</p></div>\n",
        EscapeHtml(comparison.sparse->name), Signed(tally.DifferencePoints()), Signed(low),
        Signed(high), tally.sparse_right, tally.total, tally.dense_right, Verdict(tally),
        unanswered_note);
  }
  if (comparisons.empty()) {
    for (const RunAnswers& answers : report.runs) {
      const auto right = std::count_if(answers.scores.begin(), answers.scores.end(), IsRight);
      page->Add(
          "<div class=\"card\"><span class=\"quiet\">{}</span><b>{:.1f} %</b>{} right of "
          "{}</div>\n",
          EscapeHtml(answers.run.name),
          Percent(static_cast<double>(right), std::ssize(answers.scores)), right,
          answers.scores.size());
    }
  }
  page->Add("</div>\n");
}

void AddTallyRow(const std::string& kind, const std::string& length, const PairedTally& tally,
                 const char* row_class, HtmlPage* page) {
  const auto [low, high] = DifferenceInterval(tally);
  const double p = McNemarExactP(tally.lost, tally.gained);
  const bool nothing = tally.dense_right == 0 && tally.sparse_right == 0;
  const char* cell_class = nothing                                 ? " class=\"nothing\""
                           : p < 0.05 && tally.lost > tally.gained ? " class=\"loss\""
                                                                   : "";
  page->Add(
      "<tr{}><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td{}>{}</td>"
      "<td>{} to {}</td><td>{}</td><td>{}</td><td>{}</td><td>{:.1f}</td><td>{:.1f}</td></tr>\n",
      row_class, EscapeHtml(kind), length, tally.total, tally.dense_right, tally.sparse_right,
      cell_class, nothing ? "none right" : Signed(tally.DifferencePoints()), Signed(low),
      Signed(high), tally.lost, tally.gained, ShowP(p), Percent(tally.dense_score, tally.total),
      Percent(tally.sparse_score, tally.total));
}

void AddTables(const std::vector<Comparison>& comparisons, HtmlPage* page) {
  page->Add("<h2>By task and length</h2>\n");
  for (const Comparison& comparison : comparisons) {
    if (comparisons.size() > 1) {
      page->Add("<h3>{}</h3>\n", EscapeHtml(comparison.sparse->name));
    }
    page->Add(
        "<div class=\"scroll\"><table>\n<tr><th>task</th><th>tokens</th><th>questions</th>"
        "<th>dense<br>right</th><th>sparse<br>right</th><th>difference,<br>points</th>"
        "<th>95 %<br>interval</th><th>lost</th><th>gained</th><th>p</th>"
        "<th>dense<br>score</th><th>sparse<br>score</th></tr>\n");
    for (const ComparedGroup& group : comparison.groups) {
      AddTallyRow(group.kind, std::to_string(group.length), group.tally, "", page);
    }
    AddTallyRow("all", "", comparison.overall, " class=\"total\"", page);
    page->Add("</table></div>\n");
  }
  page->Add(
      "<p class=\"note\">Both modes answered the same questions. Lost: right with dense attention, "
      "wrong with sparse; gained: the reverse. p: McNemar's exact two-sided test, each row by "
      "itself, so among twenty rows one below 0.05 is expected by chance. Interval: of the "
      "difference, Agresti and Min. Score: mean share of the expected values that an answer names, "
      "in percent; an answer is right when it names all. None right: neither mode answers this "
      "task, so it says nothing about sparsity.</p>\n");
}

// Shares of right answers of one run by depth and length; nothing if no question has a depth.
std::optional<HeatMap> DepthMap(const EvalReport& report, const RunAnswers& answers) {
  std::set<double> depths;
  std::set<int64_t> lengths;
  std::map<std::pair<double, int64_t>, std::pair<int64_t, int64_t>> cells;  // right, total
  for (size_t i = 0; i < report.questions.size(); ++i) {
    const Question& question = report.questions[i];
    if (question.kind == "niah" && question.depth.has_value()) {
      depths.insert(*question.depth);
      lengths.insert(question.length);
      auto& cell = cells[{*question.depth, question.length}];
      cell.first += IsRight(answers.scores[i]) ? 1 : 0;
      ++cell.second;
    }
  }
  if (cells.empty()) {
    return std::nullopt;
  }
  HeatMap map;
  map.title = answers.run.name;
  map.row_label = "depth";
  map.column_label = "tokens";
  for (const int64_t length : lengths) {
    map.columns.push_back(std::to_string(length));
  }
  for (const double depth : depths) {
    map.rows.push_back(fmt::format("{:.0f} %", 100 * depth));
    std::vector<std::optional<double>>& row = map.cells.emplace_back();
    for (const int64_t length : lengths) {
      const auto cell = cells.find({depth, length});
      row.push_back(cell == cells.end() ? std::nullopt
                                        : std::optional(static_cast<double>(cell->second.first) /
                                                        static_cast<double>(cell->second.second)));
    }
  }
  return map;
}

void AddDepthMaps(const EvalReport& report, HtmlPage* page) {
  std::string pictures;
  for (const RunAnswers& answers : report.runs) {
    if (const std::optional<HeatMap> map = DepthMap(report, answers)) {
      pictures += ToSvg(*map);
    }
  }
  if (!pictures.empty()) {
    page->Add(
        "<h2>Single needle, by depth</h2>\n<p class=\"note\">Percent of right answers. Depth 0 % "
        "is "
        "the front of the document.</p>\n<div class=\"figures\">{}</div>\n",
        pictures);
  }
}

void AddBudgetCurve(const std::vector<Comparison>& comparisons, HtmlPage* page) {
  if (comparisons.size() < 2) {
    return;
  }
  std::vector<std::pair<double, double>> points;
  double lowest = 100;
  for (const Comparison& comparison : comparisons) {
    const double share =
        Percent(static_cast<double>(comparison.overall.sparse_right), comparison.overall.total);
    points.emplace_back(static_cast<double>(comparison.sparse->settings.token_budget), share);
    lowest = std::min(lowest, share);
  }
  std::sort(points.begin(), points.end());
  const PairedTally& overall = comparisons[0].overall;
  const double dense = Percent(static_cast<double>(overall.dense_right), overall.total);
  LineChart chart;
  chart.title = "Right answers, percent";
  chart.x_label = "token budget of a retrieval head";
  chart.series = {{"lserve", std::move(points)}};
  chart.reference = {"dense", dense};
  chart.logarithmic_x = true;
  chart.ticks_at_points = true;
  chart.y_low = std::floor(std::min(lowest, dense) / 20) * 20;
  chart.y_low = std::min(chart.y_low, 80.0);
  chart.y_high = 100;
  page->Add("<h2>Accuracy against budget</h2>\n<div class=\"figures\">{}</div>\n", ToSvg(chart));
}

std::string Number(const std::optional<double>& value, double scale, int decimals) {
  return value.has_value() ? fmt::format("{:.{}f}", *value * scale, decimals) : "";
}

// The least of 1, 2, 5 times a power of ten that is not below a positive value.
double RoundUp(double value) {
  const double power = std::pow(10, std::floor(std::log10(value)));
  for (const double factor : {1.0, 2.0, 5.0}) {
    if (value <= factor * power) {
      return factor * power;
    }
  }
  return 10 * power;
}

// Agreement and divergence along the decode rows, a line a sparse run.
void AddForcedCharts(const std::vector<ForcedSummary>& summaries, HtmlPage* page) {
  std::vector<std::pair<std::string, int64_t>> groups;
  for (const ForcedSummary& summary : summaries) {
    const std::pair<std::string, int64_t> group(summary.kind, summary.length);
    if (!summary.spans.empty() && std::find(groups.begin(), groups.end(), group) == groups.end()) {
      groups.push_back(group);
    }
  }
  for (const auto& [kind, length] : groups) {
    LineChart agreement, divergence;
    agreement.title = fmt::format("{}, {} tokens: same top token, percent", kind, length);
    divergence.title = fmt::format("{}, {} tokens: mean KL, nats", kind, length);
    agreement.x_label = divergence.x_label = "decode row";
    double lowest = 100, highest = 0;
    for (const ForcedSummary& summary : summaries) {
      if (summary.kind != kind || summary.length != length || summary.spans.empty()) {
        continue;
      }
      ChartSeries same{summary.run, {}}, nats{summary.run, {}};
      for (const ForcedSummary::Span& span : summary.spans) {
        same.points.emplace_back(static_cast<double>(span.first), 100 * span.agreement);
        nats.points.emplace_back(static_cast<double>(span.first), span.mean_kl);
        lowest = std::min(lowest, 100 * span.agreement);
        highest = std::max(highest, span.mean_kl);
      }
      agreement.series.push_back(std::move(same));
      divergence.series.push_back(std::move(nats));
    }
    agreement.y_low = std::min(90.0, std::floor(lowest / 10) * 10);
    agreement.y_high = 100;
    divergence.y_high = RoundUp(std::max(highest, 1e-4));
    divergence.y_decimals = 2 + static_cast<int>(std::ceil(-std::log10(divergence.y_high)));
    agreement.y_decimals = 1;
    page->Add("<div class=\"figures\">{}{}</div>\n", ToSvg(agreement), ToSvg(divergence));
  }
}

// A column of the teacher-forced table; it is left out where no row has a value.
struct ForcedColumn {
  const char* heading;
  std::string (*value)(const ForcedSummary& summary);
};
constexpr ForcedColumn kForcedColumns[] = {
    {"text", [](const ForcedSummary& s) { return EscapeHtml(s.kind); }},
    {"tokens", [](const ForcedSummary& s) { return std::to_string(s.length); }},
    {"mode", [](const ForcedSummary& s) { return EscapeHtml(s.run); }},
    {"decode<br>rows", [](const ForcedSummary& s) { return std::to_string(s.rows); }},
    {"prefill<br>loss", [](const ForcedSummary& s) { return Number(s.prefill_loss, 1, 4); }},
    {"prefill<br>tail", [](const ForcedSummary& s) { return Number(s.prefill_tail_loss, 1, 4); }},
    {"decode<br>loss", [](const ForcedSummary& s) { return Number(s.loss, 1, 4); }},
    {"decode<br>perplexity", [](const ForcedSummary& s) { return Number(std::exp(s.loss), 1, 3); }},
    {"same top<br>token, %", [](const ForcedSummary& s) { return Number(s.agreement, 100, 2); }},
    {"mean<br>KL", [](const ForcedSummary& s) { return Number(s.mean_kl, 1, 4); }},
    {"largest<br>KL", [](const ForcedSummary& s) { return Number(s.largest_kl, 1, 3); }},
    {"answers:<br>loss", [](const ForcedSummary& s) { return Number(s.answer_loss, 1, 4); }},
    {"answers:<br>same, %",
     [](const ForcedSummary& s) { return Number(s.answer_agreement, 100, 2); }},
};

void AddForced(const EvalReport& report, HtmlPage* page) {
  const std::vector<ForcedSummary> summaries = Summarise(report);
  if (summaries.empty()) {
    return;
  }
  page->Add(
      "<h2>The same text through every mode</h2>\n<p class=\"note\">Teacher-forced: all modes are "
      "fed the same tokens as decode rows, and their next-token distributions are compared with "
      "dense attention's. Losses and divergences in nats a token; tail: the tokens that the decode "
      "rows predict, read in prefill; answers: those of them that belong to an answer.</p>\n"
      "<div class=\"scroll\"><table class=\"wide\">\n<tr>");
  std::vector<const ForcedColumn*> columns;
  for (const ForcedColumn& column : kForcedColumns) {
    if (std::any_of(summaries.begin(), summaries.end(),
                    [&](const ForcedSummary& summary) { return !column.value(summary).empty(); })) {
      columns.push_back(&column);
      page->Add("<th>{}</th>", column.heading);
    }
  }
  for (const ForcedSummary& summary : summaries) {
    page->Add("</tr>\n<tr>");
    for (const ForcedColumn* column : columns) {
      page->Add("<td>{}</td>", column->value(summary));
    }
  }
  page->Add("</tr>\n</table></div>\n");
  AddForcedCharts(summaries, page);
}

void AddHeadPlan(const EvalReport& report, HtmlPage* page) {
  HeadGrid grid;
  grid.gates = report.gates;
  for (int32_t layer = 0; layer < report.plan.layers(); ++layer) {
    std::vector<bool>& row = grid.retrieves.emplace_back(report.plan.kv_heads(), false);
    for (int32_t i = 0; i < report.plan.retrieval_heads(layer); ++i) {
      row[static_cast<size_t>(report.plan.order(layer)[static_cast<size_t>(i)])] = true;
    }
  }
  const int32_t heads = report.plan.layers() * report.plan.kv_heads();
  page->Add(
      "<h2>Head plan</h2>\n<p class=\"note\">{} of {} KV heads retrieve (filled); the others read "
      "sink and local window only (hollow).{}</p>\n<div class=\"figures\">{}</div>\n",
      report.plan.total_retrieval_heads(), heads,
      report.gates.empty() ? " The model has no file of gates, so every head retrieves."
                           : " The number is the head's gate.",
      ToSvg(grid));
}

void AddSettings(const EvalReport& report, HtmlPage* page) {
  page->Add("<h2>Settings</h2>\n<dl>\n");
  OrderedJson settings = report.runs[0].run.settings.ToJson();
  std::vector<std::string> names;
  for (const RunAnswers& answers : report.runs) {
    names.push_back(answers.run.name);
    if (!answers.run.dense()) {
      settings = answers.run.settings.ToJson();
    }
  }
  settings["attention"] = fmt::format("{}", fmt::join(names, ", "));
  if (names.size() > 2) {
    settings.erase("token_budget");  // it stands in the names
  }
  settings["seed"] = report.seed;
  settings["commit"] = report.commit;
  for (const auto& [key, value] : report.device.items()) {
    settings["device " + key] = value;
  }
  for (const auto& [key, value] : settings.items()) {
    page->Add("<div><dt>{}</dt><dd>{}</dd></div>\n", EscapeHtml(key),
              EscapeHtml(value.is_string() ? value.get<std::string>() : value.dump()));
  }
  page->Add(
      "</dl>\n<h2>The same again</h2>\n<pre>{}</pre>\n<p class=\"note\">The questions follow from "
      "seed and tokenizer, the answers from the model: greedy, one chat a question.</p>\n",
      EscapeHtml(report.command));
}

}  // namespace

std::string ToHtml(const EvalReport& report) {
  const std::string model = EscapeHtml(report.model);
  HtmlPage page(model + ": dense and sparse attention");
  page.Add("<h1>{}: what sparse attention costs</h1>\n", model);
  const std::string asked = report.questions.empty()
                                ? Count(std::ssize(report.forced), "text")
                                : Count(std::ssize(report.questions), "question");
  page.Add("<p class=\"quiet\">{}, {}, lserve {}</p>\n", asked,
           Count(std::ssize(report.runs), "mode"), EscapeHtml(report.commit));
  const std::vector<Comparison> comparisons = Compare(report);
  AddSummary(report, comparisons, &page);
  if (!comparisons.empty()) {
    AddTables(comparisons, &page);
  }
  AddDepthMaps(report, &page);
  AddBudgetCurve(comparisons, &page);
  AddForced(report, &page);
  AddHeadPlan(report, &page);
  AddSettings(report, &page);
  return page.Finish();
}

}  // namespace lserve
