"use strict";
/* Sorts and searches the tables, leads from an id to its card, or where it has none to the command that says why it is
   in or out, and steps through the cards by key. Without it the page reads the same. Users' names are text here, never markup. */
(() => {
const text = (row, at) => (row.cells[at]?.textContent ?? "").trim();
const number = (written) => { const value = parseFloat(written.replace(/[,\s]/g, "").replace("−", "-")); return isNaN(value) ? null : value; };
function sort(body, at, words, sign) {
  const keyed = [...body.rows].map((row) => [row, words ? text(row, at) : number(text(row, at))]);
  keyed.sort(([, a], [, b]) => a === null || b === null ? (a === null) - (b === null)  // what has no figure stays last
    : sign * (words ? a.localeCompare(b, "en", { numeric: true }) : a - b));
  body.append(...keyed.map(([row]) => row));
}
for (const table of document.querySelectorAll("main table")) {
  const body = table.tBodies[0], headers = [...table.tHead.rows[0].cells];
  if (body.rows.length < 2 || headers.some((cell) => cell.tagName === "TD")) continue;
  for (const header of headers) {
    const button = document.createElement("button"), words = header.classList.contains("words");
    button.type = "button";
    button.append(...header.childNodes);
    header.append(button);
    button.addEventListener("click", () => {
      const was = header.getAttribute("aria-sort"), up = was ? was === "descending" : words;
      for (const other of headers) other.removeAttribute("aria-sort");
      header.setAttribute("aria-sort", up ? "ascending" : "descending");
      sort(body, header.cellIndex, words, up ? 1 : -1);
    });
  }
  if (body.rows.length < 10) continue;
  const region = table.closest(".scroll"), box = document.createElement("input");
  box.type = "search";
  box.className = "find";
  box.placeholder = "Search this table";
  box.setAttribute("aria-label", "Search: " + region.getAttribute("aria-label"));
  box.addEventListener("input", () => {
    const wanted = box.value.trim().toLowerCase();
    for (const row of body.rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
  });
  region.before(box);
}
const cards = [...document.querySelectorAll(".listen li")], cardOf = new Map();
cards.forEach((card, i) => {
  card.id = "card-" + i;
  card.tabIndex = -1;
  const id = card.querySelector("code").textContent;
  if (!cardOf.has(id)) cardOf.set(id, card.id);
});
const why = document.getElementById("why");
const shell = (text) => /^[\w@%+=:,./-]+$/.test(text) ? text : "'" + text.replaceAll("'", "'\\''") + "'";
function ask(id, region) {
  const folder = location.protocol === "file:" ? decodeURIComponent(location.pathname.replace(/\/[^/]*$/, "")) : "RUN_DIR";
  why.querySelector("code").textContent = "python -m balance.why " + shell(folder) + " " + shell(id);
  region.after(why);
  why.hidden = false;
  why.focus();
}
for (const code of document.querySelectorAll("td code, tbody th code")) {
  const id = code.textContent, link = document.createElement("a"), region = code.closest(".scroll");
  link.href = "#" + (cardOf.get(id) ?? "why");
  if (!cardOf.has(id)) link.addEventListener("click", (event) => { event.preventDefault(); ask(id, region); });
  code.replaceWith(link);
  link.append(code);
}
let at = -1;
document.addEventListener("focusin", (event) => { const card = event.target.closest(".listen li"); if (card) at = cards.indexOf(card); });
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || event.target.closest("input, select, textarea")) return;
  const step = { n: 1, j: 1, p: -1, k: -1 }[event.key];
  if (step && cards.length) {
    at = Math.min(Math.max(at + step, 0), cards.length - 1);
    cards[at].focus();
  } else if ((event.key === " " || event.key === "Enter") && cards.includes(event.target)) {
    const player = event.target.querySelector("audio");
    if (player) player.paused ? player.play().catch(() => {}) : player.pause();
  } else return;
  event.preventDefault();
});
window.addEventListener("beforeprint", () => { for (const details of document.querySelectorAll("details")) details.open = true; });
for (const hint of document.querySelectorAll(".keys")) hint.hidden = !cards.length;
})();
