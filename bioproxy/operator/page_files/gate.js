// The gate: who is inside, who waits, and for how long.

import { age, byId, el, keep, say, show } from "./dom.js";

const SHOWN = 8; // of those who wait

/** Show it. */
export function showGate({ busy, waiting, inside, queue }, up) {
  const node = byId("inside");
  node.dataset.busy = busy ?? "nobody";
  node.replaceChildren(
    el("span", { class: "lamp", "aria-hidden": "true" }),
    ...(inside
      ? [el("span", { class: "who" }, el("strong", {}, title(busy, inside)), ...whose(inside)), age(inside.since, "for")]
      : [el("span", { class: "who" }, el("strong", {}, "Nobody is inside"), el("span", { class: "sub" }, up ? "the next request goes straight in" : "a request gets an error now"))]),
  );
  keep(byId("queue"), queue.slice(0, SHOWN), (each) => each.id, (each) =>
    el("li", {}, el("span", { class: "who" }, el("strong", {}, each.template ?? "no template"), ...whose(each)), age(each.since, "for")));
  const more = waiting - Math.min(waiting, SHOWN);
  say(byId("queue-more"), waiting === 0 ? "Nobody waits." : `and ${more} more`);
  show(byId("queue-more"), waiting === 0 || more > 0);
}

function title(busy, { template }) {
  if (busy === "warmup") return template === null ? "Keeping a conversation" : `Warm-up of ${template}`;
  return template === null ? "A request without a template" : `A question on ${template}`;
}

function whose({ id, path }) {
  return id === null ? [] : [el("span", { class: "sub" }, `${path} `, el("span", { class: "id" }, id))];
}
