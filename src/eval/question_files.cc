#include "eval/question_files.h"

#include <zlib.h>

#include <algorithm>
#include <bit>
#include <filesystem>
#include <functional>
#include <map>
#include <set>
#include <sstream>
#include <utility>

#include "base/file.h"
#include "base/json.h"

namespace lserve {
namespace {

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
  // Both always: a broken file is closed too.
  const bool closed = ::gzclose(file) == Z_OK;
  if (got < 0 || !closed) {
    return InvalidArgument("{} is not a readable gzip or text file", path);
  }
  if (text.size() >= kMaxBytes) {
    return InvalidArgument("{} is larger than {} bytes", path, kMaxBytes);
  }
  return text;
}

// Calls visit(row, "FILE line N") for each line that is not blank.
Status ForEachRow(const std::string& path,
                  const std::function<Status(const Json&, const std::string&)>& visit) {
  ASSIGN_OR_RETURN(const std::string text, ReadMaybeGzip(path));
  std::istringstream lines(text);
  int64_t number = 0;
  for (std::string line; std::getline(lines, line);) {
    ++number;
    if (line.find_first_not_of(" \t\r") == std::string::npos) {
      continue;
    }
    const std::string where = fmt::format("{} line {}", path, number);
    ASSIGN_OR_RETURN(const Json row, ParseJson(line, where));
    RETURN_IF_ERROR(visit(row, where));
  }
  return OkStatus();
}

Result<std::string> StringField(const Json& row, const char* field, const std::string& where) {
  const Json* value = FindKey(row, field);
  if (value == nullptr || !value->is_string()) {
    return InvalidArgument("{}: \"{}\" is missing or no string", where, field);
  }
  return value->get<std::string>();
}

Result<int64_t> IntegerField(const Json& row, const char* field, const std::string& where) {
  const Json* value = FindKey(row, field);
  if (value == nullptr || !value->is_number_integer()) {
    return InvalidArgument("{}: \"{}\" is missing or no integer", where, field);
  }
  return value->get<int64_t>();
}

Result<std::vector<std::string>> StringListField(const Json& row, const char* field,
                                                 const std::string& where) {
  const Json* value = FindKey(row, field);
  if (value == nullptr || !value->is_array() || value->empty() ||
      !std::all_of(value->begin(), value->end(), [](const Json& v) { return v.is_string(); })) {
    return InvalidArgument("{}: \"{}\" is missing or no list of strings", where, field);
  }
  return value->get<std::vector<std::string>>();
}

// Takes rows while the filter lets them in.
class FilteredSet {
 public:
  explicit FilteredSet(const QuestionFilter& filter) : filter_(filter) {}

  bool Wants(const Question& question) const {
    const bool kind = filter_.kinds.empty() || std::find(filter_.kinds.begin(), filter_.kinds.end(),
                                                         question.kind) != filter_.kinds.end();
    const bool length = filter_.max_length == 0 || question.length <= filter_.max_length;
    return kind && length && (filter_.limit == 0 || std::ssize(set_.questions) < filter_.limit);
  }
  void Add(Question question) { set_.questions.push_back(std::move(question)); }
  size_t AddDocument(std::string text) {
    set_.documents.push_back(std::move(text));
    return set_.documents.size() - 1;
  }
  Result<QuestionSet> Finish(const std::string& path) {
    if (set_.questions.empty()) {
      return InvalidArgument("{} has no question of the kinds and lengths asked for", path);
    }
    return std::move(set_);
  }

 private:
  const QuestionFilter& filter_;
  QuestionSet set_;
};

// "vt" of "vt/validation.jsonl", "my-task" of "my-task.jsonl".
std::string RulerTask(const std::string& path) {
  const std::filesystem::path file(path);
  const std::string stem = file.stem().string();
  const std::string folder = file.parent_path().filename().string();
  return (stem == "validation" || stem == "test") && !folder.empty() ? folder : stem;
}

}  // namespace

Result<QuestionSet> ReadQuestionFile(const std::string& path, const QuestionFilter& filter) {
  FilteredSet set(filter);
  std::set<std::string> ids;
  std::map<std::string, size_t> documents;  // by the id of the row that holds it
  RETURN_IF_ERROR(ForEachRow(path, [&](const Json& row, const std::string& where) -> Status {
    Question question;
    std::string text, answer;
    ASSIGN_OR_RETURN(question.id, StringField(row, "id", where));
    ASSIGN_OR_RETURN(question.kind, StringField(row, "kind", where));
    ASSIGN_OR_RETURN(text, StringField(row, "question", where));
    ASSIGN_OR_RETURN(answer, StringField(row, "answer", where));
    ASSIGN_OR_RETURN(question.length, IntegerField(row, "length", where));
    question.turns = {std::move(text)};
    question.expected = {std::move(answer)};
    if (!ids.insert(question.id).second) {
      return InvalidArgument("{}: id \"{}\" stands twice", where, question.id);
    }
    const Json* document = FindKey(row, "document");
    if (document != nullptr && document->is_string()) {
      question.document = set.AddDocument(document->get<std::string>());
      documents[question.id] = question.document;
    } else {
      ASSIGN_OR_RETURN(const std::string other, StringField(row, "same_document_as", where));
      const auto found = documents.find(other);
      if (found == documents.end()) {
        return InvalidArgument("{}: same_document_as names \"{}\", which has no document above",
                               where, other);
      }
      question.document = found->second;
    }
    if (const Json* depth = FindKey(row, "depth"); depth != nullptr && depth->is_number()) {
      question.depth = depth->get<double>();
    }
    if (set.Wants(question)) {
      set.Add(std::move(question));
    }
    return OkStatus();
  }));
  return set.Finish(path);
}

Result<QuestionSet> ReadRulerFile(const std::string& path, const QuestionFilter& filter) {
  const std::string task = RulerTask(path);
  FilteredSet set(filter);
  RETURN_IF_ERROR(ForEachRow(path, [&](const Json& row, const std::string& where) -> Status {
    Question question;
    question.kind = task;
    ASSIGN_OR_RETURN(const int64_t index, IntegerField(row, "index", where));
    ASSIGN_OR_RETURN(const int64_t length, IntegerField(row, "length", where));
    if (length < 1 || length > int64_t{1} << 40) {
      return InvalidArgument("{}: \"length\" {} is no number of tokens", where, length);
    }
    question.length = static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(length)));
    question.id = fmt::format("{}-{}-{}", task, question.length, index);
    ASSIGN_OR_RETURN(question.expected, StringListField(row, "outputs", where));
    question.scoring = task.starts_with("qa") ? Scoring::kAnySubstring : Scoring::kSubstring;
    question.max_answer_tokens = 128;
    ASSIGN_OR_RETURN(std::string input, StringField(row, "input", where));
    if (set.Wants(question)) {
      question.document = set.AddDocument(std::move(input));
      set.Add(std::move(question));
    }
    return OkStatus();
  }));
  return set.Finish(path);
}

}  // namespace lserve
