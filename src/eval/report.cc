#include "eval/report.h"

#include <algorithm>
#include <map>
#include <utility>

namespace lserve {
namespace {

const RunAnswers* FindDense(const EvalReport& report) {
  const auto found = std::find_if(report.runs.begin(), report.runs.end(),
                                  [](const RunAnswers& answers) { return answers.run.dense(); });
  return found == report.runs.end() ? nullptr : &*found;
}

double Percent(int64_t part, int64_t whole) {
  return whole == 0 ? 0 : 100.0 * static_cast<double>(part) / static_cast<double>(whole);
}

OrderedJson RowJson(const Question& question, const std::string& prediction, double score) {
  OrderedJson row = {{"id", question.id},
                     {"kind", question.kind},
                     {"length", question.length},
                     {"prediction", prediction},
                     {"correct", IsRight(score)}};
  if (question.scoring != Scoring::kExact) {
    row["score"] = score;
    row["expected"] = question.expected;
  }
  if (question.depth.has_value()) {
    row["depth"] = *question.depth;
  }
  return row;
}

OrderedJson RunJson(const EvalReport& report, const RunAnswers& answers) {
  OrderedJson rows = OrderedJson::array();
  std::map<std::pair<std::string, int64_t>, std::pair<int64_t, int64_t>> cells;  // right, total
  int64_t right = 0;
  for (size_t i = 0; i < answers.scores.size(); ++i) {
    const Question& question = report.questions[i];
    rows.push_back(RowJson(question, answers.answers.predictions[i], answers.scores[i]));
    auto& cell = cells[{question.kind, question.length}];
    cell.first += IsRight(answers.scores[i]) ? 1 : 0;
    right += IsRight(answers.scores[i]) ? 1 : 0;
    ++cell.second;
  }
  OrderedJson json;
  json["settings"] = answers.run.settings.ToJson();
  json["commit"] = report.commit;
  json["overall"] = {{"right", right}, {"total", std::ssize(answers.scores)}};
  json["by_kind_length"] = OrderedJson::array();
  for (const auto& [key, cell] : cells) {
    json["by_kind_length"].push_back({{"kind", key.first},
                                      {"length", key.second},
                                      {"right", cell.first},
                                      {"total", cell.second}});
  }
  if (answers.answers.selection.uses > 0) {
    json["selection"] = {{"lists_used", answers.answers.selection.uses},
                         {"lists_made", answers.answers.selection.made}};
  }
  if (const PrefillBlocks& blocks = answers.answers.selection.prefill; blocks.scored > 0) {
    json["prefill"] = {
        {"blocks_scored", blocks.scored},
        {"blocks_weighed", blocks.weighed},
        {"density", static_cast<double>(blocks.weighed) / static_cast<double>(blocks.scored)}};
  }
  json["rows"] = std::move(rows);
  return json;
}

OrderedJson TallyJson(const PairedTally& tally) {
  const auto [low, high] = DifferenceInterval(tally);
  const auto total = static_cast<double>(tally.total);
  return {{"total", tally.total},
          {"dense_right", tally.dense_right},
          {"sparse_right", tally.sparse_right},
          {"difference_points", tally.DifferencePoints()},
          {"interval_95_points", {low, high}},
          {"lost", tally.lost},
          {"gained", tally.gained},
          {"mcnemar_p", McNemarExactP(tally.lost, tally.gained)},
          {"dense_mean_score", tally.dense_score / total},
          {"sparse_mean_score", tally.sparse_score / total}};
}

OrderedJson ComparisonsJson(const EvalReport& report) {
  OrderedJson json = OrderedJson::array();
  for (const Comparison& comparison : Compare(report)) {
    OrderedJson groups = OrderedJson::array();
    for (const ComparedGroup& group : comparison.groups) {
      OrderedJson row = {{"kind", group.kind}, {"length", group.length}};
      row.update(TallyJson(group.tally));
      groups.push_back(std::move(row));
    }
    json.push_back({{"dense", "dense"},
                    {"sparse", comparison.sparse->name},
                    {"token_budget", comparison.sparse->settings.token_budget},
                    {"overall", TallyJson(comparison.overall)},
                    {"by_kind_length", std::move(groups)}});
  }
  return json;
}

OrderedJson SummaryJson(const ForcedSummary& summary) {
  OrderedJson json = {{"kind", summary.kind}, {"length", summary.length},
                      {"run", summary.run},   {"documents", summary.documents},
                      {"rows", summary.rows}, {"decode_loss", summary.loss}};
  const auto set = [&](const char* key, const std::optional<double>& value) {
    if (value.has_value()) {
      json[key] = *value;
    }
  };
  set("prefill_loss", summary.prefill_loss);
  set("prefill_tail_loss", summary.prefill_tail_loss);
  set("top1_agreement", summary.agreement);
  set("mean_kl", summary.mean_kl);
  set("largest_kl", summary.largest_kl);
  set("answer_loss", summary.answer_loss);
  set("answer_top1_agreement", summary.answer_agreement);
  set("answer_mean_kl", summary.answer_mean_kl);
  for (const ForcedSummary::Span& span : summary.spans) {
    json["spans"].push_back({{"first", span.first},
                             {"rows", span.rows},
                             {"top1_agreement", span.agreement},
                             {"mean_kl", span.mean_kl}});
  }
  return json;
}

OrderedJson ForcedJson(const EvalReport& report) {
  OrderedJson json;
  json["summaries"] = OrderedJson::array();
  for (const ForcedSummary& summary : Summarise(report)) {
    json["summaries"].push_back(SummaryJson(summary));
  }
  json["documents"] = OrderedJson::array();
  for (size_t i = 0; i < report.forced.size(); ++i) {
    const ForcedDocument& document = report.forced[i];
    OrderedJson traces = OrderedJson::array();
    for (const ForcedTrace& trace : report.traces[i]) {
      traces.push_back(ToJson(trace));
    }
    json["documents"].push_back({{"id", document.id},
                                 {"kind", document.kind},
                                 {"length", document.length},
                                 {"decode_from", document.decode_from},
                                 {"traces", std::move(traces)}});
  }
  return json;
}

// Sums over the rows of the documents that a summary covers.
struct ForcedSums {
  double loss = 0, kl = 0, agreements = 0;
  int64_t rows = 0;
  void Add(const ForcedTrace& trace, size_t row) {
    loss += trace.loss[row];
    if (!trace.kl.empty()) {
      kl += trace.kl[row];
      agreements += trace.agrees[row] ? 1 : 0;
    }
    ++rows;
  }
  double Mean(double sum) const { return sum / static_cast<double>(rows); }
};

// One summary of traces that share kind, length and run; `documents` are their documents.
ForcedSummary SummariseGroup(const std::vector<const ForcedDocument*>& documents,
                             const std::vector<const ForcedTrace*>& traces) {
  constexpr size_t kSpans = 16;
  ForcedSummary summary;
  summary.kind = documents[0]->kind;
  summary.length = documents[0]->length;
  summary.run = traces[0]->run;
  summary.documents = std::ssize(documents);
  const size_t most_rows =
      (*std::max_element(traces.begin(), traces.end(), [](const auto* a, const auto* b) {
        return a->loss.size() < b->loss.size();
      }))->loss.size();
  const size_t span_rows = (most_rows + kSpans - 1) / kSpans;
  ForcedSums all, answers;
  std::vector<ForcedSums> spans((most_rows + span_rows - 1) / span_rows);
  double largest_kl = 0, prefill = 0, tail = 0;
  for (size_t d = 0; d < traces.size(); ++d) {
    const ForcedTrace& trace = *traces[d];
    prefill += trace.prefill_loss.value_or(0);
    tail += trace.prefill_tail_loss.value_or(0);
    for (size_t row = 0; row < trace.loss.size(); ++row) {
      all.Add(trace, row);
      spans[row / span_rows].Add(trace, row);
      if (!trace.kl.empty()) {
        largest_kl = std::max(largest_kl, trace.kl[row]);
      }
      const size_t predicted = static_cast<size_t>(documents[d]->decode_from) + row + 1;
      if (!documents[d]->is_answer.empty() && documents[d]->is_answer[predicted]) {
        answers.Add(trace, row);
      }
    }
  }
  summary.rows = all.rows;
  summary.loss = all.Mean(all.loss);
  const bool compared = !traces[0]->kl.empty();
  if (traces[0]->prefill_loss.has_value()) {
    summary.prefill_loss = prefill / static_cast<double>(traces.size());
    summary.prefill_tail_loss = tail / static_cast<double>(traces.size());
  }
  if (answers.rows > 0) {
    summary.answer_loss = answers.Mean(answers.loss);
  }
  if (compared) {
    summary.agreement = all.Mean(all.agreements);
    summary.mean_kl = all.Mean(all.kl);
    summary.largest_kl = largest_kl;
    if (answers.rows > 0) {
      summary.answer_agreement = answers.Mean(answers.agreements);
      summary.answer_mean_kl = answers.Mean(answers.kl);
    }
    for (size_t i = 0; i < spans.size(); ++i) {
      summary.spans.push_back({static_cast<int64_t>(i * span_rows), spans[i].rows,
                               spans[i].Mean(spans[i].agreements), spans[i].Mean(spans[i].kl)});
    }
  }
  return summary;
}

}  // namespace

std::vector<Comparison> Compare(const EvalReport& report) {
  std::vector<Comparison> comparisons;
  const RunAnswers* dense = FindDense(report);
  if (dense == nullptr || report.questions.empty()) {
    return comparisons;
  }
  std::vector<std::string> kinds;  // in the order of the questions
  for (const Question& question : report.questions) {
    if (std::find(kinds.begin(), kinds.end(), question.kind) == kinds.end()) {
      kinds.push_back(question.kind);
    }
  }
  for (const RunAnswers& sparse : report.runs) {
    if (sparse.run.dense()) {
      continue;
    }
    Comparison comparison;
    comparison.sparse = &sparse.run;
    for (const std::string& kind : kinds) {
      std::map<int64_t, PairedTally> by_length;
      for (size_t i = 0; i < report.questions.size(); ++i) {
        if (report.questions[i].kind == kind) {
          by_length[report.questions[i].length].Add(dense->scores[i], sparse.scores[i]);
          comparison.overall.Add(dense->scores[i], sparse.scores[i]);
        }
      }
      for (const auto& [length, tally] : by_length) {
        comparison.groups.push_back({kind, length, tally});
      }
    }
    comparisons.push_back(std::move(comparison));
  }
  return comparisons;
}

std::vector<ForcedSummary> Summarise(const EvalReport& report) {
  std::vector<ForcedSummary> summaries;
  std::vector<bool> done(report.forced.size(), false);
  for (size_t first = 0; first < report.forced.size(); ++first) {
    if (done[first]) {
      continue;
    }
    std::vector<const ForcedDocument*> documents;
    std::vector<size_t> members;
    for (size_t i = first; i < report.forced.size(); ++i) {
      if (report.forced[i].kind == report.forced[first].kind &&
          report.forced[i].length == report.forced[first].length) {
        documents.push_back(&report.forced[i]);
        members.push_back(i);
        done[i] = true;
      }
    }
    for (size_t run = 0; run < report.traces[first].size(); ++run) {
      std::vector<const ForcedTrace*> traces;
      for (const size_t member : members) {
        traces.push_back(&report.traces[member][run]);
      }
      summaries.push_back(SummariseGroup(documents, traces));
    }
  }
  return summaries;
}

OrderedJson ToJson(const EvalReport& report) {
  OrderedJson json;
  if (report.runs.size() == 1) {
    json = RunJson(report, report.runs[0]);
    json["model"] = report.model;
    json["device"] = report.device;
    json["command"] = report.command;
  } else {
    json["model"] = report.model;
    json["commit"] = report.commit;
    json["device"] = report.device;
    json["command"] = report.command;
    json["runs"] = OrderedJson::array();
    for (const RunAnswers& answers : report.runs) {
      json["runs"].push_back(RunJson(report, answers));
    }
    json["comparisons"] = ComparisonsJson(report);
  }
  if (!report.forced.empty()) {
    json["teacher_forced"] = ForcedJson(report);
  }
  return json;
}

std::string ToTable(const EvalReport& report) {
  std::string table;
  const auto out = [&]<typename... Args>(fmt::format_string<Args...> format, Args&&... args) {
    table += fmt::format(format, std::forward<Args>(args)...);
  };
  const std::vector<Comparison> comparisons = Compare(report);
  for (const RunAnswers& answers : report.runs) {
    if (report.questions.empty()) {
      break;
    }
    const OrderedJson run = RunJson(report, answers);
    const auto right = run["overall"]["right"].get<int64_t>();
    out("{}: {} of {} right ({:.1f} %)\n", answers.run.name, right, report.questions.size(),
        Percent(right, std::ssize(report.questions)));
    for (const OrderedJson& cell : run["by_kind_length"]) {
      if (comparisons.empty()) {  // else they stand side by side below
        out("  {:<18} {:>8} {:>5} / {}\n", cell["kind"].get<std::string>(),
            cell["length"].get<int64_t>(), cell["right"].get<int64_t>(),
            cell["total"].get<int64_t>());
      }
    }
  }
  for (const Comparison& comparison : comparisons) {
    out("\n{:<18} {:>7} {:>5} {:>6} {:>12} {:>7} {:>5} {:>6} {:>7}\n", "task", "length", "n",
        "dense", comparison.sparse->name, "points", "lost", "gained", "p");
    const auto line = [&](const std::string& kind, const std::string& length,
                          const PairedTally& tally) {
      out("{:<18} {:>7} {:>5} {:>6} {:>12} {:>+7.1f} {:>5} {:>6} {:>7.3f}\n", kind, length,
          tally.total, tally.dense_right, tally.sparse_right, tally.DifferencePoints(), tally.lost,
          tally.gained, McNemarExactP(tally.lost, tally.gained));
    };
    for (const ComparedGroup& group : comparison.groups) {
      line(group.kind, std::to_string(group.length), group.tally);
    }
    line("all", "", comparison.overall);
  }
  if (!report.forced.empty()) {
    out("\n{:<18} {:>7} {:<12} {:>6} {:>9} {:>9} {:>9} {:>9}\n", "teacher-forced", "length", "run",
        "rows", "prefill", "decode", "top-1 %", "mean KL");
    const auto number = [](const std::optional<double>& value, double scale) {
      return value.has_value() ? fmt::format("{:.4f}", *value * scale) : std::string("-");
    };
    for (const ForcedSummary& s : Summarise(report)) {
      out("{:<18} {:>7} {:<12} {:>6} {:>9} {:>9.4f} {:>9} {:>9}\n", s.kind, s.length, s.run, s.rows,
          number(s.prefill_loss, 1), s.loss, number(s.agreement, 100), number(s.mean_kl, 1));
    }
  }
  return table;
}

}  // namespace lserve
