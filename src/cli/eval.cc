// lserve eval: answers questions over documents, exactly compared. A document is prefilled once, up
// to an absolute chunk boundary before its first question, and forked for each question.
#include <zlib.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <map>
#include <memory>
#include <set>
#include <sstream>

#include "base/build_info.h"
#include "base/file.h"
#include "cli/command.h"
#include "engine/offline.h"

namespace lserve {
namespace {

struct EvalArguments {
  std::string model;
  Settings settings;
  std::string qa;
  int64_t max_length = 0;
  std::vector<std::string> kinds;
  int64_t limit = 0;
  bool resume = false;
  std::string json;
};

constexpr int64_t kMaxAnswerTokens = 64;

struct Question {
  std::string id, kind, question, answer;
  int64_t length = 0;
  std::string document_id;  // the row that holds the document
};

struct QuestionFile {
  std::vector<Question> questions;
  std::map<std::string, std::string> documents;  // by the id of the row that holds it
};

// A file, gunzipped if it is gzip. Errors: kNotFound, kInvalidArgument (broken gzip, too large).
Result<std::string> ReadMaybeGzip(const std::string& path) {
  constexpr size_t kMaxBytes = size_t{4} << 30;
  if (!FileExists(path)) {
    return NotFound("{} is not a file", path);
  }
  const gzFile file = ::gzopen(path.c_str(), "rb");
  if (file == nullptr) {
    return Internal("cannot open {}", path);
  }
  std::string text;
  std::vector<char> block(1 << 20);
  int got = 0;
  while ((got = ::gzread(file, block.data(), static_cast<unsigned>(block.size()))) > 0 &&
         text.size() < kMaxBytes) {
    text.append(block.data(), static_cast<size_t>(got));
  }
  const bool broken = got < 0 || ::gzclose(file) != Z_OK;
  if (broken) {
    return InvalidArgument("{} is not a readable gzip or text file", path);
  }
  if (text.size() >= kMaxBytes) {
    return InvalidArgument("{} is larger than {} bytes", path, kMaxBytes);
  }
  return text;
}

Result<std::string> StringField(const Json& row, const char* field, const std::string& where) {
  const Json* value = FindKey(row, field);
  if (value == nullptr || !value->is_string()) {
    return InvalidArgument("{}: \"{}\" is missing or no string", where, field);
  }
  return value->get<std::string>();
}

Result<QuestionFile> ReadQuestions(const EvalArguments& arguments) {
  ASSIGN_OR_RETURN(const std::string text, ReadMaybeGzip(arguments.qa));
  QuestionFile file;
  std::set<std::string> ids;
  std::istringstream lines(text);
  int64_t number = 0;
  for (std::string line; std::getline(lines, line);) {
    ++number;
    if (line.find_first_not_of(" \t\r") == std::string::npos) {
      continue;
    }
    const std::string where = fmt::format("{} line {}", arguments.qa, number);
    ASSIGN_OR_RETURN(const Json row, ParseJson(line, where));
    Question question;
    ASSIGN_OR_RETURN(question.id, StringField(row, "id", where));
    ASSIGN_OR_RETURN(question.kind, StringField(row, "kind", where));
    ASSIGN_OR_RETURN(question.question, StringField(row, "question", where));
    ASSIGN_OR_RETURN(question.answer, StringField(row, "answer", where));
    const Json* length = FindKey(row, "length");
    if (length == nullptr || !length->is_number_integer()) {
      return InvalidArgument("{}: \"length\" is missing or no integer", where);
    }
    question.length = length->get<int64_t>();
    if (!ids.insert(question.id).second) {
      return InvalidArgument("{}: id \"{}\" stands twice", where, question.id);
    }
    const Json* document = FindKey(row, "document");
    if (document != nullptr && document->is_string()) {
      file.documents[question.id] = document->get<std::string>();
      question.document_id = question.id;
    } else {
      ASSIGN_OR_RETURN(question.document_id, StringField(row, "same_document_as", where));
      if (file.documents.count(question.document_id) == 0) {
        return InvalidArgument("{}: same_document_as names \"{}\", which has no document above",
                               where, question.document_id);
      }
    }
    const bool wanted_kind =
        arguments.kinds.empty() || std::find(arguments.kinds.begin(), arguments.kinds.end(),
                                             question.kind) != arguments.kinds.end();
    const bool wanted_length = arguments.max_length == 0 || question.length <= arguments.max_length;
    const bool below_limit = arguments.limit == 0 || std::ssize(file.questions) < arguments.limit;
    if (wanted_kind && wanted_length && below_limit) {
      file.questions.push_back(std::move(question));
    }
  }
  if (file.questions.empty()) {
    return InvalidArgument("{} has no question of the kinds and lengths asked for", arguments.qa);
  }
  return file;
}

// Finished rows on disk, so that an interrupted run can go on: one JSON object a line.
class PartialResults {
 public:
  // With `resume` reads what is there, else starts afresh. No file without a path.
  static Result<PartialResults> Open(const std::string& path, bool resume,
                                     const OrderedJson& settings) {
    PartialResults partial;
    if (path.empty() || path == "-") {
      return partial;
    }
    partial.path_ = path + ".rows.partial";
    if (resume && FileExists(partial.path_)) {
      ASSIGN_OR_RETURN(const std::string text, ReadFile(partial.path_));
      std::istringstream lines(text);
      bool first = true;
      for (std::string line; std::getline(lines, line);) {
        const Result<Json> row = ParseJson(line, partial.path_);
        if (!row.ok()) {
          break;  // the line that the interruption cut
        }
        if (first && *row != Json(settings)) {
          return InvalidArgument("{} was made with other settings; run without --resume",
                                 partial.path_);
        }
        if (!first) {
          partial.rows_[{row->at("attention"), row->at("id")}] = row->at("prediction");
        }
        first = false;
      }
    }
    partial.out_ = std::make_unique<std::ofstream>(partial.path_, std::ios::trunc);
    *partial.out_ << DumpJsonLine(settings) << "\n";
    for (const auto& [key, prediction] : partial.rows_) {
      partial.Write(key.first, key.second, prediction);
    }
    return partial;
  }

