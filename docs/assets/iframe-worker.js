/* The site's search runs in a worker, a second thread of the browser.  A page that was opened from a file may not start one:
 * browsers take each file for a website of its own.  There, and only there, this replaces Worker by a class that runs the
 * worker's script in an invisible frame.
 *
 * On both sides, messages are sent with postMessage and come as events "message": of the worker for the page, of its own global
 * object for the worker's script.  Other abilities of workers are missing; the search in English needs none. */
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(address) {
      super()
      const frame = document.createElement("iframe")
      frame.hidden = true
      frame.title = "search"
      frame.addEventListener("message", event => this.dispatchEvent(new MessageEvent("message", { data: event.data })))
      /* What is sent before the script has been loaded waits for it. */
      this.ready = new Promise(resolve => frame.addEventListener("load", () => resolve(frame.contentWindow)))
      /* A frame with a text instead of an address belongs to the page's own website, so both may call each other. */
      frame.srcdoc = `<!doctype html><title>search</title>
        <script>var postMessage = data => frameElement.dispatchEvent(new MessageEvent("message", { data }))</script>
        <script src="${address}"></script>`
      document.body.append(frame)
    }
    postMessage(data) {
      this.ready.then(frame => frame.dispatchEvent(new MessageEvent("message", { data })))
    }
  }
}
