#include "eval/questions.h"

#include <algorithm>
#include <cctype>
#include <set>
#include <utility>

#include "base/check.h"

namespace lserve {
namespace {

std::string Lowercase(std::string_view text) {
  std::string lower(text);
  for (char& c : lower) {
    c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  }
  return lower;
}

bool IsWordByte(char c) { return std::isalnum(static_cast<unsigned char>(c)) != 0; }

// Both lowercase. Letters and digits may not touch the value, so that 12345 is not in 123456.
bool NamesWord(const std::string& text, const std::string& value) {
  for (size_t at = text.find(value); at != std::string::npos; at = text.find(value, at + 1)) {
    const size_t end = at + value.size();
    if ((at == 0 || !IsWordByte(text[at - 1])) && (end == text.size() || !IsWordByte(text[end]))) {
      return true;
    }
  }
  return false;
}

}  // namespace

const std::string* Question::WholeAnswer() const {
  if (turns.size() > 1) {
    return nullptr;
  }
  return !answer.empty() ? &answer : expected.size() == 1 ? &expected[0] : nullptr;
}

Status QuestionSet::Append(QuestionSet other) {
  std::set<std::string> ids;
  for (const Question& question : questions) {
    ids.insert(question.id);
  }
  for (Question& question : other.questions) {
    if (!ids.insert(question.id).second) {
      return InvalidArgument("id \"{}\" stands twice among the questions", question.id);
    }
    question.document += documents.size();
    questions.push_back(std::move(question));
  }
  std::move(other.documents.begin(), other.documents.end(), std::back_inserter(documents));
  return OkStatus();
}

double Score(const Question& question, std::string_view prediction) {
  CHECK(!question.expected.empty());
  if (question.scoring == Scoring::kExact) {
    return prediction == question.expected[0] ? 1.0 : 0.0;
  }
  const std::string text = Lowercase(prediction);
  const auto named =
      std::count_if(question.expected.begin(), question.expected.end(), [&](const auto& value) {
        const std::string wanted = Lowercase(value);
        return question.scoring == Scoring::kValues ? NamesWord(text, wanted)
                                                    : text.find(wanted) != std::string::npos;
      });
  if (question.scoring == Scoring::kAnySubstring) {
    return named > 0 ? 1.0 : 0.0;
  }
  return static_cast<double>(named) / static_cast<double>(question.expected.size());
}

}  // namespace lserve
