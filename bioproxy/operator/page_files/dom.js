// Small helpers for the page.  Whatever is shown may come from anybody (paths, errors), so everything is put in as text:
// nothing here or elsewhere makes HTML of a string.

export const byId = (id) => document.getElementById(id);

/** Make an element: `el("p", {class: "x"}, "text", child)`.  Properties are attributes; `null` and `false` are left out. */
export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

/** Put a text in, if it is another: what did not change is not laid out anew, and no screen reader is disturbed. */
export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Show or hide. */
export function show(node, shown) {
  if (node.hidden === shown) node.hidden = !shown;
}

/** An icon: one of the symbols at the top of index.html. */
export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

/** A badge: colour, icon and word say the same. */
export const badge = (kind, word) => el("span", { class: `badge ${kind}` }, icon(kind), word);

/** A time that `tick` in time.js keeps current: "3 min ago", or with `kind` "for" the bare duration. */
export const age = (iso, kind = "ago") => el("time", { datetime: iso, "data-age": kind });

/** Make the children of `parent` those that `make` gives for `items`; one whose key and value are as before stays. */
export function keep(parent, items, key, make) {
  const old = new Map([...parent.children].map((node) => [node.dataset.key, node]));
  const nodes = items.map((item) => {
    const name = String(key(item)), value = JSON.stringify(item), known = old.get(name);
    if (known && known.keptValue === value) return known;
    const node = make(item, known);
    node.dataset.key = name;
    node.keptValue = value;
    return node;
  });
  const wanted = new Set(nodes);
  for (const node of [...parent.children]) if (!wanted.has(node)) node.remove();
  nodes.forEach((node, index) => {
    if (parent.children[index] !== node) parent.insertBefore(node, parent.children[index] ?? null);
  });
}
