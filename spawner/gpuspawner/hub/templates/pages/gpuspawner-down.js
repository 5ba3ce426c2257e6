// The hub shows this page in place of a server or a service that doesn't answer. The address says which: only its
// sentence stays. A service's page is loaded again as soon as it answers.
(function () {
  "use strict";
  const SECONDS = 3;
  const service = /\/services\/[^/]+\//.test(window.location.pathname);
  for (const part of document.querySelectorAll("[data-for]")) {
    part.hidden = part.dataset.for !== (service ? "service" : "server");
  }
  for (const part of document.querySelectorAll(".gpu-unsure")) part.remove();
  async function look() {
    const answer = await fetch(window.location, { redirect: "manual" }).catch(() => null);
    if (answer !== null && answer.status !== 503) window.location.reload();
    else window.setTimeout(look, 1000 * SECONDS);
  }
  if (service) window.setTimeout(look, 1000 * SECONDS);
})();
