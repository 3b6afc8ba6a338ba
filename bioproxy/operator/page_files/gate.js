// The gate: the request or warm-up that uses the slot, the queue, and for how long.

import { age, byId, el, keep, say, show } from "./dom.js";
import { count, isStarting, plural, span } from "./words.js";

const SHOWN = 8; // waiting requests that are listed

/** Show the gate, and what happens to a request that comes now, which depends on `llama`. */
export function showGate({ busy, waiting, inside, queue }, llama) {
  const node = byId("inside");
  node.dataset.busy = busy ?? "nobody";
  node.replaceChildren(
    el("span", { class: "lamp", "aria-hidden": "true" }),
    ...(inside
      ? [el("span", { class: "who" }, el("strong", {}, title(busy, inside)), ...whose(inside), ...progress(inside)), age(inside.since, "for")]
      : [el("span", { class: "who" }, el("strong", {}, "The slot is free"), el("span", { class: "sub" }, outlook(llama)))]),
  );
  keep(byId("queue"), queue.slice(0, SHOWN), (each) => each.id, (each) =>
    el("li", {}, el("span", { class: "who" }, el("strong", {}, each.template ?? "no template"), ...whose(each)), age(each.since, "for"), ...estimate(each)));
  const more = waiting - Math.min(waiting, SHOWN);
  const first = queue[0];
  byId("queue-length").replaceChildren(...(first ? [`${plural(waiting, "request waits", "requests wait")}, the first for `, age(first.since, "for")] : ["one at a time, users first"]));
  say(byId("queue-more"), waiting === 0 ? "No requests waiting." : `and ${plural(more, "more request", "more requests")}`);
  show(byId("queue-more"), (waiting === 0 && inside !== null) || more > 0);
}

/** What happens to a request that comes while the slot is free. */
function outlook(llama) {
  if (llama.up) return "the next request starts at once";
  return isStarting(llama) ? "requests wait until llama.cpp is ready" : "llama-server is down: requests get an error";
}

/** Show for which kinds of clients head starts were stopped, and why. */
export function showStopped(kinds) {
  keep(byId("stopped-list"), kinds, (each) => each.client, (each) => el("li", { class: "note" }, each.note));
  show(byId("stopped-list"), kinds.length > 0);
}

function title(busy, { template, prompt }) {
  if (busy === "warmup") return template === null ? "Saving a conversation" : `Warm-up of ${template}`;
  if (template === null && prompt !== null) return `Request with prompt ${prompt}`;
  return template === null ? "Request without template" : `Request with template ${template}`;
}

/** How far llama-server was with the prompt, when a waiting client was last told. */
function progress({ progress }) {
  if (progress === null) return [];
  return [el("span", { class: "sub progress" }, `${count(progress.reused + progress.computed)} tokens of the prompt read`)];
}

/** How long a request was expected to wait, behind the time that it has waited. */
function estimate({ estimate_s }) {
  return estimate_s === null ? [] : [el("span", { class: "sub estimate" }, `of about ${span(Math.ceil(estimate_s))}`)];
}

function whose({ id, path }) {
  return id === null ? [] : [el("span", { class: "sub" }, `${path} `, el("span", { class: "id" }, id))];
}
