// Headings sort their table: numbers by value, other texts by the alphabet, empty cells last.
for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0];
  if (body.rows.length < 2) continue;
  const original = [...body.rows];
  const value = (row, column) => row.cells[column].textContent.trim();
  const number = (text) => parseFloat(text.replace(/,(?=\d{3})/g, "").replace(/^[<≤] /, ""));
  [...table.tHead.rows[0].cells].forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const isNumeric = heading.classList.contains("n");
      // Numbers from the largest, then from the smallest, then as they were.
      const orders = isNumeric ? ["descending", "ascending"] : ["ascending", "descending"];
      const next = orders[orders.indexOf(heading.ariaSort) + 1];
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      if (!next) return body.append(...original);
      heading.ariaSort = next;
      const sign = next === "ascending" ? 1 : -1;
      const key = (row) => (isNumeric ? number(value(row, column)) : value(row, column));
      const isEmpty = (found) => found === "" || Number.isNaN(found);
      const compare = (a, b) =>
        isNumeric ? a - b : a.localeCompare(b, undefined, { numeric: true });
      const rows = original.map((row) => [key(row), row]);
      rows.sort(([a], [b]) => isEmpty(a) - isEmpty(b) || (isEmpty(a) ? 0 : sign * compare(a, b)));
      body.append(...rows.map(([, row]) => row));
    });
  });
}
