"use strict";
const $$ = (query, from = document) => Array.from(from.querySelectorAll(query));

const value = (row, column) => {
  const cell = row.cells[column];
  const text = cell.textContent.trim();
  if (cell.dataset.v !== undefined) return Number(cell.dataset.v);
  return text !== "" && !Number.isNaN(Number(text)) ? Number(text) : text;
};

const order = (one, other, sign) => {
  const numbers = [one, other].map((it) => typeof it === "number");
  if (numbers[0] && numbers[1]) return sign * (one - other);
  if (numbers[0] !== numbers[1]) return numbers[0] ? -1 : 1; // what is not known comes last
  return sign * one.localeCompare(other, "en", { numeric: true });
};

function sort(table, column) {
  const heads = $$("thead th", table);
  const rising = heads[column].getAttribute("aria-sort") !== "ascending";
  heads.forEach((head, i) => head.setAttribute("aria-sort", i !== column ? "none" : rising ? "ascending" : "descending"));
  const body = table.tBodies[0];
  const rows = Array.from(body.rows, (row, place) => ({ row, place, key: value(row, column) }));
  rows.sort((a, b) => order(a.key, b.key, rising ? 1 : -1) || a.place - b.place);
  body.append(...rows.map(({ row }) => row));
}

function filter(words) {
  for (const sheet of $$(".sheet")) {
    const rows = $$("tbody tr", sheet);
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
    }
    const shown = rows.filter((row) => !row.hidden).length;
    sheet.querySelector(".count").textContent = shown === rows.length ? "" : `${shown} of ${rows.length} rows`;
  }
}

const FORMS = {
  csv: (rows) => rows.map((row) => row.map((text) => `"${text.replaceAll('"', '""')}"`).join(",")).join("\n"),
  markdown: (rows) => {
    const lines = rows.map((row) => `| ${row.map((text) => text.replaceAll("|", "\\|")).join(" | ")} |`);
    lines.splice(1, 0, `| ${rows[0].map((_, i) => (i ? "---:" : "---")).join(" | ")} |`);
    return lines.join("\n");
  },
  latex: (rows) => {
    const plain = (text) => text.replace(/[&%_#$]/g, "\\$&").replaceAll("±", "$\\pm$").replaceAll("≈", "$\\approx$");
    const lines = rows.map((row) => `${row.map(plain).join(" & ")} \\\\`);
    lines.splice(1, 0, "\\midrule");
    return `\\begin{tabular}{l${"r".repeat(rows[0].length - 1)}}\n\\toprule\n${lines.join("\n")}\n\\bottomrule\n\\end{tabular}`;
  },
};

function copy(button) {
  const table = button.closest(".sheet").querySelector("table");
  const rows = $$("tr", table).filter((row) => !row.hidden);
  const text = FORMS[button.dataset.as](rows.map((row) => Array.from(row.cells, (cell) => cell.textContent.trim())));
  const area = document.createElement("textarea");
  area.value = text;
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
  const name = button.textContent;
  button.textContent = "copied";
  setTimeout(() => { button.textContent = name; }, 1200);
}

function theme() {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
}

function unfold(open) {
  for (const one of $$("details:not(.notes)")) one.open = open;
}

for (const table of $$("table.sortable")) {
  $$("thead button", table).forEach((button, column) => button.addEventListener("click", () => sort(table, column)));
}
for (const one of $$(".copy")) {
  one.hidden = false;
  $$("button", one).forEach((button) => button.addEventListener("click", () => copy(button)));
}
document.getElementById("filter").addEventListener("input", (event) => {
  filter(event.target.value.toLowerCase().split(/\s+/).filter(Boolean));
});
document.getElementById("theme").addEventListener("click", theme);
document.getElementById("unfold").addEventListener("click", (event) => {
  const open = event.target.getAttribute("aria-pressed") !== "true";
  event.target.setAttribute("aria-pressed", String(open));
  event.target.textContent = open ? "close all figures" : "open all figures";
  unfold(open);
});
addEventListener("beforeprint", () => unfold(true));