  const std::string* Find(const std::string& attention, const std::string& id) const {
    const auto found = rows_.find({attention, id});
    return found == rows_.end() ? nullptr : &found->second;
  }
  void Write(const std::string& attention, const std::string& id, const std::string& prediction) {
    if (out_ != nullptr) {
      const OrderedJson row = {{"attention", attention}, {"id", id}, {"prediction", prediction}};
      *out_ << DumpJsonLine(row) << "\n" << std::flush;
    }
  }
  void Remove() {
    if (!path_.empty()) {
      out_.reset();
      std::remove(path_.c_str());
    }
  }

 private:
  std::string path_;
  std::unique_ptr<std::ofstream> out_;
  std::map<std::pair<std::string, std::string>, std::string> rows_;
};

// Answers the questions of one document, one after the other.
class DocumentReader {
 public:
  DocumentReader(const LoadedModel& model, LlamaRunner& runner) : model_(model), runner_(runner) {}
  ~DocumentReader() {
    if (prefix_slot_ >= 0) {
      runner_.CloseSlot(prefix_slot_);
    }
  }
  DocumentReader(const DocumentReader&) = delete;
  DocumentReader& operator=(const DocumentReader&) = delete;

  // The prompts of every question that will be asked.
  Status Open(const std::vector<std::vector<int32_t>>& prompts,
              const std::function<void(int64_t)>& progress) {
    size_t shared = prompts[0].size() - 1;  // the last token of a prompt is run by its fork
    for (const std::vector<int32_t>& prompt : prompts) {
      const size_t limit = std::min(shared, prompt.size() - 1);
      size_t same = 0;
      while (same < limit && prompt[same] == prompts[0][same]) {
        ++same;
      }
      shared = same;
    }
    prefix_tokens_ = static_cast<int64_t>(shared) / kQueryBlockTokens * kQueryBlockTokens;
    ASSIGN_OR_RETURN(prefix_slot_, runner_.OpenSlot({}, kGreedySampling));
    const std::span<const int32_t> prefix(prompts[0].data(), static_cast<size_t>(prefix_tokens_));
    return PrefillPrompt(runner_, prefix_slot_, prefix, 0, model_.settings.max_num_batched_tokens,
                         false, progress)
        .status();
  }

