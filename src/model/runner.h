// Runner: a model with one attention mode and its cache, as the engine sees it: slots that hold
// sequences, and steps that run a mixed batch of prompt chunks and decode rows through the layers.
// Used by one thread at a time (the engine's).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/status.h"
#include "kernels/ops.h"

namespace lserve {

// What a runner can hold; constant after it was made.
struct RunnerLimits {
  int64_t max_model_len = 0;   // tokens of one sequence, prompt and answer
  int32_t max_num_seqs = 0;    // slots
  int32_t max_batch_rows = 0;  // prefill and decode rows of one step
  int64_t kv_pages = 0;        // retrieval pages in the pool, shared by all slots
  int32_t vocab_size = 0;
};

// Consecutive prompt tokens of a slot's sequence. first_position equals the tokens that the slot
// holds already. A chunk that is not its prompt's last ends on a multiple of 128.
struct PromptChunk {
  int32_t slot = 0;
  int64_t first_position = 0;
  std::span<const int32_t> tokens;  // at least one; valid until Step returns
  bool sample = false;              // sample a token after its last row
};

// One generated token of a slot's sequence, at the position that equals the tokens it holds.
struct DecodeRow {
  int32_t slot = 0;
  int64_t position = 0;
  int32_t token = -1;  // -1: the slot's last sampled token; else a token that is replayed, which
                       // the penalties then count
  bool sample = true;  // false while a preempted sequence is replayed
};

struct StepInput {
  std::vector<DecodeRow> decode;
  std::vector<PromptChunk> chunks;  // at most one a slot, and none for a slot with a decode row
};

struct SampledToken {
  int32_t slot;
  int32_t token;
};

// What audited decode rows of a layer's retrieval heads showed, against attention over everything.
struct LayerAudit {
  int32_t layer = 0;
  int64_t rows = 0;           // audited
  double captured_sum = 0;    // of the rows' captured attention mass, 0 to 1, mean over query heads
  double captured_least = 1;  // of a row
  double error_sum = 0;       // of the rows' output error, |selected - all| / |all|
  double error_most = 0;      // of a row
};

// What sparse attention read since the runner was made.
struct SelectionStats {
  int64_t uses = 0;       // lists read: decode rows beyond the budget times retrieval heads
  int64_t made = 0;       // of these lists, those made for the row: the others were reused
  PrefillBlocks prefill;  // of retrieval heads, while prefill may leave blocks out
  std::vector<LayerAudit> layers;  // layers with retrieval heads; empty without an audit
};

class Runner {
 public:
  virtual ~Runner() = default;

  virtual const RunnerLimits& limits() const = 0;

  // Takes a free slot for a new, empty sequence. prompt is the whole prompt (penalties see it, and
  // the selection counts generated tokens from its length). Errors: kResourceExhausted (no slot).
  virtual Result<int32_t> OpenSlot(std::span<const int32_t> prompt,
                                   const SlotSampling& sampling) = 0;

  // Makes room for the slot's sequence to hold `tokens` tokens. Errors: kResourceExhausted (the
  // page pool is empty; what the slot had stays as it was).
  virtual Status Reserve(int32_t slot, int64_t tokens) = 0;

  // A second sequence with the same content: closed pages are shared, the open page and the ring
  // are copied. `prompt` and `sampling` are the new sequence's. Errors: kResourceExhausted.
  virtual Result<int32_t> Fork(int32_t slot, std::span<const int32_t> prompt,
                               const SlotSampling& sampling) = 0;

  // Frees the slot and its pages.
  virtual void CloseSlot(int32_t slot) = 0;

  // Retrieval pages that a sequence of `tokens` tokens takes, and those free now.
  virtual int64_t PagesFor(int64_t tokens) const = 0;
  virtual int64_t FreePages() const = 0;

  // Bytes of the pages that the slot uses in every pool, statistics included.
  virtual int64_t KvBytes(int32_t slot) const = 0;

  // Errors: kInternal (the device failed).
  virtual Result<SelectionStats> Selection() { return SelectionStats{}; }

  // Runs one step; room for its tokens was reserved. The result holds one token for each decode row
  // and chunk with `sample`, decode rows first, in the input's order.
  // Errors: kInternal (the device failed; the runner is unusable from then on).
  virtual Result<std::vector<SampledToken>> Step(const StepInput& input) = 0;
};

}  // namespace lserve
