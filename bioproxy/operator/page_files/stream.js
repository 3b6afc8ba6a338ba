// The connection to the proxy: server-sent events.  The browser connects again by itself when the connection is lost, for
// example because bioproxy was restarted.  Three things are left to us: a server that answers with an error (the browser
// then gives up), a connection that died without a word (there is a sign of life every 15 seconds), and a page that nobody
// looks at (it hangs up, and costs nothing).

const DUMB = 40_000; // milliseconds without a sign of life
const AGAIN = 2_000;

/** Listen to `url`; `told(kind, data)` for each event, `lost()` when there is no connection. */
export function listen(url, told, lost) {
  let source = null, watchdog = 0, retry = 0;

  function close() {
    clearTimeout(watchdog);
    clearTimeout(retry);
    source?.close();
    source = null;
  }

  function open() {
    close();
    source = new EventSource(url);
    for (const kind of ["status", "change", "beat"]) {
      source.addEventListener(kind, (event) => {
        alive();
        told(kind, JSON.parse(event.data));
      });
    }
    source.onerror = () => {
      lost();
      if (source?.readyState === EventSource.CLOSED) {
        clearTimeout(retry);
        retry = setTimeout(open, AGAIN);
      }
    };
    alive();
  }

  function alive() {
    clearTimeout(watchdog);
    watchdog = setTimeout(() => { lost(); open(); }, DUMB);
  }

  document.addEventListener("visibilitychange", () => (document.hidden ? close() : open()));
  addEventListener("pagehide", close);
  addEventListener("pageshow", (event) => { if (event.persisted) open(); });
  open();
}
