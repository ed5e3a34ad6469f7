"use strict";
// Sorting by any column, and showing only rows that match words and flags. Rows without a value stay last.
const table = document.getElementById("masks");
const body = table.tBodies[0];
const rows = Array.from(body.rows);
const words = document.getElementById("words");
const flags = Array.from(document.querySelectorAll("button[data-flag]"));
const shown = document.getElementById("shown");

function valueOf(row, column) {
  const cell = row.cells[column];
  const number = cell.dataset.number;
  return number === undefined ? cell.textContent.trim() : number === "" ? null : Number(number);
}

function compare(one, other) {
  if (typeof one === "number" && typeof other === "number") return one - other;
  return String(one).localeCompare(String(other), undefined, { numeric: true });
}

function sortBy(heading) {
  const column = heading.cellIndex;
  const descending = heading.getAttribute("aria-sort") === "ascending";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
  const keyed = rows.map((row) => [valueOf(row, column), row]);
  keyed.sort(([one], [other]) => {
    const missing = (one === null || one === "") - (other === null || other === "");
    return missing || (descending ? compare(other, one) : compare(one, other));
  });
  body.append(...keyed.map(([, row]) => row));
}

function filter() {
  const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
  const pressed = flags.filter((one) => one.getAttribute("aria-pressed") === "true").map((one) => one.dataset.flag);
  let count = 0;
  for (const row of rows) {
    const text = row.textContent.toLowerCase();
    const own = row.dataset.flags.split("|");
    const fits = wanted.every((word) => text.includes(word));
    row.hidden = !(fits && (pressed.length === 0 || pressed.some((flag) => own.includes(flag))));
    count += row.hidden ? 0 : 1;
  }
  shown.textContent = count === rows.length ? `${count} masks` : `${count} of ${rows.length} masks`;
}

for (const heading of table.tHead.rows[0].cells) {
  const button = heading.querySelector("button");
  if (button) button.addEventListener("click", () => sortBy(heading));
}
for (const button of flags) {
  button.addEventListener("click", () => {
    button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") !== "true"));
    filter();
  });
}
words.addEventListener("input", filter);
filter();
