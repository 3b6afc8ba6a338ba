// The figures at the top: is llama-server up, how many templates are warm, what uses the slot, how many requests wait?

import { age, byId, say, show } from "./dom.js";
import { count, fileName, plural } from "./words.js";

/** Show the four figures and the note on llama-server. */
export function showTiles({ llama, templates, gate }) {
  const works = templates.filter((each) => each.state === "warm").length;
  const wrong = templates.filter((each) => each.error).length;
  const warming = templates.filter((each) => each.state === "warming").length;
  const model = llama.model === null ? "" : fileName(llama.model);

  tile("llama", llama.up ? "good" : "bad", llama.up ? "Up" : "Down", [
    llama.up ? [model, llama.build && `build ${llama.build}`].filter(Boolean).join(", ") : llama.trouble ?? llama.url,
  ]);
  tile(
    "warm",
    wrong ? "wrong" : works === templates.length ? "good" : "busy",
    templates.length ? `${works} of ${templates.length} warm` : "None",
    [[wrong && `${count(wrong)} with an error`, warming && `${count(warming)} warming up`].filter(Boolean).join(", ")
      || (templates.length ? (works === templates.length ? "no warm-up pending" : "warm-ups pending") : "none configured")],
  );
  tile("inside", gate.busy ? "busy" : "calm", { user: "User request", warmup: "Warm-up" }[gate.busy] ?? "Free", [
    ...(gate.inside ? [`${subject(gate.inside)}, for `, age(gate.inside.since, "for")] : [llama.up ? "llama-server is idle" : "llama-server is down"]),
  ]);
  tile("queue", gate.waiting ? "busy" : "calm", count(gate.waiting), [
    ...(gate.queue.length ? ["the first for ", age(gate.queue[0].since, "for")] : ["the queue is empty"]),
  ]);
  byId("tile-queue").querySelector(".big").title = plural(gate.waiting, "request waits", "requests wait");

  const note = [llama.note, llama.up && llama.slot_save === false &&
    "llama-server keeps no slot files, so only the last used template stays warm. Start it with --slot-save-path."]
    .filter(Boolean).join(" ");
  say(byId("llama-note"), note);
  show(byId("llama-note"), note !== "");
}

/** Show the shared shelf in one line, where one is used. */
export function showSharedShelf(shared) {
  show(byId("shelf-note"), Boolean(shared));
  if (!shared) return;
  const files = Object.values(shared.files).reduce((sum, each) => sum + each.files, 0);
  const wrong = shared.usable ? shared.trouble && `, nothing can be added: ${shared.trouble}` : `, not usable now: ${shared.trouble ?? "not looked at yet"}`;
  say(byId("shelf-note"), `Shared shelf: ${plural(files, "file", "files")}, ${count(shared.tokens_fetched)} tokens fetched instead of computed${wrong || ""}`);
}

const subject = (who) => (who.template ? `template ${who.template}` : who.prompt ? `prompt ${who.prompt}` : who.path ? "no template" : "saving a conversation");

function tile(name, mood, big, small) {
  const node = byId(`tile-${name}`);
  node.dataset.mood = mood;
  say(node.querySelector(".big"), big);
  node.querySelector(".small").replaceChildren(...small);
}
