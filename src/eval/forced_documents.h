// Documents for teacher forcing: the long-generation suite and a text of the user's. Free
// functions, thread-safe.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/status.h"
#include "eval/suites.h"
#include "eval/teacher_forced.h"

namespace lserve {

inline constexpr const char* kLongGeneration = "long-generation";

// For each length, one chat a kQuestionsPerDocument samples: a document with many facts of all
// kinds fills what `decode_tokens` leave, then questions and their right answers follow, turn by
// turn, up to the length. Everything after the document is fed as decode rows. Errors:
// kInvalidArgument (a length that does not hold a document of 512 tokens besides; both are named),
// those of EncodeChat.
Result<std::vector<ForcedDocument>> MakeLongGeneration(const LoadedModel& model,
                                                       const SuiteOptions& options,
                                                       int64_t decode_tokens);

// The first tokens of a text file, for each length; no lengths: all of it, cut to the context. The
// last `decode_tokens`, at most half, are also fed as decode rows.
// Errors: kNotFound; kInvalidArgument (shorter than a length, or than 512 tokens; both are named).
Result<std::vector<ForcedDocument>> MakeTextDocuments(const LoadedModel& model,
                                                      const std::string& path,
                                                      const std::vector<int64_t>& lengths,
                                                      int64_t context, int64_t decode_tokens);

}  // namespace lserve
