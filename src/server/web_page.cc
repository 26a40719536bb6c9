#include "server/web_page.h"

namespace lserve {
namespace {

constexpr const char* kPage = R"page(<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>lserve</title>
<link rel="icon" href="data:,">
<style>
:root { color-scheme: light dark; --line: color-mix(in srgb, currentColor 22%, transparent); }
body { max-width: 44rem; margin: 2rem auto; padding: 0 1rem; font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.3rem; margin: 0; }
p { margin: .5rem 0; }
label { display: block; margin-top: 1rem; font-size: .9rem; }
textarea, select, input, pre { box-sizing: border-box; width: 100%; border: 1px solid var(--line);
  border-radius: 6px; padding: .6rem; font: inherit; background: none; color: inherit; }
select { width: auto; }
pre { font: .85rem/1.5 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; }
button { font: inherit; padding: .35rem 1.1rem; margin: 1rem .5rem 0 0; }
#answer { min-height: 3rem; }
.quiet { opacity: .7; font-size: .9rem; }
</style>
<h1>lserve</h1>
<p class="quiet" id="status" role="status">…</p>
<form id="form">
<div id="locked" hidden><label for="key">API key</label>
<input id="key" type="password" autocomplete="current-password"></div>
<label for="model">Model</label>
<select id="model"></select>
<label for="document">Document <span class="quiet">(optional; paste it here)</span></label>
<textarea id="document" rows="8" spellcheck="false"></textarea>
<label for="question">Question</label>
<textarea id="question" rows="2" required></textarea>
<button id="ask">Ask</button><button id="stop" type="button" disabled>Stop</button>
</form>
<label for="answer">Answer</label>
<pre id="answer" aria-live="polite"></pre>
<p class="quiet" id="figures"></p>
<label for="curl">The same from a shell</label>
<pre id="curl"></pre>
<script>
const $ = (id) => document.getElementById(id);
const shell = (text) => "'" + text.replaceAll("'", "'\\''") + "'";
let running = null;

function headers() {
  const key = $("key").value;
  return {"Content-Type": "application/json", ...(key && {Authorization: "Bearer " + key})};
}
function body() {
  const text = [$("document").value.trim(), $("question").value.trim()].filter(Boolean).join("\n\n");
  return {model: $("model").value, messages: [{role: "user", content: text}]};
}
function showCurl() {
  const shown = {model: $("model").value,
                 messages: [{role: "user", content: $("question").value.trim() || "Hello"}]};
  $("curl").textContent = "curl " + location.origin + "/v1/chat/completions \\\n" +
      ($("locked").hidden ? "" : "  -H 'Authorization: Bearer KEY' \\\n") +
      "  -H 'Content-Type: application/json' \\\n  -d " + shell(JSON.stringify(shown));
}
async function load() {
  try {
    const health = await (await fetch("/health")).json();
    $("status").textContent = "Status: " + health.status +
        (health.error ? ": " + health.error : "");
    if (health.status !== "ok") { setTimeout(load, 2000); return; }
    const reply = await fetch("/v1/models", {headers: headers()});
    if (reply.status === 401) {
      $("locked").hidden = false;
      $("status").textContent = $("key").value ? "Wrong API key." : "Give the API key.";
      return;
    }
    const models = (await reply.json()).data;
    $("model").replaceChildren(...models.map((model) => new Option(model.id, model.id)));
    $("status").textContent = "Ready. Context of " + models[0].max_model_len.toLocaleString() +
        " tokens.";
    showCurl();
  } catch (error) { $("status").textContent = "The server does not answer."; }
}
function handle(line) {
  if (!line.startsWith("data: ") || line === "data: [DONE]") return;
  const chunk = JSON.parse(line.slice(6));
  if (chunk.error) throw new Error(chunk.error.message);
  const delta = chunk.choices[0]?.delta?.content;
  if (delta) $("answer").textContent += delta;
  if (chunk.timings) {
    const t = chunk.timings;
    $("figures").textContent = t.prompt_n + " prompt tokens in " + (t.prompt_ms / 1000).toFixed(2) +
        " s, " + t.predicted_n + " answered at " + t.predicted_per_token_ms.toFixed(1) +
        " ms a token, KV cache " + (chunk.kv_bytes / 1048576).toFixed(1) + " MiB";
  }
}
async function ask() {
  running = new AbortController();
  $("ask").disabled = true; $("stop").disabled = false;
  $("answer").textContent = ""; $("figures").textContent = "Reading…";
  try {
    const reply = await fetch("/v1/chat/completions", {method: "POST", signal: running.signal,
      headers: headers(),
      body: JSON.stringify({...body(), stream: true})});
    if (!reply.ok) throw new Error((await reply.json()).error.message);
    const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let rest = "";;) {
      const {value, done} = await reader.read();
      if (done) break;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      lines.forEach(handle);
    }
  } catch (error) {
    $("figures").textContent = error.name === "AbortError" ? "Stopped." : error.message;
  }
  $("ask").disabled = false; $("stop").disabled = true;
}
$("form").addEventListener("submit", (event) => { event.preventDefault(); ask(); });
$("form").addEventListener("input", showCurl);
$("key").addEventListener("change", load);
$("stop").addEventListener("click", () => running?.abort());
load();
</script>
</html>
)page";

}  // namespace

std::string WebPage() { return kPage; }

}  // namespace lserve
