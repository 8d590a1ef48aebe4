"use strict";
// Pages are whole without this: it only loads them again when something has become different.
(() => {
  const main = document.querySelector("main[data-live]");
  const news = document.getElementById("news");
  if (!main || !window.EventSource) return;
  let timer = 0;
  let loading = false;
  let again = false;

  const typing = () => {
    const at = document.activeElement;
    return at && main.contains(at) && ["INPUT", "TEXTAREA", "SELECT"].includes(at.tagName);
  };

  const load = async () => {
    if (loading || typing()) { again = true; return; }
    loading = true;
    try {
      const answer = await fetch(location.href, { headers: { Accept: "text/html" }, redirect: "manual" });
      if (answer.type === "opaqueredirect" || answer.status === 401) { location.reload(); return; }
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      const fresh = page.querySelector("main[data-live]");
      if (answer.ok && fresh) {
        const focused = document.activeElement && document.activeElement.getAttribute("href");
        const scrolled = [...main.querySelectorAll(".scroll")].map((each) => each.scrollLeft);
        main.replaceChildren(...fresh.childNodes);
        [...main.querySelectorAll(".scroll")].forEach((each, i) => { each.scrollLeft = scrolled[i] || 0; });
        if (focused) { const link = main.querySelector(`a[href="${CSS.escape(focused)}"]`); if (link) link.focus({ preventScroll: true }); }
        const states = [...main.querySelectorAll(".tile .state")].map((each) => each.textContent.trim());
        news.textContent = `Followed live${states.length ? `: ${states.join(", ")}` : ""}, as of ${new Date().toISOString().slice(0, 19).replace("T", " ")} UTC.`;
      }
    } catch (error) {
      news.textContent = "This server cannot be reached; what is shown is old.";
    } finally {
      loading = false;
      if (again) { again = false; soon(); }
    }
  };

  const soon = () => { clearTimeout(timer); timer = setTimeout(load, 150); };

  let first = { status: true, agents: true };
  const stream = new EventSource("/events");
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
  });
  main.addEventListener("focusout", () => { if (again) soon(); });
})();
