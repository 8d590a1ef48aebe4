"use strict";
// Pages are whole without this: it only loads them again when something has become different.
(() => {
  const main = document.querySelector("main[data-live]");
  const news = document.getElementById("news");
  if (!main || !window.EventSource) return;
  const GATHER = 150; // milliseconds in which news become one
  const EVERY = 1000; // between two loads, however much happens; ten times what the last one took where that is more
  const SELDOM = 15000; // and not more than this
  const AGAIN = 5000; // after a load that failed
  const FIRST_PAUSE = 1000; // before a stream that was refused is asked for again; it doubles
  const LONGEST_PAUSE = 60000;
  let timer = 0;
  let began = 0; // when the last load did
  let took = 0;
  let loading = false;
  let again = false;
  let stream = null;
  let pause = FIRST_PAUSE;

  const typing = () => {
    const at = document.activeElement;
    return at && main.contains(at) && ["INPUT", "TEXTAREA", "SELECT"].includes(at.tagName);
  };

  // Links by where they lead, regions by their names: what stands before them may have come or gone.
  const sameAs = (at) => {
    const kind = ["href", "aria-label", "type"].find((each) => at.hasAttribute(each));
    return kind ? `[${kind}="${CSS.escape(at.getAttribute(kind))}"]` : null;
  };

  const replace = (fresh) => {
    const at = main.contains(document.activeElement) && document.activeElement !== main ? document.activeElement : null;
    const focused = at && sameAs(at);
    const place = focused ? [...main.querySelectorAll(focused)].indexOf(at) : 0;
    const scrolled = [...main.querySelectorAll(".scroll")].map((each) => [sameAs(each), each.scrollLeft]);
    main.replaceChildren(...fresh.childNodes);
    for (const [region, left] of scrolled) {
      const found = region && main.querySelector(region);
      if (found) found.scrollLeft = left;
    }
    if (focused) {
      const found = main.querySelectorAll(focused);
      if (found.length) found[Math.min(place, found.length - 1)].focus({ preventScroll: true });
    }
  };

  const told = () => {
    const states = [...main.querySelectorAll(".tile .state")].map((each) => each.textContent.trim());
    const at = new Date().toISOString().slice(0, 19).replace("T", " ");
    const followed = stream.readyState === EventSource.OPEN;
    const how = followed ? "Followed live" : "Changes cannot be followed now, which is tried again";
    return `${how}${states.length ? `: ${states.join(", ")}` : ""}, as of ${at} UTC.`;
  };

  const load = async () => {
    if (loading || typing()) { again = true; return; }
    loading = true;
    began = Date.now();
    try {
      const answer = await fetch(location.href, { headers: { Accept: "text/html" }, redirect: "manual" });
      if (answer.type === "opaqueredirect" || answer.status === 401 || answer.status === 403) { location.reload(); return; }
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      const fresh = page.querySelector("main[data-live]");
      if (answer.ok && fresh) {
        replace(fresh);
        news.textContent = told();
      } else {
        news.textContent = `This server answers ${answer.status}, which is tried again; what is shown may be old.`;
        setTimeout(soon, AGAIN);
      }
    } catch (error) {
      news.textContent = "This server cannot be reached, which is tried again; what is shown is old.";
      setTimeout(soon, AGAIN);
    } finally {
      loading = false;
      took = Date.now() - began;
      if (again && !typing()) soon();
    }
  };

  // What is waited for already is not put off: there may be no end of news.
  const soon = () => {
    if (timer) return;
    const next = began + Math.min(SELDOM, Math.max(EVERY, 10 * took));
    timer = setTimeout(() => { timer = 0; again = false; load(); }, Math.max(GATHER, next - Date.now()));
  };

  const listen = (first) => {
    stream = new EventSource("/events");
    stream.addEventListener("open", () => { pause = FIRST_PAUSE; });
    for (const name of ["status", "agents", "pass"]) {
      stream.addEventListener(name, () => {
        if (first[name]) { first[name] = false; return; }
        soon();
      });
    }
    stream.addEventListener("end", () => { stream.close(); location.reload(); });
    stream.addEventListener("error", () => {
      first = {};
      news.textContent = "The connection is lost and tried again; what is shown may be old.";
      if (stream.readyState !== EventSource.CLOSED) return; // the browser connects again by itself
      soon(); // leads to the log-in when the session is over, and shows what is new when only the stream is refused
      setTimeout(() => listen({}), pause * (0.5 + Math.random()));
      pause = Math.min(LONGEST_PAUSE, 2 * pause);
    });
  };

  listen({ status: true, agents: true });
  main.addEventListener("focusout", () => { if (again) soon(); });
})();
