// The operations of the forward pass: each is one POD of parameters and one entry in a backend's
// table. `ref` defines what each computes; `cpu` and `cuda` compute the same within a tolerance.
//
// A POD holds only what a captured graph may hold: shapes, upper bounds, strides and addresses that
// stay fixed. What changes from step to step lies in device arrays: those of the batch (BatchView)
// and those indexed by slot, a number that stays with a sequence while it runs. Kernels loop to the
// device-side counts; a POD alone decides variant, grid and workspace.
//
// Rows of a batch: [0, decode rows) are decode rows, one generated token each; after them come the
// prefill rows, prompt tokens, in chunks of consecutive positions of one sequence. A row's kind
// decides how it is computed, so results do not depend on what else is in the batch.
//
// Row buffers have room for kRowSlack rows beyond max_rows; an operation may write there.
// Activations are bf16 or float32 (dtype); sums are float32 or better, rounded once on output.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/status.h"
#include "kernels/kv_layout.h"
#include "tensor/dtype.h"

namespace lserve {

inline constexpr int32_t kRowSlack = 128;

// Index into BatchView::counts.
enum BatchCount : int32_t {
  kDecodeRows,
  kPrefillRows,
  kChunks,
  kLogitRows,
  kBatchCounts,  // how many counts there are
};

// Consecutive prompt tokens of one sequence in this step.
struct PrefillChunk {
  int32_t slot;
  int32_t first_position;     // position of its first row; tokens before it are in the cache
  int32_t first_row;          // index of its first row in the batch
  int32_t rows;               // at least 1
  int32_t first_chunk_page;   // where its first page lies in a lane's chunk_pages
  int32_t first_query_block;  // index of its first query block in this step (block lists)
};

// One step's rows, in device memory at fixed addresses.
struct BatchView {
  const int32_t* counts;        // [kBatchCounts]
  const int32_t* row_slot;      // [max_rows]
  const int32_t* row_position;  // [max_rows], 0-based position of the row's token
  const int32_t* row_token;     // [max_rows] token id; -1: last_token of the row's slot
  const PrefillChunk* chunks;   // [max_chunks], ascending in first_row
  const int32_t* logit_row;     // [max_logit_rows] rows whose logits are wanted
  int32_t max_rows;
  int32_t max_decode_rows;
  int32_t max_chunks;
  int32_t max_logit_rows;
  int32_t max_slots;
};

// ---- Embedding, normalisation, linear layers

// output[row] = table[token of row]
struct EmbedRowsParams {
  BatchView batch;
  const void* table;          // [vocab_size, hidden], row-major
  DType table_dtype;          // kBFloat16, kFloat16 or kFloat32
  const int32_t* last_token;  // [max_slots], what row_token -1 refers to
  void* output;               // [max_rows, hidden] of dtype
  DType dtype;
  int32_t vocab_size;
  int32_t hidden;
};

// Which rows an operation works on.
enum class RowSet : int32_t {
  kBatch,   // decode and prefill rows
  kLogits,  // counts[kLogitRows] rows, computed as decode rows are
};

// residual += addend (if any); output = residual / rms(residual) * weight, rms over the hidden
// dimension with eps (Zhang and Sennrich, 2019). With rows = kLogits, output row i is made from
// residual row logit_row[i], and the residual is not written.
struct AddRmsNormParams {
  BatchView batch;
  RowSet rows;
  void* residual;      // [max_rows, hidden] of dtype, in and out
  const void* addend;  // [max_rows, hidden] of dtype, or null
  const void* weight;  // [hidden] of dtype
  void* output;        // [max_rows or max_logit_rows, hidden] of dtype
  DType dtype;
  int32_t hidden;
  float epsilon;
};

// A weight matrix in a backend's own layout; made by Backend::PackLinear.
class PackedLinear {
 public:
  virtual ~PackedLinear() = default;
  int64_t out_features() const { return out_features_; }
  int64_t in_features() const { return in_features_; }

 protected:
  PackedLinear(int64_t out_features, int64_t in_features)
      : out_features_(out_features), in_features_(in_features) {}

