// The latest requests: times, reuse, and why a request was cold.

import { age, badge, byId, el, keep, show } from "./dom.js";
import { tick } from "./time.js";
import { CACHES, count, milliseconds, MISSES, percent, saving, statusWord } from "./words.js";

const FIRST = 20; // requests shown before the button is pressed

let all = false, latest = [];

/** Show the requests, newest first. */
export function showRequests(requests) {
  latest = requests;
  keep(byId("request-rows"), all ? requests : requests.slice(0, FIRST), (each) => each.id, row);
  show(byId("more-requests"), !all && requests.length > FIRST);
  show(byId("no-requests"), requests.length === 0);
  show(byId("request-table"), requests.length > 0);
  show(byId("request-legend"), requests.length > 0);
}

function row(request) {
  const cell = (label, attributes, ...children) => el("td", { "data-label": label, ...attributes }, ...children);
  const bad = request.status >= 400 || request.status === 0;
  return el("tr", {},
    cell("Time", { class: "when" }, age(request.time)),
    cell("Request", { class: "request" },
      el("strong", { tabindex: -1 }, request.template || request.prompt || "no template"), el("span", { class: "sub", title: request.path }, request.path)),
    cell("Cache", { class: "cache" }, ...cache(request)),
    cell("Wait time", { class: "n" }, ...waited(request)),
    cell("First token", { class: "n" }, milliseconds(request.ttft_ms)),
    cell("Prompt tokens", { class: "tokens" }, ...tokens(request)),
    cell("Total time", { class: "n" }, milliseconds(request.total_ms)),
    cell("Status", { class: bad ? "status bad" : "status" }, `${request.status || ""} ${statusWord(request.status)}`.trim()),
  );
}

/** How long a request waited, and how long it was expected to, where that is worth comparing. */
function waited({ queue_ms, estimate_ms }) {
  const known = queue_ms !== null && estimate_ms !== null && Math.max(queue_ms, estimate_ms) >= 1000;
  return [milliseconds(queue_ms), ...(known ? [el("span", { class: "sub" }, `estimated ${milliseconds(estimate_ms)}`)] : [])];
}

function cache({ cache, miss, miss_detail, restore_ms, template, prompt }) {
  if (cache === null) return [el("span", { class: "sub" }, template || prompt ? "unknown" : "–")];
  const why = cache === "cold" ? [MISSES[miss] ?? miss, miss_detail].filter(Boolean).join(": ") : "";
  const more = cache === "restored" && restore_ms !== null ? `in ${milliseconds(restore_ms)}` : why;
  return [badge(cache, CACHES[cache] ?? cache), ...(more ? [el("span", { class: "sub" }, more)] : [])];
}

/** A bar with the share of reused tokens, both numbers, and what that was worth. */
function tokens(request) {
  const { prompt_tokens, cached_tokens } = request, saved = saving(request);
  if (prompt_tokens === null || cached_tokens === null) return [el("span", { class: "sub" }, "–")];
  const share = prompt_tokens ? cached_tokens / prompt_tokens : 0;
  const reused = el("span", { class: "reused" });
  reused.style.width = percent(share).replace(" ", "");
  return [
    el("span", { class: "bar", "aria-hidden": "true" }, reused),
    el("span", { class: "sub" }, `${count(cached_tokens)} reused, ${count(prompt_tokens - cached_tokens)} computed`),
    ...(saved ? [el("span", { class: "sub worth" }, saved)] : []),
  ];
}

byId("more-requests").addEventListener("click", () => {
  all = true;
  showRequests(latest);
  tick();
  byId("request-rows").children[FIRST].querySelector("strong").focus();
});
