// Makes two things of JupyterHub's home page (6.1) work as one expects.
(function () {
  "use strict";
  const LOOK_MS = 50;
  const LONGEST_NAME = 30;
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

  // The name of a new server in its address. JupyterHub makes it from what was typed: in lower case, without spaces and
  // signs, cut after 30 characters. If another server has it already, a number is added.
  function addressName(name, utils) {
    const taken = new Map();
    for (const row of document.querySelectorAll(".home-server-row[data-server-name]")) {
      taken.set(row.dataset.serverName, row.cells[0].textContent.trim());
    }
    const slug = utils.safe_slug(name);
    let found = slug;
    for (let number = 2; taken.has(found) && taken.get(found) !== name; number += 1) {
      const end = "-" + number;
      found = slug.slice(0, LONGEST_NAME - end.length).replace(/-+$/, "") + end;
    }
    return found;
  }

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
      const path = ["spawn", window.jhdata.user, addressName(name, utils)].map(encodeURIComponent).join("/");
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
