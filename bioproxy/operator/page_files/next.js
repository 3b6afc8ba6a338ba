// What to do next: start llama-server, make a template, ask a first question; each with the commands to type (commands.js).
// A step disappears when it is done.  Until the first question was asked, parts of the page that would be empty are hidden.

import { askCommand, clientsUrl, initCommand, llamaCommand, reloadCommand, TEMPLATE_SETTING, templateCommand } from "./commands.js";
import { byId, el, keep, show } from "./dom.js";
import { fileName, isStarting } from "./words.js";

/** Show the steps that are to be done, and hide what would be empty. */
export function showNext({ setup, llama, templates, prompts, requests }) {
  // The uses of slot files are kept over restarts of bioproxy; the latest requests are not.
  const asked = requests.length > 0 || prompts.some((each) => each.hits > 0 || each.last_used !== null);
  const template = templates.length === 0 ? templateStep(setup, llama) : null;
  const steps = [
    ...(llama.up ? [] : [llamaStep(setup, llama)]),
    ...(asked || template === null ? [] : [template]),
    ...(asked || !llama.up || clientsUrl(setup) === null ? [] : [askStep(setup, templates)]),
  ];
  keep(byId("steps"), steps, (step) => step.title, stepNode);
  byId("steps").classList.toggle("one", steps.length === 1);
  show(byId("next"), steps.length > 0);
  // Who never makes a template is not reminded at the top of the page for ever.
  keep(byId("no-templates"), asked && template !== null ? [template] : [], (step) => step.title, stepNode);
  show(byId("no-templates"), asked && template !== null);
  show(byId("templates"), asked || template === null);
  for (const id of ["tile-warm", "prompts", "plots", "requests"]) show(byId(id), asked || (id === "tile-warm" && template === null));
}

// A step is { title, parts }.  A part is a sentence, or { type: "..." }: lines to be typed.

function llamaStep(setup, llama) {
  const { child, trouble, help, url } = llama;
  if (isStarting(llama)) {
    return { title: "llama.cpp is starting", parts: [`It loads ${fileName(child.model)}. Requests wait until it is ready.`] };
  }
  if (child !== null && child.trouble !== null) {
    const parts = [sentence(child.trouble.replace(/^llama\.cpp does not start: /, ""))];
    if (setup.has_configuration) {
      parts.push(`Correct model or llama_args in ${setup.configuration}, then have it read again:`, { type: reloadCommand() });
    }
    return { title: "llama.cpp does not start", parts: [...parts, "What was given on bioproxy's command line needs a restart. bioproxy tries again by itself."] };
  }
  if (child !== null) return { title: "llama.cpp does not answer", parts: [sentence(trouble), "If it ends, bioproxy starts it again."] };
  const parts = [sentence(trouble), ...(help ? [sentence(help)] : [])];
  // The beginning of the advice on a server that cannot be reached (bioproxy/operator/advice.py).
  if (!help?.startsWith("start llama-server")) return { title: `llama-server at ${url} is not ready`, parts };
  parts.push("With your own file in the place of model.gguf:", { type: llamaCommand(url, setup.slot_save_path) });
  return { title: "Start llama-server", parts };
}

function templateStep(setup, llama) {
  const parts = ["A template is a text that many questions are about, such as a handbook. llama-server reads it before anybody asks."];
  if (setup.configuration === null) return { title: "Make a template", parts };
  parts.push("With your own text in the place of ~/notes.txt:");
  if (setup.has_configuration) {
    parts.push({ type: templateCommand(setup) }, `Add this to ${setup.configuration}:`, { type: TEMPLATE_SETTING });
  } else {
    parts.push({ type: initCommand(setup, llama) });
  }
  return { title: "Make a template", parts: [...parts, "Then have bioproxy read its configuration:", { type: reloadCommand() }] };
}

function askStep(setup, templates) {
  const template = templates.find((each) => !each.error) ?? null;
  const parts = [];
  const about = template ? `A message that begins with ${template.prefix} gets the text of that template. ` : "";
  parts.push(`${about}From a terminal:`, { type: askCommand(setup, template && template.prefix) });
  if (setup.needs_key) parts.push("KEY is one of your keys.");
  const url = clientsUrl(setup);
  if (setup.socket === null) parts.push(`Or with any client of yours. Its base URL is ${url}/v1 for OpenAI's API, ${url} for Anthropic's.`);
  return { title: "Ask a first question", parts };
}

/** A text from bioproxy as a sentence.  Names of programs and settings stay as they are. */
function sentence(text) {
  const begin = /^(llama|bioproxy|http)/.test(text) ? text.charAt(0) : text.charAt(0).toUpperCase();
  return `${begin}${text.slice(1)}${/[.!?]$/.test(text) ? "" : "."}`;
}

function stepNode({ title, parts }) {
  // A list item in the list of steps; in the section of the templates the same, without a number.
  return el("li", { class: "step" }, el("h3", {}, title), ...parts.map((part) =>
    typeof part === "string" ? el("p", {}, part) : el("pre", { class: "type" }, part.type)));
}
