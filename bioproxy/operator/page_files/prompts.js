// What nobody configured: prompts that were learned from requests, and conversations; their files, and what they are worth.

import { act, announce } from "./actions.js";
import { age, badge, byId, el, keep, say, show } from "./dom.js";
import { progressBar, whyNot } from "./templates.js";
import { tick } from "./time.js";
import { count, duration, plural, size, sizeOf, STATES, worth } from "./words.js";

const FIRST = 5; // entries of each group that are shown before its button is pressed
const SURE = 5000; // milliseconds in which "Forget" has to be pressed again

const all = { learned: false, conversation: false };
let latest = null;

/** Show both groups.  The templates in `prompts` have a section of their own. */
export function showPrompts(prompts, shelf) {
  latest = [prompts, shelf];
  const templates = new Set(prompts.filter((each) => each.kind === "template").map((each) => each.name));
  group("learned", prompts, shelf.prompt, templates);
  group("conversation", prompts, shelf.conversation, templates);
  // Without a limit bioproxy does not see the slot folder, and then nothing is learned at all.
  const learns = shelf.prompt.limit !== null;
  say(byId("no-learned"), learns ? "Nothing learned yet. What two conversations begin with is learned, and so are tools."
    : "Nothing is learned: bioproxy does not see llama-server's slot folder (slot_save_path).");
}

function group(kind, prompts, { files, bytes, limit }, templates) {
  // Whether its name is a template's decides about a button, so it is a part of what is compared.
  const items = prompts.filter((each) => each.kind === kind).map((each) => ({ ...each, configured: templates.has(each.name) }));
  // The latest on top; times in ISO 8601 are sorted like texts.  Conversations come in that order already.
  const used = (each) => each.last_used ?? each.saved_at ?? "";
  if (kind === "learned") items.sort((one, other) => (used(one) < used(other) ? 1 : used(one) > used(other) ? -1 : 0));
  keep(byId(`${kind}-list`), all[kind] ? items : items.slice(0, FIRST), (each) => `${kind}-${each.name}`, row);
  show(byId(`no-${kind}`), items.length === 0);
  show(byId(`more-${kind}`), !all[kind] && items.length > FIRST);
  say(byId(`more-${kind}`), kind === "learned" ? `Show all ${items.length} learned prompts` : `Show the latest ${items.length} conversations`);
  say(byId(`${kind}-total`), `${plural(files, "file", "files")}, ${limit === null ? size(bytes) : sizeOf(bytes, limit)}`);
  const meter = byId(`${kind}-meter`);
  show(meter, limit !== null && limit > 0);
  if (limit) meter.value = Math.min(1, bytes / limit);
}

/** Create or update one row.  The buttons are kept, so that the keyboard's focus stays where it is. */
function row(prompt, known) {
  const node = known ?? el("li", { class: "template" }, el("div", { class: "what" }), buttons(prompt));
  const { name, kind, state, progress, pinned, error, note } = prompt;
  node.querySelector(".what").replaceChildren(
    el("p", { class: "head" },
      el("strong", { class: "id" }, name),
      badge(state, STATES[state] ?? state),
      prompt.part ? el("span", { class: "tag" }, "shared part") : null,
      kind === "conversation" && prompt.configured ? el("span", { class: "tag" }, "last on this template") : null,
      pinned ? el("span", { class: "tag pinned" }, "pinned") : null,
      progressBar(name, state, progress),
    ),
    el("p", { class: "facts" }, ...facts(prompt)),
    ...whyNot(prompt),
    ...(error ? [el("p", { class: "trouble" }, error)] : []),
    ...(note ? [el("p", { class: "note" }, note)] : []),
  );
  const pin = node.querySelector(".pin");
  if (pin) {
    pin.dataset.pinned = pinned;
    say(pin, pinned ? "Unpin" : "Pin");
    pin.setAttribute("aria-label", `${pinned ? "Unpin" : "Pin"} ${name}`);
    pin.title = pinned ? "let its file be removed when the limit is reached" : "keep its file whatever the limit is";
    show(pin, prompt.saved_at !== null);
  }
  return node;
}

/** What is known of a prompt or a conversation: tokens, size, uses, and what they were worth. */
function facts(prompt) {
  const { tokens, bytes, hits, last_used, saved_at, saved_s } = prompt, value = worth(prompt);
  const items = [];
  if (tokens !== null) items.push([`${count(tokens)} tokens`]);
  if (value) items.push([el("span", { class: "worth" }, value)]);
  items.push([bytes ? size(bytes) : "no file"]);
  items.push([plural(hits, "hit", "hits")]);
  if (last_used) items.push(["used ", age(last_used)]);
  else if (saved_at) items.push(["saved ", age(saved_at)]);
  if (saved_s) items.push([el("span", { class: "worth" }, `${duration(saved_s)} of computing saved`)]);
  return items.map((parts) => el("span", {}, ...parts));
}

function buttons({ name, kind, configured }) {
  const address = (action) => `prompts/${encodeURIComponent(name)}/${action}`;
  const made = [];
  if (kind === "learned") {
    const warm = el("button", { type: "button", "aria-label": `Warm up now: ${name}` }, "Warm up now");
    warm.addEventListener("click", () => act(warm, address("warm"), `${name} will be warmed up next.`, `${name} is not warmed up`));
    made.push(warm);
  }
  const pin = el("button", { type: "button", class: "pin" });
  pin.addEventListener("click", () => {
    const pinned = pin.dataset.pinned === "true";
    act(pin, address(pinned ? "unpin" : "pin"), pinned ? `${name} is not pinned any more.` : `${name} is pinned: its file stays.`,
      `${name} is not ${pinned ? "unpinned" : "pinned"}`);
  });
  made.push(pin);
  // The last conversation on a template goes with its template.
  if (!configured) made.push(forgetButton(name, address("forget")));
  return el("div", { class: "buttons" }, ...made);
}

/** A button that has to be pressed twice: what is forgotten has to be computed again. */
function forgetButton(name, address) {
  const button = el("button", { type: "button", "aria-label": `Forget ${name}` }, "Forget");
  let timer = 0;
  const ask = (sure) => {
    clearTimeout(timer);
    button.classList.toggle("sure", sure);
    say(button, sure ? "Forget it?" : "Forget");
    button.setAttribute("aria-label", sure ? `Forget it? ${name}` : `Forget ${name}`);
    if (sure) timer = setTimeout(() => ask(false), SURE);
  };
  button.addEventListener("blur", () => { if (!button.disabled) ask(false); });
  button.addEventListener("click", async () => {
    if (!button.classList.contains("sure")) {
      ask(true);
      announce(`Press again to forget ${name} and remove its file.`);
      return;
    }
    ask(false);
    // Its row will be gone, and the focus must not go with it.
    if (await act(button, address, `${name} is forgotten.`, `${name} is not forgotten`)) byId("h-prompts").focus();
  });
  return button;
}

for (const kind of ["learned", "conversation"]) {
  byId(`more-${kind}`).addEventListener("click", () => {
    all[kind] = true;
    showPrompts(...latest);
    tick();
    byId(`${kind}-list`).children[FIRST].querySelector("button").focus();
  });
}
