// Makes two things of JupyterHub's home page (6.1) work as one expects.
(function () {
  "use strict";
  const LOOK_MS = 50;
  const BUTTONS = "#stop, .stop-server, .delete-server";

  // JupyterHub's home.js gives these buttons their work when its scripts have been loaded, which can be after the page
  // is shown; it then says so in `_jupyterhub_page_loaded`. A click before that is kept, and repeated then.
  document.addEventListener("click", (event) => {
    const button = event.target.closest(BUTTONS);
    if (button === null || window._jupyterhub_page_loaded || button.classList.contains("disabled")) return;
    button.classList.add("disabled");
    const waiting = window.setInterval(() => {
      if (!window._jupyterhub_page_loaded) return;
      window.clearInterval(waiting);
      button.classList.remove("disabled");
      button.click();
    }, LOOK_MS);
  }, true);

  // A new named server is chosen on the spawn page, with the name as it was typed. Without options there, JupyterHub's own
  // handlers start it at once: so these listeners come before them.
  if (!window.jhdata.options_form) return;
  function choose(event, row) {
    event.preventDefault();
    event.stopImmediatePropagation();
    const input = row.querySelector(".new-server-name");
    require(["utils"], (utils) => {
      const name = utils.sanitise_display_name(input.value);
      if (!name) {
        input.focus();
        return;
      }
      const path = ["spawn", window.jhdata.user, utils.safe_slug(name)].map(encodeURIComponent).join("/");
      window.location.assign(window.jhdata.base_url + path + "?display_name=" + encodeURIComponent(name));
    });
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest(".new-server-btn");
    if (button !== null) choose(event, button.closest(".home-server-row"));
  }, true);
  document.addEventListener("keypress", (event) => {
    if (event.key === "Enter" && event.target.matches(".new-server-name")) choose(event, event.target.closest(".home-server-row"));
  }, true);
})();
