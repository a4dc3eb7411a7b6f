"use strict";
// Sorts a table by a column: numbers first from the highest, words from A; a third press restores the table's own order.
// Sections are sorted within themselves, and quoted rows stay below the row that they belong to.
for (const table of document.querySelectorAll("table.sortable")) {
  const bodies = Array.from(table.tBodies, (body) => {
    const groups = [];
    for (const row of body.querySelectorAll("tr:not(.section)")) {
      if (row.classList.contains("quoted") && groups.length) groups[groups.length - 1].push(row);
      else groups.push([row]);
    }
    return { body, groups };
  });
  if (bodies.every(({ groups }) => groups.length < 2)) continue;
  const heads = Array.from(table.tHead.rows[0].cells);
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const cells = bodies.flatMap(({ groups }) => groups.map((group) => group[0].cells[column]));
      const numeric = cells.some((cell) => "key" in cell.dataset);
      const [first, second] = numeric ? ["descending", "ascending"] : ["ascending", "descending"];
      const old = head.getAttribute("aria-sort");
      const order = old === null ? first : old === first ? second : null;
      for (const other of heads) other.removeAttribute("aria-sort");
      if (order) head.setAttribute("aria-sort", order);
      for (const { body, groups } of bodies) {
        const sorted = order ? groups.toSorted((a, b) => compare(a[0].cells[column], b[0].cells[column], numeric, order)) : groups;
        body.append(...sorted.flat());
      }
    });
  });
}

function compare(a, b, numeric, order) {
  const sign = order === "ascending" ? 1 : -1;
  if (!numeric) return sign * a.textContent.trim().localeCompare(b.textContent.trim(), "en", { numeric: true });
  if (!("key" in a.dataset) || !("key" in b.dataset)) return ("key" in b.dataset) - ("key" in a.dataset);  // no number: last
  return sign * (Number(a.dataset.key) - Number(b.dataset.key));
}
