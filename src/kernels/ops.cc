// Validate: what must hold of a POD's host fields, for every backend.
#include "kernels/ops.h"

#include <cmath>

namespace lserve {
namespace {

// Errors name the operation, the field and its value.
Status AtLeast(const char* op, const char* field, int64_t value, int64_t least) {
  if (value < least) {
    return InvalidArgument("{}: {} is {}, must be at least {}", op, field, value, least);
  }
  return OkStatus();
}

Status Between(const char* op, const char* field, int64_t value, int64_t least, int64_t most) {
  if (value < least || value > most) {
    return InvalidArgument("{}: {} is {}, must be {} to {}", op, field, value, least, most);
  }
  return OkStatus();
}

Status NotNull(const char* op, const char* field, const void* pointer) {
  if (pointer == nullptr) {
    return InvalidArgument("{}: {} is null", op, field);
  }
  return OkStatus();
}

Status Activations(const char* op, DType dtype) {
  if (dtype != DType::kFloat32 && dtype != DType::kBFloat16) {
    return InvalidArgument("{}: activations are {}, must be bfloat16 or float32", op,
                           DTypeName(dtype));
  }
  return OkStatus();
}

Status CheckLayout(const char* op, const char* lane, const KvPageLayout& layout) {
  RETURN_IF_ERROR(AtLeast(op, lane, layout.heads, 0));
  RETURN_IF_ERROR(Between(op, "layout.head_dim", layout.head_dim, 1, 256));
  if (layout.padded_head_dim != PaddedHeadDim(layout.head_dim)) {
    return InvalidArgument("{}: layout.padded_head_dim is {}, must be {} for head_dim {}", op,
                           layout.padded_head_dim, PaddedHeadDim(layout.head_dim), layout.head_dim);
  }
  return OkStatus();
}

// The pages of a lane hold, or read back as, what the activations are rounded to.
Status FormatFits(const char* op, const KvPageLayout& layout, DType dtype) {
  const KvFormat wanted = dtype == DType::kFloat32 ? KvFormat::kFloat32 : KvFormat::kBFloat16;
  if (OpenFormat(layout.format) != wanted) {
    return InvalidArgument("{}: the cache format does not fit {} activations", op,
                           DTypeName(dtype));
  }
  return OkStatus();
}

// max_chunks: of an operation that reads or writes chunk_pages, else 0.
Status CheckLane(const char* op, const RetrievalLane& lane, int32_t max_chunks) {
  RETURN_IF_ERROR(CheckLayout(op, "retrieval heads", lane.layout));
  if (lane.layout.heads == 0) {
    return OkStatus();
  }
  RETURN_IF_ERROR(AtLeast(op, "retrieval.max_pages", lane.max_pages, 1));
  RETURN_IF_ERROR(NotNull(op, "retrieval.pages", lane.pages));
  RETURN_IF_ERROR(NotNull(op, "retrieval.open", lane.open));
  if (lane.layout.boxed() && max_chunks > 0) {
    RETURN_IF_ERROR(NotNull(op, "retrieval.chunk_pages", lane.chunk_pages));
  }
  return NotNull(op, "retrieval.table", lane.table);
}

Status CheckLane(const char* op, const StreamingLane& lane, int32_t max_chunks) {
  RETURN_IF_ERROR(CheckLayout(op, "streaming heads", lane.layout));
  if (lane.layout.heads == 0) {
    return OkStatus();
  }
  if (lane.layout.score != PageScore::kNone) {
    return InvalidArgument("{}: streaming pages carry statistics, which nothing reads", op);
  }
  if (lane.layout.boxed()) {
    return InvalidArgument("{}: streaming pages are boxed, but they never close", op);
  }
  RETURN_IF_ERROR(AtLeast(op, "streaming.sink_tokens", lane.sink_tokens, 0));
  RETURN_IF_ERROR(AtLeast(op, "streaming.local_tokens", lane.local_tokens, 1));
  const int64_t sink_pages = (int64_t{lane.sink_tokens} + kPageTokens - 1) / kPageTokens;
  const int64_t ring_pages = (int64_t{lane.local_tokens} - 1 + kPageTokens - 1) / kPageTokens + 1;
  RETURN_IF_ERROR(Between(op, "streaming.sink_pages", lane.sink_pages, sink_pages, sink_pages));
  RETURN_IF_ERROR(Between(op, "streaming.ring_pages", lane.ring_pages, ring_pages, ring_pages));
  RETURN_IF_ERROR(NotNull(op, "streaming.pages", lane.pages));
  RETURN_IF_ERROR(NotNull(op, "streaming.table", lane.table));
  return max_chunks == 0 ? OkStatus() : NotNull(op, "streaming.chunk_pages", lane.chunk_pages);
}

Status CheckBatch(const char* op, const BatchView& batch) { return Validate(batch).Annotate(op); }

// The query heads of both lanes are the layer's query heads.
Status CheckHeads(const char* op, const KvPageLayout& retrieval, const KvPageLayout& streaming,
                  int32_t q_heads, int32_t group) {
  RETURN_IF_ERROR(AtLeast(op, "group", group, 1));
  const int64_t kv_heads = int64_t{retrieval.heads} + streaming.heads;
  RETURN_IF_ERROR(AtLeast(op, "KV heads of both lanes", kv_heads, 1));
  if (kv_heads * group != q_heads) {
    return InvalidArgument("{}: {} query heads are not {} KV heads times a group of {}", op,
                           q_heads, kv_heads, group);
  }
  if (retrieval.heads > 0 && streaming.heads > 0 && retrieval.head_dim != streaming.head_dim) {
    return InvalidArgument("{}: head_dim is {} in the retrieval lane, {} in the streaming lane", op,
                           retrieval.head_dim, streaming.head_dim);
  }
  return OkStatus();
}

Status CheckLists(const char* op, const UnitLists& lists, int32_t retrieval_heads,
                  const SelectionPolicy& policy) {
  RETURN_IF_ERROR(NotNull(op, "lists.units", lists.units));
  RETURN_IF_ERROR(NotNull(op, "lists.counts", lists.counts));
  RETURN_IF_ERROR(AtLeast(op, "lists.first_list", lists.first_list, 0));
  RETURN_IF_ERROR(AtLeast(op, "lists.slot_lists", lists.slot_lists,
                          int64_t{lists.first_list} + retrieval_heads));
  if (policy.reuse_distance > 0.0f) {
    RETURN_IF_ERROR(NotNull(op, "lists.queries", lists.queries));
  }
  const int32_t capacity = policy.token_budget / policy.unit_tokens;
  return Between(op, "lists.capacity", lists.capacity, capacity, capacity);
}

}  // namespace

Status Validate(const BatchView& params) {
  const char* op = "batch";
  RETURN_IF_ERROR(AtLeast(op, "max_rows", params.max_rows, 1));
  RETURN_IF_ERROR(AtLeast(op, "max_slots", params.max_slots, 1));
  RETURN_IF_ERROR(Between(op, "max_decode_rows", params.max_decode_rows, 0, params.max_rows));
  RETURN_IF_ERROR(Between(op, "max_chunks", params.max_chunks, 0, params.max_rows));
  RETURN_IF_ERROR(Between(op, "max_logit_rows", params.max_logit_rows, 0, params.max_rows));
  RETURN_IF_ERROR(NotNull(op, "counts", params.counts));
  RETURN_IF_ERROR(NotNull(op, "row_slot", params.row_slot));
  RETURN_IF_ERROR(NotNull(op, "row_position", params.row_position));
  RETURN_IF_ERROR(NotNull(op, "row_token", params.row_token));
  if (params.max_chunks > 0) {
    RETURN_IF_ERROR(NotNull(op, "chunks", params.chunks));
  }
  return params.max_logit_rows == 0 ? OkStatus() : NotNull(op, "logit_row", params.logit_row);
}

Status Validate(const EmbedRowsParams& params) {
  const char* op = "embed_rows";
  RETURN_IF_ERROR(CheckBatch(op, params.batch));
  RETURN_IF_ERROR(Activations(op, params.dtype));
  if (params.table_dtype != DType::kBFloat16 && params.table_dtype != DType::kFloat16 &&
      params.table_dtype != DType::kFloat32) {
    return InvalidArgument("{}: the table is {}, must be bfloat16, float16 or float32", op,
                           DTypeName(params.table_dtype));
  }
  RETURN_IF_ERROR(AtLeast(op, "vocab_size", params.vocab_size, 1));
  RETURN_IF_ERROR(AtLeast(op, "hidden", params.hidden, 1));
  RETURN_IF_ERROR(NotNull(op, "table", params.table));
  RETURN_IF_ERROR(NotNull(op, "last_token", params.last_token));
  return NotNull(op, "output", params.output);
}

Status Validate(const AddRmsNormParams& params) {
  const char* op = "add_rms_norm";
  RETURN_IF_ERROR(CheckBatch(op, params.batch));
  RETURN_IF_ERROR(Activations(op, params.dtype));
  RETURN_IF_ERROR(AtLeast(op, "hidden", params.hidden, 1));
  if (!(params.epsilon >= 0.0f)) {
    return InvalidArgument("{}: epsilon is {}, must be at least 0", op, params.epsilon);
  }
  RETURN_IF_ERROR(NotNull(op, "residual", params.residual));
  RETURN_IF_ERROR(NotNull(op, "weight", params.weight));
  return NotNull(op, "output", params.output);
}

AddRmsNormParams NormOfInput(const LinearParams& params) {
  return AddRmsNormParams{.batch = params.batch,
                          .rows = params.rows,
                          .residual = const_cast<void*>(params.input),  // only read
                          .addend = nullptr,
                          .weight = params.norm.weight,
                          .output = params.norm.output,
                          .dtype = params.dtype,
                          .hidden = static_cast<int32_t>(params.weight->in_features()),
                          .epsilon = params.norm.epsilon};
}

LinearParams BehindNorm(const LinearParams& params) {
  LinearParams behind = params;
  behind.input = params.norm.output;
  behind.norm = {};
  return behind;
}

Status Validate(const LinearParams& params) {
  const char* op = "linear";
  RETURN_IF_ERROR(CheckBatch(op, params.batch));
  RETURN_IF_ERROR(Activations(op, params.dtype));
  if (params.output_dtype != params.dtype && params.output_dtype != DType::kFloat32) {
    return InvalidArgument("{}: output_dtype is {}, must be {} or float32", op,
                           DTypeName(params.output_dtype), DTypeName(params.dtype));
  }
  RETURN_IF_ERROR(NotNull(op, "weight", params.weight));
  RETURN_IF_ERROR(NotNull(op, "input", params.input));
  RETURN_IF_ERROR(NotNull(op, "output", params.output));
  if (params.epilogue == Epilogue::kBias) {
    RETURN_IF_ERROR(NotNull(op, "bias", params.bias));
  } else if (params.bias != nullptr) {
    return InvalidArgument("{}: a bias is given, but the epilogue adds none", op);
  }
  if (params.epilogue == Epilogue::kSiluMul && params.weight->out_features() % 2 != 0) {
    return InvalidArgument("{}: gate and up together have {} rows, must be even", op,
                           params.weight->out_features());
  }
  return params.norm.weight == nullptr ? OkStatus() : Validate(NormOfInput(params)).Annotate(op);
}

Status Validate(const RopeAnglesParams& params) {
  const char* op = "rope_angles";
  RETURN_IF_ERROR(CheckBatch(op, params.batch));
  RETURN_IF_ERROR(Between(op, "head_dim", params.head_dim, 2, 256));
  if (params.head_dim % 2 != 0) {
    return InvalidArgument("{}: head_dim is {}, must be even", op, params.head_dim);
  }
  RETURN_IF_ERROR(NotNull(op, "inverse_frequencies", params.inverse_frequencies));
  return NotNull(op, "angles", params.angles);
}

Status Validate(const RopeAppendParams& params) {
  const char* op = "rope_append";
  RETURN_IF_ERROR(CheckBatch(op, params.batch));
  RETURN_IF_ERROR(Activations(op, params.dtype));
  RETURN_IF_ERROR(CheckLane(op, params.retrieval, params.batch.max_chunks));
  RETURN_IF_ERROR(CheckLane(op, params.streaming, params.batch.max_chunks));
  RETURN_IF_ERROR(FormatFits(op, params.retrieval.layout, params.dtype));
  RETURN_IF_ERROR(FormatFits(op, params.streaming.layout, params.dtype));
  RETURN_IF_ERROR(Between(op, "head_dim", params.head_dim, 2, 256));
  if (params.head_dim % 2 != 0) {
    return InvalidArgument("{}: head_dim is {}, must be even", op, params.head_dim);
  }
  for (const KvPageLayout& layout : {params.retrieval.layout, params.streaming.layout}) {
    RETURN_IF_ERROR(
        Between(op, "layout.head_dim", layout.head_dim, params.head_dim, params.head_dim));
  }
  RETURN_IF_ERROR(AtLeast(op, "kv_heads", params.kv_heads, 1));
  const int32_t lane_heads = params.retrieval.layout.heads + params.streaming.layout.heads;
  if (params.kv_heads != lane_heads) {
    return InvalidArgument("{}: kv_heads is {}, but the lanes have {} heads", op, params.kv_heads,
                           lane_heads);
  }
  RETURN_IF_ERROR(AtLeast(op, "q_heads", params.q_heads, params.kv_heads));
  if (params.q_heads % params.kv_heads != 0) {
    return InvalidArgument("{}: {} query heads are not a multiple of {} KV heads", op,
                           params.q_heads, params.kv_heads);
  }
  RETURN_IF_ERROR(NotNull(op, "qkv", params.qkv));
  RETURN_IF_ERROR(NotNull(op, "angles", params.angles));
  return NotNull(op, "q", params.q);
}

Status Validate(const AppendStreamingParams& params) {
  const char* op = "append_streaming";
  RETURN_IF_ERROR(CheckBatch(op, params.batch));
  return CheckLane(op, params.streaming, params.batch.max_chunks);
}

Status Validate(const SelectionPolicy& policy) {
  const char* op = "selection policy";
  if (policy.unit_tokens != 64 && policy.unit_tokens != 32 && policy.unit_tokens != 16) {
    return InvalidArgument("{}: the selection unit is {} tokens, must be 64, 32 or 16", op,
                           policy.unit_tokens);
  }
  RETURN_IF_ERROR(AtLeast(op, "reuse interval", policy.reuse_interval, 1));
  if (!(policy.reuse_distance >= 0.0f)) {
    return InvalidArgument("{}: the reuse distance is {}, must be at least 0", op,
                           policy.reuse_distance);
  }
  RETURN_IF_ERROR(AtLeast(op, "dense_tokens", policy.dense_tokens, 0));
  if (policy.token_budget == 0) {
    return OkStatus();
  }
  const int32_t least = kPageTokens + 3 * policy.unit_tokens;
  if (policy.token_budget < least || policy.token_budget % policy.unit_tokens != 0) {
    return InvalidArgument("{}: the token budget is {}, must be a multiple of {} and at least {}",
                           op, policy.token_budget, policy.unit_tokens, least);
  }
  return OkStatus();
}

Status Validate(const SelectUnitsParams& params) {
  const char* op = "select_units";
  RETURN_IF_ERROR(CheckBatch(op, params.batch));
  RETURN_IF_ERROR(Activations(op, params.dtype));
  RETURN_IF_ERROR(Validate(params.policy).Annotate(op));
  RETURN_IF_ERROR(CheckLane(op, params.retrieval, 0));
  RETURN_IF_ERROR(FormatFits(op, params.retrieval.layout, params.dtype));
  if (params.retrieval.layout.score == PageScore::kNone) {
    return InvalidArgument("{}: the pages carry no statistics to score", op);
  }
  RETURN_IF_ERROR(AtLeast(op, "group", params.group, 1));
  RETURN_IF_ERROR(AtLeast(op, "q_heads", params.q_heads,
                          int64_t{params.retrieval.layout.heads} * params.group));
  if (params.retrieval.layout.heads == 0) {
    return OkStatus();
  }
  RETURN_IF_ERROR(NotNull(op, "q", params.q));
  RETURN_IF_ERROR(NotNull(op, "prompt_tokens", params.prompt_tokens));
  return CheckLists(op, params.lists, params.retrieval.layout.heads, params.policy);
}

Status Validate(const AttendDecodeParams& params) {
  const char* op = "attend_decode";
  RETURN_IF_ERROR(CheckBatch(op, params.batch));
  RETURN_IF_ERROR(Activations(op, params.dtype));
  RETURN_IF_ERROR(CheckLane(op, params.retrieval, 0));
  RETURN_IF_ERROR(CheckLane(op, params.streaming, 0));
  RETURN_IF_ERROR(FormatFits(op, params.retrieval.layout, params.dtype));
  RETURN_IF_ERROR(FormatFits(op, params.streaming.layout, params.dtype));
  RETURN_IF_ERROR(CheckHeads(op, params.retrieval.layout, params.streaming.layout, params.q_heads,
                             params.group));
  RETURN_IF_ERROR(NotNull(op, "q", params.q));
  RETURN_IF_ERROR(NotNull(op, "output", params.output));
  if (params.lists.units == nullptr) {
    return OkStatus();
  }
  RETURN_IF_ERROR(Validate(params.policy).Annotate(op));
  return CheckLists(op, params.lists, params.retrieval.layout.heads, params.policy);
}

Status Validate(const PrefillPolicy& policy) {
  const char* op = "prefill policy";
  if (!(policy.threshold >= 0.0f && policy.threshold <= 1.0f)) {
    return InvalidArgument("{}: the threshold is {}, must be 0 to 1", op, policy.threshold);
  }
  return AtLeast(op, "dense_tokens", policy.dense_tokens, 0);
}

Status Validate(const AttendPrefillParams& params) {
  const char* op = "attend_prefill";
  RETURN_IF_ERROR(CheckBatch(op, params.batch));
  RETURN_IF_ERROR(Activations(op, params.dtype));
  RETURN_IF_ERROR(CheckLane(op, params.retrieval, params.batch.max_chunks));
  RETURN_IF_ERROR(CheckLane(op, params.streaming, params.batch.max_chunks));
  RETURN_IF_ERROR(FormatFits(op, params.retrieval.layout, params.dtype));
  RETURN_IF_ERROR(FormatFits(op, params.streaming.layout, params.dtype));
  RETURN_IF_ERROR(CheckHeads(op, params.retrieval.layout, params.streaming.layout, params.q_heads,
                             params.group));
  if ((params.block_offsets == nullptr) != (params.block_ids == nullptr)) {
    return InvalidArgument("{}: block_offsets and block_ids must be given together", op);
  }
  RETURN_IF_ERROR(Validate(params.policy).Annotate(op));
  RETURN_IF_ERROR(NotNull(op, "q", params.q));
  return NotNull(op, "output", params.output);
}

Status Validate(const SampleParams& params) {
  const char* op = "sample";
  RETURN_IF_ERROR(CheckBatch(op, params.batch));
  RETURN_IF_ERROR(AtLeast(op, "vocab_size", params.vocab_size, 1));
  RETURN_IF_ERROR(NotNull(op, "logits", params.logits));
  RETURN_IF_ERROR(NotNull(op, "sampling", params.sampling));
  RETURN_IF_ERROR(NotNull(op, "token_counts", params.token_counts));
  RETURN_IF_ERROR(NotNull(op, "prompt_seen", params.prompt_seen));
  RETURN_IF_ERROR(NotNull(op, "last_token", params.last_token));
  return NotNull(op, "sampled", params.sampled);
}

Status Validate(const FillNormalParams& params) {
  const char* op = "fill_normal";
  RETURN_IF_ERROR(Activations(op, params.dtype));
  RETURN_IF_ERROR(AtLeast(op, "count", params.count, 0));
  if (params.first % 2 != 0) {
    return InvalidArgument("{}: first is {}, must be even", op, params.first);
  }
  if (!(std::isfinite(params.deviation) && params.deviation >= 0.0f)) {
    return InvalidArgument("{}: deviation is {}, must be finite and at least 0", op,
                           params.deviation);
  }
  return params.count == 0 ? OkStatus() : NotNull(op, "data", params.data);
}

}  // namespace lserve
