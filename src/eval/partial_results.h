// PartialResults: what a run has finished, on disk, so that an interrupted run can go on. One JSON
// object a line: first a header that says what was asked, then a value for each run and id. Used by
// one thread.
#pragma once

#include <map>
#include <memory>
#include <ostream>
#include <string>
#include <utility>

#include "base/json.h"
#include "base/status.h"

namespace lserve {

class PartialResults {
 public:
  // The file stands beside `path`, the result's; an empty path or "-": nothing is kept. With
  // `resume` reads what is there, else starts afresh.
  // Errors: kInvalidArgument (resumed under another header), kInternal (not writable).
  static Result<PartialResults> Open(const std::string& path, bool resume,
                                     const OrderedJson& header);

  // Null if not finished; valid until the next Write.
  const Json* Find(const std::string& run, const std::string& id) const;
  void Write(const std::string& run, const std::string& id, Json value);
  // Deletes the file that stands beside `path`: the result is complete.
  static void Discard(const std::string& path);

 private:
  std::unique_ptr<std::ostream> out_;
  std::map<std::pair<std::string, std::string>, Json> values_;
};

}  // namespace lserve
