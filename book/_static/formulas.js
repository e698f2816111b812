// A formula that is wider than its line is set smaller until it fits. Without this it scrolls within its line.
(() => {
  const fit = line => {
    const formula = line.querySelector("mjx-container");
    const width = formula?.querySelector("mjx-math")?.getBoundingClientRect().width;
    if (!width) return;
    const scale = Number(formula.dataset.scale ?? 1);
    // Rounded down, so that it does not change for ever by less than a pixel.
    const wanted = Math.floor(100 * Math.min(1, (formula.clientWidth * scale) / width)) / 100;
    if (wanted === scale) return;
    formula.dataset.size ??= formula.style.fontSize || "100%";
    formula.dataset.scale = wanted;
    formula.style.fontSize = `calc(${formula.dataset.size} * ${wanted})`;
  };
  // It speaks up when MathJax has set a formula, when a phone is turned, and when a box is opened.
  const watch = new ResizeObserver(entries => entries.forEach(entry => fit(entry.target)));
  document.querySelectorAll("div.math, .statement").forEach(line => watch.observe(line));
})();
