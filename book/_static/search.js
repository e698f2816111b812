// The excerpts on the page of search results are plain text: formulas would stand there as LaTeX.
if (typeof Search !== "undefined") {
  const toText = Search.htmlToText;
  Search.htmlToText = (page, anchor) => toText(page.replace(/<(div|span) class="math [^>]*>.*?<\/\1>/gs, " … "), anchor);
}
