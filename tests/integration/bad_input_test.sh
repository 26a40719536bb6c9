#!/usr/bin/env bash
# Bad input on the command line: each case must end with exit code 1 and one clear line that names
# what is wrong. Usage: bad_input_test.sh LSERVE SOURCE_DIR
set -uo pipefail
lserve=$1
source_dir=$2
model=$source_dir/models/needle-7m
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cases=0
failed=0

# expect LABEL PATTERN COMMAND...: exit code 1, one line on standard error that matches PATTERN.
expect() {
  local label=$1 pattern=$2
  shift 2
  cases=$((cases + 1))
  local status=0
  "$@" >"$work/out" 2>"$work/err" </dev/null || status=$?
  local lines
  lines=$(grep -c . "$work/err")
  if [ "$status" -ne 1 ] || [ "$lines" -ne 1 ] || ! grep -qE "$pattern" "$work/err"; then
    failed=$((failed + 1))
    printf 'FAILED %s: exit %s, %s lines:\n' "$label" "$status" "$lines"
    head -5 "$work/err"
  fi
}

generate() { "$lserve" generate "$@" --prompt hello --max-tokens 1; }

# A copy of the model to break; its weights are a link until a case replaces them.
broken() {
  rm -rf "$work/model"
  mkdir "$work/model"
  cp "$model"/*.json "$model"/*.tsv "$work/model"
  ln -s "$model/model.safetensors" "$work/model/model.safetensors"
}
set_config() {  # jq program
  broken
  jq "$1" "$model/config.json" >"$work/model/config.json"
}
# A safetensors file of a header and some bytes.
weights() {  # header, bytes of data
  broken
  rm "$work/model/model.safetensors"
  {
    printf "$(printf '\\x%02x\\x%02x\\x00\\x00\\x00\\x00\\x00\\x00' \
      $((${#1} % 256)) $((${#1} / 256)))"
    printf '%s' "$1"
    head -c "$2" /dev/zero
  } >"$work/model/model.safetensors"
}
edit_weights() {  # sed program on the real file; lengths must stay
  broken
  rm "$work/model/model.safetensors"
  LC_ALL=C sed "$1" "$model/model.safetensors" >"$work/model/model.safetensors"
}

# The environment.
expect "instruction set" 'LSERVE_MAX_CPU_ISA is "sse9"' \
  env LSERVE_MAX_CPU_ISA=sse9 "$lserve" generate "$model" --prompt hello --max-tokens 1

# Folders and files.
expect 'missing folder' 'no/such/folder' generate /no/such/folder
expect 'file as folder' 'is not a folder' generate "$model/config.json"
broken; rm "$work/model/config.json"
expect 'missing config' 'config.json' generate "$work/model"
broken; rm "$work/model/tokenizer.json"
expect 'missing tokenizer' 'tokenizer.json' generate "$work/model"
broken; rm "$work/model/model.safetensors"
expect 'missing weights' 'model.safetensors' generate "$work/model"

# Weights.
broken; rm "$work/model/model.safetensors"
head -c 1000000 "$model/model.safetensors" >"$work/model/model.safetensors"
expect 'truncated weights' 'model.safetensors' generate "$work/model"
broken; rm "$work/model/model.safetensors"; printf '\x01\x02' >"$work/model/model.safetensors"
expect 'two bytes of weights' 'model.safetensors' generate "$work/model"
broken; rm "$work/model/model.safetensors"
printf '\xff\xff\xff\x01\x00\x00\x00\x00{}' >"$work/model/model.safetensors"
expect 'header beyond the file' 'header' generate "$work/model"
weights 'not json' 0
expect 'header is no JSON' 'JSON' generate "$work/model"
weights '{"a":{"dtype":"BF16","shape":[4],"data_offsets":[0,8]},"b":{"dtype":"BF16","shape":[4],"data_offsets":[4,12]}}' 12
expect 'overlapping tensors' '"?[ab]"?' generate "$work/model"
weights '{"a":{"dtype":"BF16","shape":[4611686018427387904,4],"data_offsets":[0,8]}}' 8
expect 'shape overflow' '4611686018427387904' generate "$work/model"
edit_weights '1s/"dtype":"BF16"/"dtype":"XY16"/'
expect 'unknown dtype' 'XY16' generate "$work/model"
edit_weights '1s/"shape":\[4096,256\]/"shape":[2048,512]/'
expect 'wrong tensor shape' '4096.*256' generate "$work/model"
edit_weights '1s/model.norm.weight/model.norm.weighX/'
expect 'missing tensor' 'model.norm.weight' generate "$work/model"

# Configuration.
broken; printf '{' >"$work/model/config.json"
expect 'config is no JSON' 'config.json' generate "$work/model"
set_config '.architectures = ["GPT2LMHeadModel"]'
expect 'unknown architecture' 'GPT2LMHeadModel' generate "$work/model"
set_config 'del(.hidden_size)'
expect 'missing field' 'hidden_size' generate "$work/model"
set_config '.num_hidden_layers = -3'
expect 'negative layers' 'num_hidden_layers.*-3' generate "$work/model"
set_config '.num_hidden_layers = "six"'
expect 'layers as text' 'num_hidden_layers' generate "$work/model"
set_config '.hidden_size = 1e15'
expect 'absurd hidden size' 'hidden_size' generate "$work/model"
set_config '.num_key_value_heads = 3'
expect 'heads do not divide' 'num_key_value_heads|num_attention_heads' generate "$work/model"
set_config '.head_dim = 7'
expect 'odd head size' 'head size 7' generate "$work/model"
set_config '.rope_scaling = {"rope_type": "longrope", "factor": 2}'
expect 'unknown rope' 'longrope' generate "$work/model"
set_config '.architectures = ["MistralForCausalLM"] | .sliding_window = 4096'
expect 'active sliding window' 'sliding_window.*4096' generate "$work/model"
set_config '.hidden_act = "gelu"'
expect 'unknown activation' 'gelu' generate "$work/model"

# Head plan.
broken; printf '0\t1\n' >"$work/model/full_attention_heads.tsv"
expect 'plan of another shape' 'line 1 has 2 gates' generate "$work/model"
broken; printf '0\t1\t0\tx\n' >"$work/model/full_attention_heads.tsv"
expect 'plan is no number' '"x" is not a number' generate "$work/model"
expect 'missing plan' 'no/plan' generate "$model" --head-plan /no/plan
mkdir "$work/plan"
expect 'plan folder without gates' 'plan is a folder without' generate "$model" --head-plan "$work/plan"
cp "$model/full_attention_heads.tsv" "$work/plan"
printf '{"sink_size": 128, "recent_size": "many"}' >"$work/plan/config.json"
expect 'plan of a bad window' 'config.json: recent_size "many"' \
  generate "$model" --head-plan "$work/plan"
printf '{"sink_size": 128, "recent_size": 256}' >"$work/plan/config.json"
sed -i 3d "$work/plan/full_attention_heads.tsv"
expect 'plan of another model' '5 lines of gates, the model has 6 layers' \
  generate "$model" --head-plan "$work/plan"

# Flags.
expect 'share above 1' 'streaming-share.*1.5' generate "$model" --streaming-share 1.5
expect 'share is NaN' 'streaming-share' generate "$model" --streaming-share nan
expect 'budget no multiple' 'token-budget.*100' generate "$model" --token-budget 100
expect 'budget too small' 'token-budget.*128' generate "$model" --token-budget 128
expect 'odd unit' 'selection-unit.*48' generate "$model" --selection-unit 48
expect 'dense tokens below -1' 'decode-dense-tokens.*-2' generate "$model" \
  --decode-dense-tokens -2
expect 'interval 0' 'reuse-interval.*0' generate "$model" --reuse-interval 0
expect 'unknown prefill attention' 'prefill-attention.*blocks' generate "$model" \
  --prefill-attention blocks
expect 'threshold above 1' 'prefill-threshold.*1.5' generate "$model" --prefill-threshold 1.5
expect 'threshold NaN' 'prefill-threshold.*nan' generate "$model" --prefill-threshold nan
expect 'negative dense tokens' 'prefill-dense-tokens.*-1' generate "$model" \
  --prefill-dense-tokens -1
expect 'unknown attention' 'sparse' generate "$model" --attention sparse
expect 'attention twice' 'twice' generate "$model" --attention dense,dense
expect 'unknown device' 'tpu' generate "$model" --device tpu
expect 'context too long' 'max-model-len.*100000' generate "$model" --max-model-len 100000
expect 'float32 on cpu' 'float32' generate "$model" --device cpu --dtype float32
expect 'unknown score' 'quest' generate "$model" --page-score quest
expect 'unknown cache format' 'int3' generate "$model" --kv-cache-dtype int3
expect 'int4 with float32' 'int4 needs bfloat16' generate "$model" --device ref --dtype float32 \
  --kv-cache-dtype int4
expect 'not a number' 'sink-tokens' generate "$model" --sink-tokens many
expect 'unknown flag' 'no-such-flag' generate "$model" --no-such-flag
expect 'no subcommand' 'ubcommand' "$lserve"
expect 'temperature NaN' 'temperature' generate "$model" --temperature nan
expect 'top-p 0' 'top_p' generate "$model" --top-p 0
expect 'cache too small' 'too small' generate "$model" --kv-cache-gib 0.0001

# Prompts.
printf 'word %.0s' $(seq 100000) >"$work/long.txt"
expect 'prompt too long' 'maximum context length' generate "$model" --file "$work/long.txt"
printf 'word %.0s' $(seq 40000) >"$work/fits.txt"
expect 'more than the cache' 'cache' generate "$model" --file "$work/fits.txt" --kv-cache-gib 0.02
expect 'nothing to answer' 'nothing' "$lserve" generate "$model"
expect 'missing document' 'no/such/document' generate "$model" --file /no/such/document

# Questions.
: >"$work/empty.jsonl"
expect 'no questions' 'no question' "$lserve" eval "$model" --qa "$work/empty.jsonl"
printf '{"id":"a","kind":"x","length":1,"question":"q","answer":"a","document":"d"}\n{broken\n' \
  >"$work/bad.jsonl"
expect 'malformed row' 'line 2' "$lserve" eval "$model" --qa "$work/bad.jsonl"
printf '{"id":"a","kind":"x","length":1,"question":"q","answer":"a","same_document_as":"z"}\n' \
  >"$work/bad.jsonl"
expect 'unknown document' 'line 1.*"z"' "$lserve" eval "$model" --qa "$work/bad.jsonl"
expect 'missing questions' 'no/such' "$lserve" eval "$model" --qa /no/such
printf '{"index":0,"input":"p","outputs":"a","length":9}\n' >"$work/bad.jsonl"
expect 'RULER row without outputs' 'line 1: "outputs"' \
  "$lserve" eval "$model" --ruler "$work/bad.jsonl"
expect 'text too short' 'has .* tokens; a text of' "$lserve" eval "$model" --text "$model/README.md" \
  --lengths 60000

# Suites.
expect 'nothing to evaluate' 'nothing to evaluate' "$lserve" eval "$model"
expect 'unknown suite' '"niha" is none of niah, multikey' "$lserve" eval "$model" --suite niha
expect 'suite beyond the context' 'lengths 100000.*context of 65536' \
  "$lserve" eval "$model" --suite niah --lengths 100000
expect 'suite too short' 'lengths 100 ' "$lserve" eval "$model" --suite niah --lengths 100
expect 'length twice' 'lengths names 2048 twice' \
  "$lserve" eval "$model" --suite niah --lengths 2048,2048
expect 'forced answers in many turns' 'teacher-forced.*multiquery has 4 turns' \
  "$lserve" eval "$model" --suite multiquery --lengths 2048 --samples 1 --teacher-forced
expect 'no samples' 'samples 0' "$lserve" eval "$model" --suite niah --samples 0
expect 'no depths' 'depths 0' "$lserve" eval "$model" --suite niah --depths 0
expect 'odd budget' 'token-budget 100' "$lserve" eval "$model" --suite niah --budgets 512,100
expect 'budget twice' 'budgets names 512 twice' \
  "$lserve" eval "$model" --suite niah --budgets 512,512
expect 'no room for a document' 'decode-tokens 2000' \
  "$lserve" eval "$model" --suite long-generation --lengths 2048 --decode-tokens 2000
printf '{"model":"other"}\n' >"$work/out.json.rows.partial"
expect 'resumed with other settings' 'other settings' "$lserve" eval "$model" --suite niah \
  --lengths 2048 --samples 1 --json "$work/out.json" --resume
expect 'resume without a file' 'give --json' "$lserve" eval "$model" --suite niah --resume

# Benchmarks.
expect 'length beyond context' 'lengths 100000' "$lserve" bench "$model" --lengths 100000
expect 'no repetition' 'repeat 0' "$lserve" bench "$model" --repeat 0

# Calibration.
calibrate() { "$lserve" calibrate "$model" "$@" --output "$work/plan.tsv"; }
expect 'no samples' 'samples 0' calibrate --samples 0
expect 'documents too short' 'length 100 is outside' calibrate --length 100
expect 'documents beyond context' 'length 100000 is outside' calibrate --length 100000
expect 'bound is NaN' 'max-loss-increase nan' calibrate --max-loss-increase nan
expect 'bound is negative' 'max-loss-increase -1' calibrate --max-loss-increase -1
expect 'plan for a plan' 'head-plan.*reads none' calibrate --head-plan "$work/plan"
expect 'plan is there' 'full_attention_heads.tsv is there already' "$lserve" calibrate "$model"
expect 'no place for the plan' 'no/such/folder' "$lserve" calibrate "$model" \
  --output /no/such/folder/plan.tsv
printf '{"model":"another"}\n' >"$work/plan.tsv.rows.partial"
expect 'resumed with other settings' 'other settings' calibrate --resume
broken
jq 'del(.chat_template)' "$model/tokenizer_config.json" >"$work/model/tokenizer_config.json"
expect 'no chat template' 'no chat template' "$lserve" calibrate "$work/model" \
  --output "$work/other.tsv"

echo "$((cases - failed)) passed, $failed failed"
[ "$failed" -eq 0 ]
