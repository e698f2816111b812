// Makes the ledger's overview searchable and sortable, and typesets its equations when they come near. Without it the
// table and the entries are there all the same, with the equations in LaTeX.
(() => {
  const table = document.getElementById("overview");
  if (!table) return;

  // All of them at once would keep the page busy for many seconds.
  const near = new IntersectionObserver(entries => {
    const equations = entries.filter(entry => entry.isIntersecting).map(entry => entry.target);
    equations.forEach(equation => near.unobserve(equation));
    MathJax.startup.promise = MathJax.startup.promise.then(() => {
      for (const equation of equations) equation.textContent = `\\[${equation.textContent}\\]`;
      return MathJax.typesetPromise(equations);
    });
  }, { rootMargin: "800px 0px" });
  if (window.MathJax?.startup) document.querySelectorAll(".statement").forEach(equation => near.observe(equation));

  const body = table.tBodies[0];
  const rows = [...body.rows].map(row => {
    const entry = document.getElementById(decodeURIComponent(row.cells[0].firstChild.hash.slice(1)));
    const words = [row.textContent, ...[...entry.querySelectorAll("table.check td:first-child")].map(cell => cell.textContent)];
    return { row, entry, words: words.join(" ").toLowerCase() };
  });

  const form = document.createElement("p");
  form.className = "ledger-search";
  form.innerHTML = '<label>Search <input type="search" placeholder="label, chapter, kind, line or wrong variant"></label> <output></output>';
  const [field, count] = [form.querySelector("input"), form.querySelector("output")];
  table.parentElement.before(form);

  // Every word has to occur; what does not match is hidden, in the table and among the entries.
  const search = () => {
    const wanted = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const { row, entry, words } of rows) {
      const hidden = !wanted.every(word => words.includes(word));
      row.hidden = entry.hidden = hidden;
      shown += !hidden;
    }
    for (const section of document.querySelectorAll("section[id^='chapter-']"))
      section.hidden = !section.querySelector(".check-entry:not([hidden])");
    count.textContent = `${shown} of ${rows.length}`;
  };
  field.addEventListener("input", search);
  // A link to an entry that the search has hidden shows everything again.
  addEventListener("hashchange", () => {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!target?.closest("[hidden]")) return;
    field.value = "";
    search();
    target.scrollIntoView();
  });
  search();

  const value = (row, column) => {
    const cell = row.cells[column];
    const text = cell.dataset.value ?? cell.textContent;
    return text.trim() === "" || Number.isNaN(Number(text)) ? text : Number(text);
  };
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const descending = head.getAttribute("aria-sort") === "ascending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      rows.sort((a, b) => {
        const [x, y] = [value(a.row, column), value(b.row, column)];
        const order = typeof x === "number" ? x - y : x.localeCompare(y);
        return descending ? -order : order;
      });
      body.append(...rows.map(({ row }) => row));
    });
  });
})();
