// The commands that a new user is told to type, as texts for a POSIX shell.  bioproxy says where things are (`setup`, see
// bioproxy/operator/first_steps.py), so that each command works as it stands, on the machine on which bioproxy runs.

/** A text as one word for the shell. */
const word = (text) => (/^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);

/** The folder of a path. */
const folderOf = (path) => path.slice(0, path.lastIndexOf("/")) || "/";

/** The URL of the clients' port.  One that listens on all addresses is reached where this page was. */
export const clientsUrl = ({ clients }) => clients?.replace(/\/\/(0\.0\.0\.0|\[::\]):/, `//${location.hostname}:`) ?? null;

/** Ask a question, with a template's prefix or without one (`null`). */
export function askCommand(setup, prefix) {
  // The length is limited: a small model may not find an end, and curl shows nothing before that.
  const content = prefix === null ? "Who are you?" : `${prefix} What is this about?`;
  return [
    "curl -s",
    ...(setup.socket !== null ? [`--unix-socket ${word(setup.socket)}`] : []),
    `${clientsUrl(setup)}/v1/chat/completions`,
    ...(setup.needs_key ? ["-H 'Authorization: Bearer KEY'"] : []),
    `-d ${word(JSON.stringify({ messages: [{ role: "user", content }], max_tokens: 200 }))}`,
  ].join(" ");
}

/** Start a llama-server that listens where bioproxy looks for one. */
export function llamaCommand(url, folder) {
  const { hostname, port, protocol } = new URL(url);
  const host = hostname.replace(/^\[|\]$/g, "");
  const slots = folder === null ? "~/slots" : word(folder);
  return [
    `mkdir -p -m 700 ${slots}`,
    `llama-server -m model.gguf --host ${host} --port ${port || (protocol === "https:" ? 443 : 80)} -np 1 --slot-save-path ${slots}/`,
  ].join("\n");
}

/** Write a configuration with a first template, where there is no configuration yet. */
export function initCommand({ command, configuration }, { url, child }) {
  const source = child === null ? `--llama-url ${word(url)}` : `--model ${word(child.model)}`;
  return `${command} init --config ${word(configuration)} ${source} --document ~/notes.txt`;
}

/** Write a template beside the configuration that is there, and name it in it. */
export function templateCommand({ configuration }) {
  const file = word(`${folderOf(configuration)}/notes-template.txt`);
  return `printf 'Here is a document.\\n\\n<{%s}>\\n\\n<{message}>\\n' ~/notes.txt > ${file}`;
}

export const TEMPLATE_SETTING = '"prefixes": { "@notes": "notes-template.txt" }';

/** Have bioproxy read its configuration again.  Its port for operators is the one that this page came from. */
export const reloadCommand = () => `curl -X POST ${word(new URL("reload", location.href).href)}`;
