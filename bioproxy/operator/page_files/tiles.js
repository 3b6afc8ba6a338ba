// Two things in short at the top: is llama-server up, and how many templates are warm?

import { byId, say, show } from "./dom.js";
import { count, fileName, isStarting, plural } from "./words.js";

/** Show both, and the note on llama-server.  Why it is down, and what helps, is said above them (next.js). */
export function showTiles({ llama, templates }) {
  const works = templates.filter((each) => each.state === "warm").length;
  const wrong = templates.filter((each) => each.error).length;
  const warming = templates.filter((each) => each.state === "warming").length;
  const model = llama.model === null ? "" : fileName(llama.model);

  // A build that was not made from a known source has a number that says nothing.
  const build = llama.build && !llama.build.includes("unknown") && `build ${llama.build}`;
  const starting = isStarting(llama);
  tile("llama", llama.up ? "good" : starting ? "busy" : "bad", llama.up ? "Up" : starting ? "Starting" : "Down", [
    llama.up ? [model, build].filter(Boolean).join(", ") : llama.child ? fileName(llama.child.model) : llama.url,
  ]);
  tile(
    "warm",
    wrong ? "wrong" : !templates.length ? "calm" : works === templates.length ? "good" : "busy",
    templates.length ? `${works} of ${templates.length} warm` : "None",
    [[wrong && `${count(wrong)} with an error`, warming && `${count(warming)} warming up`].filter(Boolean).join(", ")
      || (templates.length ? (works === templates.length ? "no warm-up pending" : "warm-ups pending") : "")],
  );

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

function tile(name, mood, big, small) {
  const node = byId(`tile-${name}`);
  node.dataset.mood = mood;
  say(node.querySelector(".big"), big);
  node.querySelector(".small").replaceChildren(...small);
}
