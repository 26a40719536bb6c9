// Documents whose answers show which heads retrieve: a chat that opens with a long document full of
// facts and asks for some of them, answers included. Free functions, thread-safe.
#pragma once

#include <cstdint>
#include <vector>

#include "base/status.h"
#include "engine/loaded_model.h"
#include "model/head_ablation.h"

namespace lserve {

// The shortest document that holds a few facts, their questions and tokens beyond a window.
inline constexpr int64_t kLeastCalibrationTokens = 512;

// Document `index` of a seed: at most `length` tokens, in the model's own chat format. A user turn
// with the document and a question, the answer, then further questions and answers, 12 if the
// document has that many facts; a fact for every 64 to 256 tokens. The kinds of facts take turns by
// index, the facts of one document are of one kind and compete. The targets are the answers' tokens
// and what ends their turns. Errors: kInvalidArgument (`length` is too short),
// kFailedPrecondition (the template rewrites earlier turns), those of EncodeChat.
Result<ScoredDocument> MakeCalibrationDocument(const LoadedModel& model, int64_t length,
                                               uint64_t seed, int64_t index);

// Drops the targets of the answers that the model does not give: those with a token of a
// probability below 1/2. `losses`: of the targets, in nats. Such answers are lost or won by chance
// when something small changes, so they would hide what a head is worth. Returns how many answers
// stay and how many there were.
struct AnswerCount {
  int64_t given = 0;
  int64_t asked = 0;
};
AnswerCount KeepGivenAnswers(const std::vector<double>& losses, ScoredDocument* document);

}  // namespace lserve
