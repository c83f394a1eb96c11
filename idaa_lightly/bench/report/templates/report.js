"use strict";
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
document.documentElement.classList.add("js");

/* A click on a column's name sorts its table: numbers from the largest, text from A; again, the other way round. */
for (const button of all("th button")) {
  button.addEventListener("click", () => {
    const head = button.closest("th");
    const table = head.closest("table");
    const numeric = head.hasAttribute("data-numeric");
    const before = head.getAttribute("aria-sort");
    const up = before ? before === "descending" : !numeric;
    for (const other of all("th[aria-sort]", table)) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const key = (row) => row.cells[head.cellIndex].dataset.key;
    const order = (a, b) => (numeric ? Number(a) - Number(b) : a.localeCompare(b, undefined, { numeric: true }));
    const rows = all("tbody tr", table).sort((a, b) => {
      if (key(a) === "" || key(b) === "") return (key(a) === "") - (key(b) === ""); // empty ones stay last
      return order(key(a), key(b)) * (up ? 1 : -1);
    });
    table.tBodies[0].append(...rows);
  });
}

/* The filters hide groups everywhere: rows, lines of plots, pictures, runs. */
const filters = document.getElementById("filters");
const words = document.getElementById("filter-text");
const chosen = ["method", "aug"].map((name) => [name, document.getElementById(`filter-${name}`)]);
const groups = all("#comparison tbody tr");
function filter() {
  const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
  const visible = new Set(
    groups
      .filter((row) => wanted.every((word) => row.dataset.text.includes(word)))
      .filter((row) => chosen.every(([name, field]) => !field || !field.value || row.dataset[name] === field.value))
      .map((row) => row.dataset.groups),
  );
  for (const part of all("[data-groups]")) {
    part.classList.toggle("off", !part.dataset.groups.split(" ").some((group) => visible.has(group)));
  }
  document.getElementById("filter-count").textContent = `${visible.size} of ${groups.length} groups`;
  document.getElementById("filter-reset").disabled = visible.size === groups.length;
}
filters.addEventListener("input", filter);
filters.addEventListener("submit", (event) => event.preventDefault());
filters.addEventListener("reset", () => setTimeout(filter));
filter();

/* Details: all at once by the button, open on paper, and opened where a link leads to them. */
const details = all("details");
const toggle = document.getElementById("open-all");
toggle.addEventListener("click", () => {
  const open = toggle.getAttribute("aria-pressed") !== "true";
  for (const part of all("#runs details")) part.open = open;
  toggle.setAttribute("aria-pressed", open);
});
let closed = [];
window.addEventListener("beforeprint", () => {
  closed = details.filter((part) => !part.open);
  for (const part of closed) part.open = true;
});
window.addEventListener("afterprint", () => {
  for (const part of closed) part.open = false;
});
const reveal = () => {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (target instanceof HTMLDetailsElement) target.open = true;
};
window.addEventListener("hashchange", reveal);
reveal();
