// The templates: state, tokens, age, errors, and the actions for each.

import { act } from "./actions.js";
import { age, badge, byId, el, keep } from "./dom.js";
import { preview } from "./preview.js";
import { count, fileName, percent, plural, STATES, worth } from "./words.js";

/** Show the templates in the order of the configuration. */
export function showTemplates(templates) {
  keep(byId("template-list"), templates, (each) => each.name, row);
}

/** Create or update one row.  The buttons are kept, so that the keyboard's focus stays where it is. */
function row(template, known) {
  const node = known ?? el("li", { class: "template" }, el("div", { class: "what" }), buttons(template));
  const { state, progress } = template;
  node.querySelector(".what").replaceChildren(
    el("p", { class: "head" },
      el("strong", { class: "prefix" }, template.prefix),
      badge(state, STATES[state] ?? state),
      template.wanted && state !== "warming" ? el("span", { class: "wanted" }, "next to be warmed up") : null,
      progressBar(template.name, state, progress),
    ),
    ...(template.wanted ? [] : whyNot(template)),
    el("p", { class: "facts" }, ...facts(template)),
    ...(template.error ? [el("p", { class: "trouble" }, template.error)] : []),
    ...(template.note ? [el("p", { class: "note" }, template.note)] : []),
  );
  return node;
}

/** The progress of a warm-up that has begun, in words and as a bar; `null` for others. */
export function progressBar(name, state, progress) {
  if (progress <= 0 || progress >= 1) return null;
  const running = state === "warming";
  const bar = el("progress", { max: 1, value: progress, "aria-label": `${running ? "Warm-up" : "Paused warm-up"} of ${name}` });
  return el("span", { class: "progress" }, bar, el("span", {}, running ? percent(progress) : `${percent(progress)}, paused`));
}

/** Why a prompt is not warm, in the words of bioproxy's own decision: what it waits for, or why its warm-up is due. */
export function whyNot({ state, warmup }) {
  if (state === "warm" || state === "warming" || !warmup) return [];
  return [el("p", { class: "why" }, warmup.due ? `warm-up due: ${warmup.reason}` : `not warm: ${warmup.reason}`)];
}

/** The facts about a template that are known: file, tokens, times. */
function facts(template) {
  const { tokens, warmed_at, last_used, path, includes } = template, value = worth(template);
  const file = el("span", { class: "path", title: [path, ...includes].join("\n") }, fileName(path));
  const items = [[file, includes.length ? ` + ${plural(includes.length, "file", "files")}` : ""]];
  if (tokens !== null) items.push([`${count(tokens)} tokens`]);
  if (value) items.push([el("span", { class: "worth" }, value)]);
  if (warmed_at) items.push(["saved ", age(warmed_at)]);
  if (last_used) items.push(["used ", age(last_used)]);
  return items.map((parts) => el("span", {}, ...parts));
}

function buttons({ name, prefix }) {
  const warm = el("button", { type: "button", "aria-label": `Warm up now: ${prefix}` }, "Warm up now");
  const look = el("button", { type: "button", "aria-label": `Preview of ${prefix}` }, "Preview");
  warm.addEventListener("click", () => act(warm, `templates/${encodeURIComponent(name)}/warm`,
    `${prefix} will be warmed up next.`, `${prefix} is not warmed up`));
  look.addEventListener("click", () => preview(name, prefix));
  return el("div", { class: "buttons" }, warm, look);
}
