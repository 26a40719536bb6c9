#include "eval/html_page.h"

#include <cmath>

namespace lserve {
namespace {

constexpr const char* kHead = R"html(<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<style>
:root { color-scheme: light dark; --ink: #1c2227; --quiet: #5d6871; --paper: #fdfdfb;
  --line: #d9dcd8; --panel: #f4f5f1; --accent: #2e7d70; --c0: #2e7d70; --c1: #b35c2e; --c2: #4a66a8;
  --c3: #8a5a9c; --c4: #8b7a2b; }
@media (prefers-color-scheme: dark) { :root { --ink: #dfe3e2; --quiet: #98a3a8; --paper: #15191b;
  --line: #343b3e; --panel: #1c2224; --accent: #58b3a3; --c0: #58b3a3; --c1: #dd8f62; --c2: #8ba6e6;
  --c3: #c397d6; --c4: #cdbb62; } }
body { max-width: 66rem; margin: 3rem auto 5rem; padding: 0 1.5rem; background: var(--paper);
  color: var(--ink); font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0; letter-spacing: -.01em; }
h2 { font-size: 1.15rem; margin: 3rem 0 .5rem; }
h3 { font-size: .95rem; margin: 1.75rem 0 .25rem; font-weight: 600; }
p { margin: .5rem 0; max-width: 46rem; }
.quiet, .note { color: var(--quiet); }
.note { font-size: .9rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(17rem, 1fr)); gap: 1rem;
  margin: 1.5rem 0; }
.card { background: var(--panel); border-radius: 8px; padding: 1rem 1.25rem; }
.card b { display: block; font-size: 1.9rem; font-weight: 600; line-height: 1.2;
  font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums;
  margin: .75rem 0; width: 100%; }
th, td { padding: .32rem .55rem; text-align: right; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
th { font-weight: 600; color: var(--quiet); vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
table.wide { font-size: .85rem; } table.wide th + th, table.wide td + td { padding: .3rem .4rem; }
tr.total td { font-weight: 600; border-bottom: 0; }
td.loss { color: var(--c1); font-weight: 600; }
td.nothing { color: var(--quiet); }
.figures { display: flex; flex-wrap: wrap; gap: 1rem 2.5rem; margin: 1rem 0; }
svg { max-width: 100%; height: auto; font-size: 12px; }
svg text { fill: var(--ink); }
svg .title { font-weight: 600; font-size: 13px; }
svg text.quiet { fill: var(--quiet); }
svg .on-dark, svg .on-accent { fill: #fff; }
svg .on-light { fill: #1c2227; }
svg .grid { stroke: var(--line); }
svg .level { stroke: var(--quiet); stroke-dasharray: 5 4; stroke-width: 1.5; }
svg .line { fill: none; stroke-width: 2; stroke-linejoin: round; }
svg .retrieves { fill: #2e7d70; }
svg .streams { fill: none; stroke: var(--line); }
svg .c0 { stroke: var(--c0); } svg .c1 { stroke: var(--c1); } svg .c2 { stroke: var(--c2); }
svg .c3 { stroke: var(--c3); } svg .c4 { stroke: var(--c4); }
svg .dot { fill: var(--paper); stroke-width: 2; }
pre { background: var(--panel); border-radius: 8px; padding: .8rem 1rem; font: .85rem/1.5
  ui-monospace, Menlo, Consolas, monospace; white-space: pre-wrap; overflow-wrap: anywhere; }
dl { columns: 20rem; column-gap: 3rem; font-size: .9rem; }
dl div { display: grid; grid-template-columns: 13rem 1fr; break-inside: avoid; line-height: 1.7; }
dt { color: var(--quiet); } dd { margin: 0; overflow-wrap: anywhere; }
@media print { body { margin: 0; } .card, pre { border: 1px solid var(--line); } }
</style>
)html";

}  // namespace

HtmlPage::HtmlPage(const std::string& title) : text_(kHead) { Add("<title>{}</title>\n", title); }

std::string HtmlPage::Finish() { return text_ + "</html>\n"; }

double Percent(double part, int64_t whole) { return 100.0 * part / static_cast<double>(whole); }

std::string Signed(double value) {
  const std::string digits = fmt::format("{:.1f}", std::abs(value));
  return digits == "0.0" ? digits : (value < 0 ? "\u2212" : "+") + digits;
}

std::string ShowP(double p) { return p < 0.001 ? "&lt; 0.001" : fmt::format("{:.3f}", p); }

std::string Count(int64_t count, const std::string& noun) {
  return fmt::format("{} {}{}", count, noun, count == 1 ? "" : "s");
}

}  // namespace lserve
