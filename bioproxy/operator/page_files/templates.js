// The templates: state, tokens, age, errors, and the actions for each.

import { age, badge, byId, el, keep, say, show } from "./dom.js";
import { preview } from "./preview.js";
import { count, fileName, percent, plural, STATES } from "./words.js";

/** Show the templates in the order of the configuration. */
export function showTemplates(templates) {
  keep(byId("template-list"), templates, (each) => each.name, row);
  show(byId("no-templates"), templates.length === 0);
}

/** Create or update one row.  The buttons are kept, so that the keyboard's focus stays where it is. */
function row(template, known) {
  const node = known ?? el("li", { class: "template" }, el("div", { class: "what" }), buttons(template));
  const { state, progress } = template;
  const under_way = progress > 0 && progress < 1;
  node.querySelector(".what").replaceChildren(
    el("p", { class: "head" },
      el("strong", { class: "prefix" }, template.prefix),
      badge(state, STATES[state] ?? state),
      template.wanted && state !== "warming" ? el("span", { class: "wanted" }, "next to be warmed up") : null,
      under_way ? el("span", { class: "progress" }, bar(template), el("span", {}, state === "warming" ? percent(progress) : `${percent(progress)}, paused`)) : null,
    ),
    el("p", { class: "facts" }, ...facts(template)),
    ...(template.error ? [el("p", { class: "trouble" }, template.error)] : []),
    ...(template.note ? [el("p", { class: "note" }, template.note)] : []),
  );
  return node;
}

const bar = ({ name, progress, state }) =>
  el("progress", { max: 1, value: progress, "aria-label": `${state === "warming" ? "Warm-up" : "Paused warm-up"} of ${name}` });

/** The facts about a template that are known: file, tokens, times. */
function facts({ tokens, warmed_at, last_used, path, includes }) {
  const file = el("span", { class: "path", title: [path, ...includes].join("\n") }, fileName(path));
  const items = [[file, includes.length ? ` + ${plural(includes.length, "file", "files")}` : ""]];
  if (tokens !== null) items.push([`${count(tokens)} tokens`]);
  if (warmed_at) items.push(["saved ", age(warmed_at)]);
  if (last_used) items.push(["used ", age(last_used)]);
  return items.map((parts) => el("span", {}, ...parts));
}

function buttons({ name, prefix }) {
  const warm = el("button", { type: "button", "aria-label": `Warm up now: ${prefix}` }, "Warm up now");
  const look = el("button", { type: "button", "aria-label": `Preview of ${prefix}` }, "Preview");
  warm.addEventListener("click", () => warmNow(name, prefix, warm));
  look.addEventListener("click", () => preview(name, prefix));
  return el("div", { class: "buttons" }, warm, look);
}

async function warmNow(name, prefix, button) {
  button.disabled = true;
  try {
    const answer = await fetch(`templates/${encodeURIComponent(name)}/warm`, { method: "POST" });
    announce(answer.ok ? `${prefix} will be warmed up next.` : `${prefix} is not warmed up: ${(await answer.text()).trim()}`, !answer.ok);
  } catch {
    announce(`${prefix} is not warmed up: bioproxy cannot be reached.`, true);
  } finally {
    button.disabled = false;
    button.focus({ preventScroll: true });
  }
}

let hide = 0;

/** Show the result of an action for 8 seconds; screen readers announce it. */
function announce(text, bad) {
  const said = byId("said");
  clearTimeout(hide);
  say(said, text);
  said.classList.toggle("bad", bad);
  hide = setTimeout(() => say(said, ""), 8000);
}