  Result<std::string> Answer(const std::vector<int32_t>& prompt) {
    ASSIGN_OR_RETURN(const int32_t slot, runner_.Fork(prefix_slot_, prompt, kGreedySampling));
    const Result<std::string> answer = AnswerInSlot(slot, prompt);
    runner_.CloseSlot(slot);
    return answer;
  }

 private:
  Result<std::string> AnswerInSlot(int32_t slot, const std::vector<int32_t>& prompt) {
    const std::vector<int32_t>& eos = model_.config.eos_token_ids;
    ASSIGN_OR_RETURN(int32_t token, PrefillPrompt(runner_, slot, prompt, prefix_tokens_,
                                                  model_.settings.max_num_batched_tokens, true));
    std::vector<int32_t> answer;
    auto position = static_cast<int64_t>(prompt.size());
    while (std::find(eos.begin(), eos.end(), token) == eos.end()) {
      answer.push_back(token);
      if (std::ssize(answer) == kMaxAnswerTokens || position + 1 > runner_.limits().max_model_len) {
        break;
      }
      RETURN_IF_ERROR(runner_.Reserve(slot, position + 1));
      StepInput input;
      input.decode.push_back(DecodeRow{.slot = slot, .position = position});
      ASSIGN_OR_RETURN(const std::vector<SampledToken> sampled, runner_.Step(input));
      token = sampled[0].token;
      ++position;
    }
    return model_.tokenizer->Decode(answer, true);
  }

