#include "eval/partial_results.h"

#include <cstdio>
#include <fstream>
#include <sstream>

#include "base/file.h"

namespace lserve {
namespace {

bool KeepsResults(const std::string& path) { return !path.empty() && path != "-"; }
std::string PartialPath(const std::string& path) { return path + ".rows.partial"; }

void WriteLine(std::ostream& out, const std::string& run, const std::string& id,
               const Json& value) {
  out << DumpJsonLine({{"run", run}, {"id", id}, {"value", value}}) << "\n" << std::flush;
}

}  // namespace

Result<PartialResults> PartialResults::Open(const std::string& path, bool resume,
                                            const OrderedJson& header) {
  PartialResults partial;
  if (!KeepsResults(path)) {
    return partial;
  }
  const std::string file = PartialPath(path);
  if (resume && FileExists(file)) {
    ASSIGN_OR_RETURN(const std::string text, ReadFile(file));
    std::istringstream lines(text);
    bool first = true;
    for (std::string line; std::getline(lines, line);) {
      Result<Json> row = ParseJson(line, file);
      if (!row.ok()) {
        break;  // the line that the interruption cut
      }
      if (first && *row != Json(header)) {
        return InvalidArgument("{} was made with other settings; run without --resume", file);
      }
      if (!first) {
        const Json* run = FindKey(*row, "run");
        const Json* id = FindKey(*row, "id");
        const Json* value = FindKey(*row, "value");
        if (run == nullptr || !run->is_string() || id == nullptr || !id->is_string() ||
            value == nullptr) {
          return InvalidArgument("{} is no list of partial results; run without --resume", file);
        }
        partial.values_[{run->get<std::string>(), id->get<std::string>()}] = *value;
      }
      first = false;
    }
  }
  partial.out_ = std::make_unique<std::ofstream>(file, std::ios::trunc);
  *partial.out_ << DumpJsonLine(header) << "\n";
  for (const auto& [key, value] : partial.values_) {
    WriteLine(*partial.out_, key.first, key.second, value);
  }
  if (!*partial.out_) {
    return Internal("cannot write {}", file);
  }
  return partial;
}

const Json* PartialResults::Find(const std::string& run, const std::string& id) const {
  const auto found = values_.find({run, id});
  return found == values_.end() ? nullptr : &found->second;
}

void PartialResults::Write(const std::string& run, const std::string& id, Json value) {
  if (out_ != nullptr) {
    WriteLine(*out_, run, id, value);
  }
  values_[{run, id}] = std::move(value);
}

void PartialResults::Discard(const std::string& path) {
  if (KeepsResults(path)) {
    std::remove(PartialPath(path).c_str());
  }
}

}  // namespace lserve
