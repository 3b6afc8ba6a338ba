// The figures at the top: is llama-server up, what is warm, who is inside, who waits?

import { age, byId, say, show } from "./dom.js";
import { count, fileName, plural } from "./words.js";

/** Show them. */
export function showTiles({ llama, templates, gate }) {
  const works = templates.filter((each) => each.state === "warm").length;
  const wrong = templates.filter((each) => each.error).length;
  const warming = templates.filter((each) => each.state === "warming").length;
  const model = llama.model === null ? "" : fileName(llama.model);

  tile("llama", llama.up ? "good" : "bad", llama.up ? "Up" : "Away", [
    llama.up ? [model, llama.build && `build ${llama.build}`].filter(Boolean).join(", ") : llama.trouble ?? llama.url,
  ]);
  tile(
    "warm",
    wrong ? "wrong" : works === templates.length ? "good" : "busy",
    templates.length ? `${works} of ${templates.length} warm` : "None",
    [[wrong && `${count(wrong)} with an error`, warming && `${count(warming)} warming up`].filter(Boolean).join(", ")
      || (templates.length ? (works === templates.length ? "all answer at once" : "the rest will follow") : "none are configured")],
  );
  tile("inside", gate.busy ? "busy" : "calm", { user: "A user", warmup: "A warm-up" }[gate.busy] ?? "Nobody", [
    ...(gate.inside ? [`${subject(gate.inside)}, for `, age(gate.inside.since, "for")] : [llama.up ? "llama-server is free" : "llama-server is away"]),
  ]);
  tile("queue", gate.waiting ? "busy" : "calm", count(gate.waiting), [
    ...(gate.queue.length ? ["the first for ", age(gate.queue[0].since, "for")] : ["nobody has to wait"]),
  ]);
  byId("tile-queue").querySelector(".big").title = plural(gate.waiting, "request waits", "requests wait");

  const note = [llama.note, llama.up && llama.slot_save === false &&
    "llama-server keeps no slot files: start it with --slot-save-path, or only the last template stays warm."]
    .filter(Boolean).join(" ");
  say(byId("llama-note"), note);
  show(byId("llama-note"), note !== "");
}

const subject = (who) => (who.template ? `template ${who.template}` : who.path ? "no template" : "keeping a conversation");

function tile(name, mood, big, small) {
  const node = byId(`tile-${name}`);
  node.dataset.mood = mood;
  say(node.querySelector(".big"), big);
  node.querySelector(".small").replaceChildren(...small);
}
