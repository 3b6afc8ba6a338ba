/* What the theme leaves out for those who use a keyboard or have the page read to them. */
const complete = () => {
  /* The search is a dialog without a name, and the button of each code block is in a landmark of its own. */
  for (const search of document.querySelectorAll(".md-search")) search.setAttribute("aria-label", "Search")
  for (const buttons of document.querySelectorAll(".md-code__nav")) buttons.setAttribute("role", "none")
  /* What is wider than the page can be scrolled with the keyboard only if it can have the focus. */
  for (const wide of document.querySelectorAll("pre > code, .md-typeset__scrollwrap")) {
    if (wide.getAttribute("tabindex") !== "0") wide.tabIndex = 0
  }
}
complete()
/* The theme's script adds the buttons later, and takes the focus away from what fits, for a width that may change. */
new MutationObserver(complete).observe(document.body, { childList: true, subtree: true, attributeFilter: ["tabindex"] })
