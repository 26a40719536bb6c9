// CHECK: aborts with file, line and values when an invariant of the program is broken. Never used
// for bad input (base/status.h). DCHECK vanishes in release builds. Thread-safe.
#pragma once

#include <fmt/format.h>

#include <string_view>

namespace lserve {

// Prints the message to standard error and aborts.
[[noreturn]] void CheckFailed(const char* file, int line, std::string_view message);

}  // namespace lserve

#define CHECK_MSG(condition, ...)                                                               \
  do {                                                                                          \
    if (!(condition)) [[unlikely]] {                                                            \
      ::lserve::CheckFailed(__FILE__, __LINE__,                                                 \
                            fmt::format("CHECK({}): ", #condition) + fmt::format(__VA_ARGS__)); \
    }                                                                                           \
  } while (false)

#define CHECK(condition)                                                  \
  do {                                                                    \
    if (!(condition)) [[unlikely]] {                                      \
      ::lserve::CheckFailed(__FILE__, __LINE__, "CHECK(" #condition ")"); \
    }                                                                     \
  } while (false)

#define LSERVE_CHECK_OP(op, a, b)                                                        \
  do {                                                                                   \
    const auto& check_a = (a);                                                           \
    const auto& check_b = (b);                                                           \
    if (!(check_a op check_b)) [[unlikely]] {                                            \
      ::lserve::CheckFailed(                                                             \
          __FILE__, __LINE__,                                                            \
          fmt::format("CHECK({} {} {}): {} against {}", #a, #op, #b, check_a, check_b)); \
    }                                                                                    \
  } while (false)

#define CHECK_EQ(a, b) LSERVE_CHECK_OP(==, a, b)
#define CHECK_NE(a, b) LSERVE_CHECK_OP(!=, a, b)
#define CHECK_LT(a, b) LSERVE_CHECK_OP(<, a, b)
#define CHECK_LE(a, b) LSERVE_CHECK_OP(<=, a, b)
#define CHECK_GT(a, b) LSERVE_CHECK_OP(>, a, b)
#define CHECK_GE(a, b) LSERVE_CHECK_OP(>=, a, b)

#define CHECK_OK(expr)                                                                       \
  do {                                                                                       \
    if (const auto& check_status = (expr); !check_status.ok()) [[unlikely]] {                \
      ::lserve::CheckFailed(__FILE__, __LINE__,                                              \
                            fmt::format("CHECK_OK({}): {}", #expr, check_status.message())); \
    }                                                                                        \
  } while (false)

#ifdef NDEBUG
#define DCHECK(condition) \
  do {                    \
  } while (false && (condition))
#else
#define DCHECK(condition) CHECK(condition)
#endif