  const LoadedModel& model_;
  LlamaRunner& runner_;
  int32_t prefix_slot_ = -1;
  int64_t prefix_tokens_ = 0;
};

Result<std::vector<int32_t>> EncodeQuestion(const LoadedModel& model, const std::string& document,
                                            const Question& question) {
  const ChatMessage message{"user", document + "\n\n" + question.question};
  ASSIGN_OR_RETURN(const std::vector<TextRun> runs,
                   model.chat_template->Render(std::span(&message, 1), true));
  return model.tokenizer->EncodeRuns(runs);
}

// Predictions of all questions, in their order.
Result<std::vector<std::string>> RunMode(const LoadedModel& model, const std::string& attention,
                                         const QuestionFile& file, PartialResults& partial) {
  ASSIGN_OR_RETURN(const std::unique_ptr<LlamaRunner> runner, model.MakeRunner(attention));
  std::vector<std::string> predictions(file.questions.size());
  std::map<std::string, std::vector<size_t>> by_document;
  std::vector<std::string> order;  // documents as the file has them
  for (size_t i = 0; i < file.questions.size(); ++i) {
    const Question& question = file.questions[i];
    if (const std::string* done = partial.Find(attention, question.id)) {
      predictions[i] = *done;
      continue;
    }
    std::vector<size_t>& rows = by_document[question.document_id];
    if (rows.empty()) {
      order.push_back(question.document_id);
    }
    rows.push_back(i);
  }
  ProgressLine line(attention);
  for (size_t d = 0; d < order.size(); ++d) {
    const std::vector<size_t>& rows = by_document.at(order[d]);
    const std::string& document = file.documents.at(order[d]);
    std::vector<std::vector<int32_t>> prompts;
    for (const size_t row : rows) {
      ASSIGN_OR_RETURN(std::vector<int32_t> prompt,
                       EncodeQuestion(model, document, file.questions[row]));
      if (std::ssize(prompt) > runner->limits().max_model_len) {
        return InvalidArgument("{}: the prompt has {} tokens, the context {}",
                               file.questions[row].id, prompt.size(),
                               runner->limits().max_model_len);
      }
      prompts.push_back(std::move(prompt));
    }
    DocumentReader reader(model, *runner);
    RETURN_IF_ERROR(reader.Open(prompts, [&](int64_t done) {
      line.Show(static_cast<double>(d) / static_cast<double>(order.size()),
                fmt::format("document {} of {}, {} of {} tokens", d + 1, order.size(), done,
                            prompts[0].size()));
    }));
    for (size_t i = 0; i < rows.size(); ++i) {
      ASSIGN_OR_RETURN(predictions[rows[i]], reader.Answer(prompts[i]));
      partial.Write(attention, file.questions[rows[i]].id, predictions[rows[i]]);
    }
  }
  return predictions;
}

OrderedJson Report(const std::string& attention, const LoadedModel& model, const QuestionFile& file,
                   const std::vector<std::string>& predictions) {
  OrderedJson rows = OrderedJson::array();
  std::map<std::pair<std::string, int64_t>, std::pair<int64_t, int64_t>> tally;  // right, total
  int64_t right = 0;
  for (size_t i = 0; i < file.questions.size(); ++i) {
    const Question& question = file.questions[i];
    const bool correct = predictions[i] == question.answer;
    rows.push_back({{"id", question.id},
                    {"kind", question.kind},
                    {"length", question.length},
                    {"prediction", predictions[i]},
                    {"correct", correct}});
    auto& cell = tally[{question.kind, question.length}];
    cell.first += correct ? 1 : 0;
    ++cell.second;
    right += correct ? 1 : 0;
  }
  const auto total = static_cast<int64_t>(file.questions.size());
  std::printf("%s: %ld of %ld right (%.1f %%)\n", attention.c_str(), static_cast<long>(right),
              static_cast<long>(total),
              100.0 * static_cast<double>(right) / static_cast<double>(total));
  OrderedJson cells = OrderedJson::array();
  for (const auto& [key, cell] : tally) {
    std::printf("  %-10s %8ld %5ld / %ld\n", key.first.c_str(), static_cast<long>(key.second),
                static_cast<long>(cell.first), static_cast<long>(cell.second));
    cells.push_back({{"kind", key.first},
                     {"length", key.second},
                     {"right", cell.first},
                     {"total", cell.second}});
  }
  Settings settings = model.settings;
  settings.attention = attention;
  OrderedJson result;
  result["settings"] = settings.ToJson();
  result["commit"] = BuildCommit();
  result["overall"] = {{"right", right}, {"total", total}};
  result["by_kind_length"] = std::move(cells);
  result["rows"] = std::move(rows);
  return result;
}

Status Eval(EvalArguments& arguments) {
  if (arguments.settings.max_num_seqs < 2) {
    return InvalidArgument("--max-num-seqs {}: eval needs 2, the document and its fork",
                           arguments.settings.max_num_seqs);
  }
  ASSIGN_OR_RETURN(const QuestionFile file, ReadQuestions(arguments));
  ASSIGN_OR_RETURN(const LoadedModel model,
                   LoadModelForCommand(arguments.model, arguments.settings));
  if (!model.chat_template.has_value()) {
    return FailedPrecondition("{} has no chat template", model.path);
  }
  ASSIGN_OR_RETURN(PartialResults partial, PartialResults::Open(arguments.json, arguments.resume,
                                                                arguments.settings.ToJson()));
  ASSIGN_OR_RETURN(const std::vector<std::string> modes, arguments.settings.AttentionNames());
  std::vector<OrderedJson> runs;
  for (const std::string& attention : modes) {
    ASSIGN_OR_RETURN(const std::vector<std::string> predictions,
                     RunMode(model, attention, file, partial));
    runs.push_back(Report(attention, model, file, predictions));
  }
  const OrderedJson result = runs.size() == 1 ? runs[0] : OrderedJson{{"runs", runs}};
  RETURN_IF_ERROR(WriteResult(arguments.json, result));
  partial.Remove();
  return OkStatus();
}

}  // namespace

RegisteredCommand RegisterEval(CLI::App& program) {
  auto arguments = std::make_shared<EvalArguments>();
  arguments->settings.max_num_seqs = 2;
  CLI::App* app = program.add_subcommand("eval", "accuracy on questions over documents");
  AddModelAndSettings(*app, &arguments->model, &arguments->settings);
  app->add_option("--qa", arguments->qa, "questions, JSON lines, .gz or plain")->required();
  app->add_option("--max-length", arguments->max_length, "only rows with at most this length");
  app->add_option("--kinds", arguments->kinds, "only rows of these kinds")->delimiter(',');
  app->add_option("--limit", arguments->limit, "only the first rows that qualify");
  app->add_flag("--resume", arguments->resume, "go on where an interrupted run stopped");
  app->add_option("--json", arguments->json, "write the result here");
  return {app, [arguments] { return Eval(*arguments); }};
}

}  // namespace lserve
