// Small helpers for the page.  Data may contain text from any client (paths, errors), so everything is inserted as text:
// no string is ever parsed as HTML, here or in another module.

export const byId = (id) => document.getElementById(id);

/** Create an element: `el("p", {class: "x"}, "text", child)`.  Attributes that are `null` or `false` are left out. */
export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

/** Set a text if it changed: unchanged text causes no layout, and screen readers do not announce it again. */
export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Show or hide a node. */
export function show(node, shown) {
  if (node.hidden === shown) node.hidden = !shown;
}

/** Create an icon: one of the symbols at the top of index.html. */
export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

/** Create a badge.  Colour, icon and word have the same meaning, so colour is never needed. */
export const badge = (kind, word) => el("span", { class: `badge ${kind}` }, icon(kind), word);

/** Create a time that `tick` in time.js updates: "3 min ago", or with `kind` "for" only the duration. */
export const age = (iso, kind = "ago") => el("time", { datetime: iso, "data-age": kind });

/** Give `parent` one child per item, created by `make`.  A child whose key and value are unchanged is kept. */
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
  // A node that is moved loses the keyboard's focus.
  const focused = document.activeElement;
  const wanted = new Set(nodes);
  for (const node of [...parent.children]) if (!wanted.has(node)) node.remove();
  nodes.forEach((node, index) => {
    if (parent.children[index] !== node) parent.insertBefore(node, parent.children[index] ?? null);
  });
  if (focused !== document.activeElement && parent.contains(focused)) focused.focus({ preventScroll: true });
}
