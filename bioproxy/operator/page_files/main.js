// The live page: keeps the data that bioproxy sends, and updates the parts of the page that show it.
//
//   stream.js     the connection              tiles.js      the four figures at the top
//   time.js       clocks and ages             templates.js  templates and their buttons
//   dom.js        elements, text only         gate.js       the running request and the queue
//   words.js      numbers, units and codes    requests.js   the latest requests
//   preview.js    the filled text             plots.js      the last hour
//   actions.js    buttons, and their result   prompts.js    learned prompts and conversations

import { byId, say, show } from "./dom.js";
import { showGate } from "./gate.js";
import { movePlots, showPlots } from "./plots.js";
import { showPrompts } from "./prompts.js";
import { showRequests } from "./requests.js";
import { listen } from "./stream.js";
import { showTemplates } from "./templates.js";
import { showSharedShelf, showTiles } from "./tiles.js";
import { setClock, tick } from "./time.js";

const REQUESTS = 100; // requests kept, as many as bioproxy keeps
const HOUR = 3600; // seconds

let state = null;

/** Merge an event into `state`: the first event ("status") has everything, later ones ("change") only what changed. */
function told(kind, { told_at, clock, ...news }) {
  setClock(told_at, clock);
  connected(true);
  if (kind === "beat") return;
  if (kind === "status") {
    state = news;
  } else {
    const { requests = [], history = [], ...rest } = news;
    Object.assign(state, rest);
    const fresh = new Set(requests.map((each) => each.id));
    if (requests.length) {
      state.requests = [...requests, ...state.requests.filter((each) => !fresh.has(each.id))].slice(0, REQUESTS);
    }
    const last = state.history.at(-1)?.[0] ?? 0;
    const points = history.filter((point) => point[0] > last);
    const begin = (points.at(-1)?.[0] ?? last) - HOUR;
    if (points.length) state.history = [...state.history, ...points].filter((point) => point[0] >= begin);
    news = { ...rest, ...(requests.length && { requests }), ...(points.length && { history }) };
  }
  render(kind === "status" ? state : news);
}

/** Update the parts of the page whose data changed. */
function render(changed) {
  if ("started_at" in changed) showAbout();
  if ("llama" in changed || "templates" in changed || "gate" in changed) showTiles(state);
  if ("shared_shelf" in changed) showSharedShelf(state.shared_shelf);
  if ("templates" in changed) showTemplates(state.templates);
  if ("prompts" in changed || "shelf" in changed) showPrompts(state.prompts, state.shelf);
  if ("gate" in changed || "llama" in changed) showGate(state.gate, state.llama.up);
  if ("requests" in changed) showRequests(state.requests);
  if ("history" in changed || "gate" in changed) showPlots(state.history, state.gate.waiting);
  tick();
}

function showAbout() {
  const since = document.createElement("time");
  since.dateTime = state.started_at;
  since.dataset.age = "for";
  byId("about").replaceChildren(`version ${state.version}, up for `, since);
}

function connected(yes) {
  document.body.classList.toggle("stale", !yes);
  byId("line").dataset.state = yes ? "live" : "lost";
  say(byId("line-text"), yes ? "live" : "disconnected");
  show(byId("lost"), !yes);
}

listen("events", told, () => connected(false));
setInterval(() => {
  if (state === null || document.hidden) return;
  tick();
  movePlots(state.gate.waiting);
}, 1000);
