#!/usr/bin/env bash
# lserve eval end to end on the bundled model: a tiny suite, a text and RULER's format through both
# modes; JSON, HTML, and a run that goes on after an interruption.
# Usage: eval_test.sh LSERVE SOURCE_DIR
set -euo pipefail
lserve=$1
source_dir=$2
model=$source_dir/models/needle-7m
command -v jq >/dev/null || { echo "jq is not installed"; exit 77; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

check() {  # LABEL FILE JQ-CONDITION
  jq -e "$3" "$2" >/dev/null || { echo "FAILED $1: $3"; jq "${4:-keys}" "$2"; exit 1; }
}

mkdir "$work/vt"
printf '{"index":7,"input":"%s","outputs":["beta"],"length":900}\n' "$(printf 'word %.0s' {1..40})" \
  >"$work/vt/validation.jsonl"
flags=(--suite niah,multiquery,long-generation --lengths 2048 --depths 2 --samples 1
  --decode-tokens 128 --ruler "$work/vt/validation.jsonl" --budgets 256,512 --page-score sketch
  --selection-unit 16 --seed 5)
# A run that ends without its report: what it has answered stays beside the result.
if "$lserve" eval "$model" "${flags[@]}" --json "$work/a.json" --html "$work/no/a.html" \
  >"$work/table" 2>"$work/error"; then
  echo "FAILED: a report that cannot be written is an error"
  exit 1
fi
grep -q 'no/a.html' "$work/error"
cp "$work/a.json.rows.partial" "$work/rows"
mv "$work/a.json" "$work/first.json"

# Resumed, it has nothing left to do.
"$lserve" eval "$model" "${flags[@]}" --json "$work/a.json" --html "$work/a.html" --resume \
  >"$work/table"
cmp "$work/first.json" "$work/a.json"

check 'runs' "$work/a.json" '[.runs[].overall.total] == [4, 4, 4]' .runs
check 'needles' "$work/a.json" \
  '[.runs[].rows[] | select(.kind == "niah")] | length == 6 and all(.correct)' .runs[].rows
check 'four turns' "$work/a.json" \
  '.runs[0].rows[] | select(.kind == "multiquery") | (.prediction / "\n" | length == 4)' .runs[0]
check 'RULER' "$work/a.json" \
  '.runs[0].rows[] | select(.kind == "vt") | .id == "vt-1024-7" and .length == 1024' .runs[0]
check 'comparisons' "$work/a.json" '[.comparisons[].sparse] == ["lserve@256", "lserve@512"]'
check 'flips add up' "$work/a.json" \
  '.comparisons | all(.overall | .dense_right - .lost + .gained == .sparse_right)' .comparisons
check 'teacher forcing' "$work/a.json" '.teacher_forced.summaries |
  length == 3 and all(.rows == 127) and all(.[1:][]; .top1_agreement > 0.9 and .mean_kl < 0.5)' \
  .teacher_forced.summaries
check 'settings and commit' "$work/a.json" '.commit != "" and .runs[1].settings.token_budget == 256'
[ ! -e "$work/a.json.rows.partial" ] || { echo "FAILED: partial results stay behind"; exit 1; }
grep -q 'multiquery' "$work/table"

grep -q '<h2>Single needle, by depth</h2>' "$work/a.html"
grep -q '</html>' "$work/a.html"
if grep -nE 'src=|https?:|url\(|<script' "$work/a.html"; then
  echo "FAILED: the report loads something"
  exit 1
fi

# An interruption: one answer is there (changed, to see that it is kept) and half a line. The rest is
# made again, and is the same.
head -2 "$work/rows" | jq -c 'if has("value") then .value[0] = "kept 1" else . end' \
  >"$work/b.json.rows.partial"
printf '{"run":"den' >>"$work/b.json.rows.partial"
"$lserve" eval "$model" "${flags[@]}" --json "$work/b.json" --resume >/dev/null
check 'kept' "$work/b.json" '[.runs[].rows[] | select(.prediction == "kept 1")] | length == 1'
same='[.runs[].rows[] | [.id, .prediction]] | .[1:]'
[ "$(jq -c "$same" "$work/a.json")" = "$(jq -c "$same" "$work/b.json")" ] ||
  { echo "FAILED: a resumed run answers otherwise"; exit 1; }

# One mode alone: the result is not wrapped; a text's losses.
"$lserve" eval "$model" --text "$source_dir/README.md" --attention lserve --lengths 1024 \
  --decode-tokens 64 --json "$work/c.json" --html "$work/c.html" >/dev/null
check 'one mode' "$work/c.json" 'has("settings") and has("overall") and has("rows")'
check 'text' "$work/c.json" '.teacher_forced.summaries[0] |
  .kind == "text" and .prefill_loss > 0 and .decode_loss > 0 and (has("mean_kl") | not)' \
  .teacher_forced.summaries

# Teacher-forced answers, and prefill that leaves blocks out.
"$lserve" eval "$model" --suite niah --lengths 2048 --depths 2 --samples 1 --teacher-forced \
  --streaming-share 0 --prefill-attention dynamic --prefill-threshold 0.001 --json "$work/d.json" \
  >/dev/null
check 'forced answers' "$work/d.json" '[.runs[].overall.right] == [2, 2]' .runs
check 'density' "$work/d.json" '.runs | (.[0] | has("prefill") | not) and
  (.[1].prefill.density | . > 0 and . < 1)' .runs[1].prefill
echo passed
