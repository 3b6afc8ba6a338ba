// The connection to bioproxy: server-sent events.  The browser reconnects by itself when the connection is lost, for example
// because bioproxy was restarted.  It does not handle three cases, which are handled here: a server that answers with an
// error (the browser gives up), a connection that died silently (bioproxy sends an event every 15 seconds, so silence is
// noticed), and a hidden page (it disconnects and costs nothing).

const UNRESPONSIVE = 40_000; // milliseconds without an event
const RETRY = 2_000; // milliseconds until the next attempt

/** Listen to `url`: calls `told(kind, data)` for each event, and `lost()` when there is no connection. */
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
        retry = setTimeout(open, RETRY);
      }
    };
    alive();
  }

  function alive() {
    clearTimeout(watchdog);
    watchdog = setTimeout(() => { lost(); open(); }, UNRESPONSIVE);
  }

  document.addEventListener("visibilitychange", () => (document.hidden ? close() : open()));
  addEventListener("pagehide", close);
  addEventListener("pageshow", (event) => { if (event.persisted) open(); });
  open();
}
