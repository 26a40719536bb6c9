// One function a suite: makes a document of a given room and the questions on it. For suites.cc.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/status.h"
#include "eval/facts.h"
#include "eval/questions.h"

namespace lserve {

struct DocumentRequest {
  int64_t tokens = 0;     // of the document, at most
  int64_t questions = 1;  // wanted; a task that allows only one makes one
  double depth = 0.5;     // niah
  uint64_t seed = 0;
  TokenCounter count_tokens;
};

// A document and its questions; id, kind, length and document are the caller's to fill.
struct SuiteDocument {
  std::string text;
  std::vector<Question> questions;
};

// Facts in filler (suite_facts.cc).
Result<SuiteDocument> MakeNiah(const DocumentRequest& request);
Result<SuiteDocument> MakeMultikey(const DocumentRequest& request);
Result<SuiteDocument> MakeMultivalue(const DocumentRequest& request);
Result<SuiteDocument> MakeMultiquery(const DocumentRequest& request);
Result<SuiteDocument> MakeVariableTracking(const DocumentRequest& request);

// Lists that are all there is in the document (suite_lists.cc).
Result<SuiteDocument> MakeCommonWords(const DocumentRequest& request);
Result<SuiteDocument> MakeFrequentWords(const DocumentRequest& request);
Result<SuiteDocument> MakeJsonKv(const DocumentRequest& request);
Result<SuiteDocument> MakeManyShot(const DocumentRequest& request);

}  // namespace lserve