 private:
  int64_t out_features_;
  int64_t in_features_;
};

enum class Epilogue : int32_t {
  kNone,
  kBias,      // + bias[n]
  kResidual,  // output += result, in place
  // The weight's rows are [gate; up], n / 2 each: output[j] = silu(gate[j]) * up[j], n / 2 columns.
  kSiluMul,
};

// The RMS norm that a linear layer may begin with: its input is then normalised as AddRmsNorm does
// without an addend, with row logit_row[i] as row i under kLogits.
struct InputNorm {
  const void* weight = nullptr;  // [k] of dtype; null: the input is taken as it is
  void* output = nullptr;        // [rows, k] of dtype, where the normalised rows may go
  float epsilon = 0.0f;
};

// output = epilogue(input * weight^T), of the input's norm if it has one. Of prefill rows a backend
// may round the product to output_dtype before kResidual or kSiluMul gets it, as the models'
// published code does.
struct LinearParams {
  BatchView batch;
  RowSet rows;
  const PackedLinear* weight;  // [n, k]
  const void* input;           // [rows, k] of dtype
  void* output;                // [rows, n, or n / 2 under kSiluMul] of output_dtype
  const void* bias;            // [n] of dtype under kBias, else null
  DType dtype;
  DType output_dtype;  // dtype, or kFloat32 (logits)
  Epilogue epilogue;
  void* workspace;
  InputNorm norm = {};
};

// The norm of a layer's input as an operation of its own, and the layer that follows it.
AddRmsNormParams NormOfInput(const LinearParams& params);
LinearParams BehindNorm(const LinearParams& params);

// ---- Cache
// ---------------------------------------------------------------------------------------

// One layer's part of the retrieval lane. A slot's newest page is open and lies in `open`; it
// closes into the page pool when the first token of the next page is appended. With p = position /
// 64 of the newest token, pages [0, p) are closed.
//
// Every query, of a decode row or of a prefill row, reads its own page in full and each page before
// it as it was closed. A boxed page is not what it was while open, so a chunk's pages that close in
// its own step also lie in chunk_pages, from RopeAppend to AttendPrefill.
struct RetrievalLane {
  std::byte* pages;      // [pool pages, layout.page_bytes()], closed pages
  std::byte* open;       // [max_slots, layout.open().page_bytes()]
  const int32_t* table;  // [max_slots, max_pages] page ids, valid for the closed pages
  int32_t max_pages;
  KvPageLayout layout;               // of closed pages
  std::byte* chunk_pages = nullptr;  // [max chunk pages, layout.open().page_bytes()]; boxed formats
};

// One layer's part of the streaming lane: page p below the sink pages lies in ring slot p, else in
// slot sink_pages + (p - sink_pages) mod ring_pages.
struct StreamingLane {
  std::byte* pages;        // [pool pages, layout.page_bytes()]
  const int32_t* table;    // [max_slots, sink_pages + ring_pages] page ids
  std::byte* chunk_pages;  // [max chunk pages, layout.page_bytes()], this step's prefill chunks
  int32_t sink_tokens;     // the query at i sees j <= i with j < sink_tokens or
  int32_t local_tokens;    // i - j < local_tokens; local_tokens >= 1
  int32_t sink_pages;      // ceil(sink_tokens / 64)
  int32_t ring_pages;      // ceil((local_tokens - 1) / 64) + 1
  KvPageLayout layout;     // PageScore::kNone
};

constexpr int32_t StreamingRingSlot(const StreamingLane& lane, int32_t page) {
  return page < lane.sink_pages ? page
                                : lane.sink_pages + (page - lane.sink_pages) % lane.ring_pages;
}

// angles[row][d] = (cos, sin) of float32(position) * float32(inverse_frequencies[d]), times scale.
struct RopeAnglesParams {
  BatchView batch;
  const float* inverse_frequencies;  // [head_dim / 2]
  float* angles;                     // [max_rows, head_dim / 2, 2]
  float scale;                       // 1, except for yarn
  int32_t head_dim;
};

// Bias, q/k normalisation, RoPE (NeoX halves: d pairs with d + head_dim / 2) and append of one
// layer's q, k, v. q and k are rounded to dtype after RoPE; statistics see the rounded keys.
//   decode row:   k, v go to the slot's open page and to its ring page; a full open page closes
//   first prefill row:  retrieval heads as above, page by page; streaming heads go to chunk_pages,
//   where
//                 a page that the chunk enters in its middle is completed from the ring
// Under kMinMax a page's statistics grow with every token and start afresh with its first; the
// sketch and the codes of a boxed format are made from the 64 tokens when the page closes. Nothing
// of a recycled page survives.
struct RopeAppendParams {
  BatchView batch;
  const void* qkv;      // [max_rows, (q_heads + 2 kv_heads) * head_dim] of dtype: q, k, v; heads
                        // in the layer's own order, retrieval first
  const void* bias;     // [(q_heads + 2 kv_heads) * head_dim] of dtype, or null
  const void* q_norm;   // [head_dim] of dtype: RMS-normalise each query head, or null
  const void* k_norm;   // [head_dim] of dtype, or null
  const float* angles;  // [max_rows, head_dim / 2, 2]
  void* q;              // [max_rows, q_heads, head_dim] of dtype, output
  RetrievalLane retrieval;
  StreamingLane streaming;
  DType dtype;
  int32_t q_heads;
  int32_t kv_heads;  // retrieval.layout.heads + streaming.layout.heads
  int32_t head_dim;
  float norm_epsilon;
};

// Copies each chunk's pages from chunk_pages to the sink and ring pages that still matter. After
// AttendPrefill, which reads the ring as it was before the chunk.
struct AppendStreamingParams {
  BatchView batch;
  StreamingLane streaming;
};

// ---- Selection and attention
// ---------------------------------------------------------------------

// One layer's selected units, by slot and retrieval head: list (slot, h) lies at
// units + (slot * slot_lists + first_list + h) * capacity, its length at the same index of counts.
// Unit numbers are logical (unit u holds tokens [u * unit, (u + 1) * unit)), unique, ascending.
// Count -1 means all units, and is what the host stores when a slot starts a sequence.
struct UnitLists {
  int32_t* units;
  int32_t* counts;
  int32_t slot_lists;  // retrieval heads of all layers
  int32_t first_list;  // retrieval heads of the layers before this one
  int32_t capacity;    // token_budget / unit_tokens
  // With the index of counts: the group's queries that made each list, [group, head_dim] of dtype;
  // null unless the policy has a reuse_distance.
  void* queries = nullptr;
  int64_t* made = nullptr;  // how often each list was made, never reset; or null
};

// What a decode row of a retrieval head attends to (docs/design.md, section 4).
struct SelectionPolicy {
  int32_t token_budget;    // n <= budget: all; a multiple of unit_tokens, >= 64 + 3 units; 0: dense
  int32_t unit_tokens;     // 64, 32 or 16
  int32_t reuse_interval;  // select when (position - prompt_tokens[slot]) % interval == 0; >= 1
  // Unless 0: select also when a query of the group has moved by more than this share of its
  // length, |q - q'| > distance |q|, from the q' that made the list (query_distance.h); >= 0.
  float reuse_distance = 0.0f;
  // n <= dense_tokens: all as well, where reading them takes less time than choosing; >= 0.
  int32_t dense_tokens = 0;
};

// Whether a row with `tokens` tokens, its own included, attends to all of them.
constexpr bool ReadsAll(const SelectionPolicy& policy, int32_t tokens) {
  return policy.token_budget == 0 || tokens <= policy.token_budget || tokens <= policy.dense_tokens;
}

// The newest units that are always kept: those holding one of the newest 64 of n tokens.
constexpr int32_t FirstForcedNewestUnit(int32_t tokens, int32_t unit_tokens) {
  return (tokens > kPageTokens ? tokens - kPageTokens : 0) / unit_tokens;
}

// For each decode row and retrieval head that does not read all of its n = position + 1 tokens
// (ReadsAll), when the policy or a count of -1 asks for it: scores every unit of the n tokens and
// keeps budget / unit of them.
//   kMinMax: score of logical page j for query head h: sum_d max(q_d kmax_d(j), q_d kmin_d(j)) /
//     sqrt(D); of a unit: the maximum over its logical pages
//   kSketch: score of token t: sum_d q_d k_d(t) / sqrt(D), k read back from its code (sketch.h), in
//     the open page the key itself; of a unit: the maximum over its tokens
//   q is rounded to bf16, sums are float32; of a group: the maximum over its query heads. Of a
//   logical page or unit of which only some tokens exist those count.
// Kept always: unit 0 and the forced newest units; the rest by score, ties to the lower unit. Of a
// row that reads all, the count becomes -1.
struct SelectUnitsParams {
  BatchView batch;
  const void* q;            // [max_rows, q_heads, head_dim] of dtype
  RetrievalLane retrieval;  // layout.score is not kNone
  UnitLists lists;
  const int32_t* prompt_tokens;  // [max_slots], prompt length of the slot's sequence
  float* scores;                 // optional [max_decode_rows, retrieval heads, max units] group
                                 // scores (max units = max_pages * 64 / unit), for tests, or null
  SelectionPolicy policy;
  DType dtype;
  int32_t q_heads;
  int32_t group;  // query heads of a KV head
  void* workspace;
};

// Softmax attention of the decode rows, scale 1 / sqrt(head_dim), after the row's own append.
// Retrieval heads read the units of their list united with the forced newest units of the row's own
// position (lists null or count -1: all); streaming heads read their sink and local window. What a
// boxed page holds is read back (boxed.h); a backend may round it to dtype or not.
struct AttendDecodeParams {
  BatchView batch;
  const void* q;  // [max_rows, q_heads, head_dim] of dtype
  void* output;   // [max_rows, q_heads, head_dim] of dtype
  RetrievalLane retrieval;
  StreamingLane streaming;
  UnitLists lists;  // lists.units null: dense
  // As SelectUnits has it, which then goes before: a list that is not due stands since an earlier
  // step and may be read while that runs. Null: every list may be new.
  const int32_t* prompt_tokens = nullptr;
  SelectionPolicy policy;
  DType dtype;
  int32_t q_heads;
  int32_t group;
  void* workspace;
  // Optional: [max_rows, q_heads], the natural logarithm of each head's softmax denominator, the
  // sum of exp(q k / sqrt(head_dim)) over the keys that it read.
  float* log_sums = nullptr;
};

// KV blocks between two looks of a prefill row at its running maximum: a step of its walk.
inline constexpr int32_t kPrefillStepBlocks = 4;

// The KV block at place i of a walk that leaves blocks out, over all that a query block may see, 2
// * (query_block + 1) blocks: the first step has block 0, the one before the query block and its
// own two, where the highest scores usually are; then the others, ascending.
constexpr int32_t WalkedBlock(int32_t query_block, int32_t i) {
  const int32_t newest = query_block == 0 ? 1 : 2 * query_block - 1;
  return i == 0 ? 0 : i < kPrefillStepBlocks ? newest + i - 1 : i - kPrefillStepBlocks + 1;
}

// What prefill rows of retrieval heads leave out (after BLASST, arXiv 2512.12087): nothing is
// estimated, the scores themselves decide. A row at position >= dense_tokens leaves out a KV block
// if the largest weight exp(s / sqrt(head_dim)) of its keys there is below `threshold` times the
// largest weight that the row has seen in its walk so far, this step included: the block adds
// neither to the row's output nor to its softmax sum.
struct PrefillPolicy {
  float threshold = 0.0f;    // 0 to 1; 0: static, nothing is left out
  int32_t dense_tokens = 0;  // rows at positions below it read everything; >= 0
};

// Work of retrieval heads in prefill: pairs of a KV block and a tile of query rows, which a backend
// cuts as it likes.
struct PrefillBlocks {
  int64_t scored = 0;   // Q K^T was computed
  int64_t weighed = 0;  // of these, some row of the tile did not leave the block out
};

// Softmax attention of the prefill rows, causal, after the retrieval append and before the
// streaming append; of chunks of one row also after that. The batch may name some of the step's
// rows alone, as chunks that begin and end elsewhere in it. Each head and query block (128 tokens
// at absolute multiples) walks an ordered list of KV blocks of 64 tokens: retrieval heads all
// causal blocks, or those a list names; streaming heads their sink and local blocks, masked exactly
// by token. A row sees the block of its own page in full and earlier ones as they were closed, so
// one query block may read its first page in both forms.
//
// With a threshold above 0 the order matters: a list of all blocks is walked as WalkedBlock says, a
// given one as it stands, in steps of kPrefillStepBlocks. A block that a chunk does not reach yet
// keeps its place, so what a row leaves out depends on its query and the keys before it alone. A
// backend may take other steps: the maximum that it compares with is that of the keys walked so
// far, at least the block's own and those of the steps before it. Without a threshold every list is
// walked ascending.
struct AttendPrefillParams {
  BatchView batch;
  const void* q;  // [max_rows, q_heads, head_dim] of dtype
  void* output;   // [max_rows, q_heads, head_dim] of dtype
  RetrievalLane retrieval;
  StreamingLane streaming;
  // Optional lists for retrieval heads, null for all causal blocks: the list of (query block b of
  // the step, retrieval head h) is block_ids[block_offsets[b * R + h], block_offsets[b * R + h +
  // 1]) with ascending KV blocks, the diagonal ones included.
  const int32_t* block_offsets;
  const int32_t* block_ids;
  DType dtype;
  int32_t q_heads;
  int32_t group;
  void* workspace;
  PrefillPolicy policy = {};
  PrefillBlocks* blocks = nullptr;  // what retrieval heads read is added to it; or null
};

// ---- Sampling
// ------------------------------------------------------------------------------------

// A slot's sampling settings; ranges are checked where requests enter.
struct SlotSampling {
  float temperature;         // 0: greedy
  float top_p;               // (0, 1]
  float min_p;               // [0, 1]
  float repetition_penalty;  // > 0, 1: off; sees prompt and generated tokens
  float presence_penalty;    // [-2, 2], generated tokens
  float frequency_penalty;   // [-2, 2], generated tokens
  int32_t top_k;             // 0: all
  int32_t penalties;         // 1 if any penalty is on
  uint64_t seed;
};

// token = sample(logits) for each logit row; ties of greedy go to the lower id. Order: penalties,
// temperature, top-k, top-p, min-p, then one draw by Philox(seed, position of the sampled token).
// A NaN logit counts as minus infinity.
struct SampleParams {
  BatchView batch;
  float* logits;                 // [max_logit_rows, vocab_size], overwritten
  const SlotSampling* sampling;  // [max_slots]
  int32_t* token_counts;         // [max_slots, vocab_size] generated so far; updated for slots with
                                 // penalties
  const uint8_t* prompt_seen;    // [max_slots, vocab_size] 1 if the prompt has the token
  int32_t* last_token;           // [max_slots], output
  int32_t* sampled;              // [max_logit_rows], output
  int32_t vocab_size;
  void* workspace;
};

// ---- Random numbers
// --------------------------------------------------------------------------------

// data[i] = normal number (seed, first + i) of the given deviation (normal_numbers.h), rounded to
// dtype: weights and caches for benchmarks, the same bits in every backend.
struct FillNormalParams {
  void* data;  // [count] of dtype, aligned to 16 bytes
  DType dtype;
  int64_t count;
  uint64_t seed;
  uint64_t first;   // even
  float deviation;  // finite, >= 0
};

// ---- Moving pages
// --------------------------------------------------------------------------------

// Byte copies between pages of one pool: page to[i] = page from[i].
struct CopyPagesParams {
  std::byte* destination;   // pool
  const std::byte* source;  // pool
  const int32_t* from;      // [count]
  const int32_t* to;        // [count]
  int32_t count;
  int64_t page_bytes;
};

// One page in canonical order: keys and values [heads, 64, head_dim], statistics
// [heads, StatsRows, head_dim], all float32: under kMinMax (min, max) of each of the 4 logical
// pages, under kSketch lo, hi and then the 64 tokens' codes. Export reads a page, import writes
// one.
// Keys and values of a boxed page are what its codes read back as, before they are rounded; import
// codes them in the given boxes and grids, which yields the codes that were exported. The sketch of
// a boxed page is part of its codes: export writes its statistics, import does not read them.
struct TransferPageParams {
  std::byte* page;
  KvPageLayout layout;
  float* keys;
  float* values;
  float* stats;            // null under PageScore::kNone
  float* boxes = nullptr;  // [heads, (lo, hi), head_dim], null unless the format is boxed
  float* grids = nullptr;  // [heads, 64, (zero, scale)], null unless the format is boxed
};

// ---- The table
// -----------------------------------------------------------------------------------

class Stream;

template <typename Params>
struct Op {
  const char* name = nullptr;
  // Bytes of scratch that run() needs at params.workspace; a function of the POD alone.
  int64_t (*workspace_bytes)(const Params&) = nullptr;
  // Appends the operation to the stream.
  void (*run)(Stream&, const Params&) = nullptr;
  // The variant that run() would take, for benchmarks and logs.
  const char* (*variant)(const Params&) = nullptr;
};

struct Ops {
  Op<EmbedRowsParams> embed_rows;
  Op<AddRmsNormParams> add_rms_norm;
  Op<LinearParams> linear;
  Op<RopeAnglesParams> rope_angles;
  Op<RopeAppendParams> rope_append;
  Op<AppendStreamingParams> append_streaming;
  Op<SelectUnitsParams> select_units;
  Op<AttendDecodeParams> attend_decode;
  Op<AttendPrefillParams> attend_prefill;
  Op<SampleParams> sample;
  Op<FillNormalParams> fill_normal;
  Op<CopyPagesParams> copy_pages;
  Op<TransferPageParams> export_page;
  Op<TransferPageParams> import_page;
};

// Shape and range checks of the host fields, worded once for all backends; called where a POD is
// made, not in every step.
Status Validate(const BatchView& params);
Status Validate(const EmbedRowsParams& params);
Status Validate(const AddRmsNormParams& params);
Status Validate(const LinearParams& params);
Status Validate(const RopeAnglesParams& params);
Status Validate(const RopeAppendParams& params);
Status Validate(const AppendStreamingParams& params);
Status Validate(const SelectionPolicy& policy);
Status Validate(const SelectUnitsParams& params);
Status Validate(const AttendDecodeParams& params);
Status Validate(const PrefillPolicy& policy);
Status Validate(const AttendPrefillParams& params);
Status Validate(const SampleParams& params);
Status Validate(const FillNormalParams& params);

}  // namespace lserve
