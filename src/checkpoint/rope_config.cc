#include "checkpoint/rope_config.h"

#include <algorithm>

#include "checkpoint/config_fields.h"
#include "checkpoint/error_text.h"

namespace lserve {
namespace {

constexpr double kDefaultTheta = 10000.0;
constexpr double kMaxTheta = 1e15;
constexpr double kMaxFactor = 1e4;
constexpr double kMaxFrequencyFactor = 1e6;  // low_freq_factor, high_freq_factor, the betas
constexpr double kMaxMagnitude = 1e3;        // attention_factor, mscale, mscale_all_dim
constexpr const char* kOriginalLength = "original_max_position_embeddings";

// The object that says how RoPE is scaled: `rope_scaling` where it is not empty, else
// `rope_parameters`; an empty object if there is neither.
Result<Json> ScalingObject(const Json& json) {
  for (const char* key : {"rope_scaling", "rope_parameters"}) {
    const Json* value = FindValue(json, key);
    if (value == nullptr) {
      continue;
    }
    if (!value->is_object()) {
      return InvalidArgument("\"{}\" must be an object or null, not {}", key,
                             ShownForError(*value));
    }
    for (const auto& [name, field] : value->items()) {
      if (field.is_object()) {
        return Unimplemented("\"{}\" with parameters of its own for {} is not supported", key,
                             QuotedForError(name));
      }
    }
    if (!value->empty()) {
      return *value;
    }
  }
  return Json::object();
}

Result<RopeType> ParseRopeType(const Json& scaling) {
  const Json* name = FindValue(scaling, "rope_type");
  if (name == nullptr) {
    name = FindValue(scaling, "type");
  }
  if (name == nullptr) {
    return RopeType::kDefault;
  }
  for (const RopeType type :
       {RopeType::kDefault, RopeType::kLinear, RopeType::kLlama3, RopeType::kYarn}) {
    if (*name == RopeTypeName(type)) {
      return type;
    }
  }
  return Unimplemented("RoPE type {} is not supported (supported: default, linear, llama3, yarn)",
                       ShownForError(*name));
}

Status ParseLlama3(const Json& scaling, RopeConfig* rope) {
  const NumberRange range = AboveUpTo(0.0, kMaxFrequencyFactor);
  ASSIGN_OR_RETURN(rope->low_freq_factor, RequiredNumber(scaling, "low_freq_factor", range));
  ASSIGN_OR_RETURN(rope->high_freq_factor, RequiredNumber(scaling, "high_freq_factor", range));
  if (rope->high_freq_factor <= rope->low_freq_factor) {
    return InvalidArgument("\"high_freq_factor\" {} must be above \"low_freq_factor\" {}",
                           rope->high_freq_factor, rope->low_freq_factor);
  }
  return OkStatus();
}

Status ParseYarn(const Json& scaling, RopeConfig* rope) {
  const NumberRange beta = AboveUpTo(0.0, kMaxFrequencyFactor);
  ASSIGN_OR_RETURN(rope->beta_fast, NumberOr(scaling, "beta_fast", beta, 32.0));
  ASSIGN_OR_RETURN(rope->beta_slow, NumberOr(scaling, "beta_slow", beta, 1.0));
  if (rope->beta_fast <= rope->beta_slow) {
    return InvalidArgument("\"beta_fast\" {} must be above \"beta_slow\" {}", rope->beta_fast,
                           rope->beta_slow);
  }
  ASSIGN_OR_RETURN(rope->attention_factor,
                   OptionalNumber(scaling, "attention_factor", AboveUpTo(0.0, kMaxMagnitude)));
  ASSIGN_OR_RETURN(rope->mscale, OptionalNumber(scaling, "mscale", FromTo(0.0, kMaxMagnitude)));
  ASSIGN_OR_RETURN(rope->mscale_all_dim,
                   OptionalNumber(scaling, "mscale_all_dim", FromTo(0.0, kMaxMagnitude)));
  ASSIGN_OR_RETURN(rope->truncate, BoolOr(scaling, "truncate", true));
  return OkStatus();
}

// The length before stretching. transformers lets a field beside the scaling object win, and falls
// back on max_position_embeddings.
Result<int64_t> OriginalLength(const Json& json, const Json& scaling,
                               int64_t max_position_embeddings) {
  for (const Json* owner : {&json, &scaling}) {
    if (const Json* value = FindValue(*owner, kOriginalLength); value != nullptr) {
      return ToInteger(*value, kOriginalLength, 1, kMaxPositions);
    }
  }
  return max_position_embeddings;
}

}  // namespace

Result<RopeConfig> ParseRopeConfig(const Json& json, int64_t max_position_embeddings) {
  RopeConfig rope;
  ASSIGN_OR_RETURN(const Json scaling, ScalingObject(json));
  ASSIGN_OR_RETURN(rope.type, ParseRopeType(scaling));
  const Json& theta_owner = FindValue(scaling, "rope_theta") != nullptr ? scaling : json;
  ASSIGN_OR_RETURN(rope.theta,
                   NumberOr(theta_owner, "rope_theta", AboveUpTo(1.0, kMaxTheta), kDefaultTheta));
  for (const Json* owner : {&scaling, &json}) {
    const Json* partial = FindValue(*owner, "partial_rotary_factor");
    if (partial != nullptr && *partial != 1.0) {
      return Unimplemented("\"partial_rotary_factor\" {} is not supported (supported: 1)",
                           ShownForError(*partial));
    }
  }
  if (rope.type == RopeType::kDefault) {
    return rope;
  }
  const NumberRange factor = FromTo(1.0, kMaxFactor);
  if (rope.type == RopeType::kLinear) {
    ASSIGN_OR_RETURN(rope.factor, RequiredNumber(scaling, "factor", factor));
    return rope;
  }
  ASSIGN_OR_RETURN(rope.original_max_position_embeddings,
                   OriginalLength(json, scaling, max_position_embeddings));
  if (rope.type == RopeType::kLlama3) {
    ASSIGN_OR_RETURN(rope.factor, RequiredNumber(scaling, "factor", factor));
    RETURN_IF_ERROR(ParseLlama3(scaling, &rope));
  } else {
    const double stretched = static_cast<double>(max_position_embeddings) /
                             static_cast<double>(rope.original_max_position_embeddings);
    ASSIGN_OR_RETURN(rope.factor, NumberOr(scaling, "factor", factor, stretched));
    RETURN_IF_ERROR(ParseYarn(scaling, &rope));
  }
  return rope;
}

Result<int64_t> StretchedContext(const RopeConfig& rope, int64_t max_position_embeddings) {
  double context = static_cast<double>(max_position_embeddings);
  if (rope.type == RopeType::kLinear) {
    context *= rope.factor;
  } else if (rope.type == RopeType::kYarn) {
    const double original = static_cast<double>(rope.original_max_position_embeddings);
    context = std::max(context, original * rope.factor);
  }
  if (context > static_cast<double>(kMaxPositions)) {
    return InvalidArgument("the RoPE \"factor\" {} stretches the context to {:.0f}, above {}",
                           rope.factor, context, kMaxPositions);
  }
  return static_cast<int64_t>(context);
}

}  // namespace lserve
