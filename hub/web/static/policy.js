// The policy's editor: a plain text field over a coloured copy of it, with line numbers and marks at lines with mistakes.
"use strict";
(() => {
  const editor = document.querySelector("[data-editor]");
  if (!editor) return;
  const text = editor.querySelector("textarea"), paint = editor.querySelector("pre"), gutter = editor.querySelector(".gutter");
  const PAINT_MAX = 200000; // characters; a longer text is shown without colours
  const TOKENS = /(\/\/[^\n]*|\/\*[\s\S]*?(?:\*\/|$))|("(?:\\.|[^"\\\n])*"?)(\s*:)?|\b(-?\d+(?:\.\d+)?|true|false|null)\b/g;
  let marked = new Set();

  function add(content, kind) {
    if (!kind) return paint.append(content);
    const span = document.createElement("span");
    span.className = kind;
    span.textContent = content;
    paint.append(span);
  }
  function draw() {
    const value = text.value;
    paint.textContent = "";
    if (value.length > PAINT_MAX) add(value);
    else {
      let at = 0;
      for (const token of value.matchAll(TOKENS)) {
        if (token.index > at) add(value.slice(at, token.index));
        if (token[1] !== undefined) add(token[1], "t-com");
        else if (token[2] !== undefined) {
          add(token[2], token[3] !== undefined ? "t-key" : "t-str");
          if (token[3] !== undefined) add(token[3]);
        } else add(token[0], "t-num");
        at = token.index + token[0].length;
      }
      add(value.slice(at));
    }
    add("\n ");
    number(value.split("\n").length);
  }
  function number(lines) {
    gutter.textContent = "";
    for (let line = 1; line <= lines; line++) {
      if (marked.has(line)) {
        const mark = document.createElement("b");
        mark.textContent = line;
        gutter.append(mark, "\n");
      } else gutter.append(`${line}\n`);
    }
    gutter.append("\n");
    follow();
  }
  function follow() {
    paint.scrollTop = gutter.scrollTop = text.scrollTop;
    paint.scrollLeft = text.scrollLeft;
  }
  function mark() {
    const lines = document.getElementById("result")?.dataset.lines;
    marked = new Set((lines || "").split(",").filter(Boolean).map(Number));
    number(text.value.split("\n").length);
  }
  text.addEventListener("input", draw);
  text.addEventListener("scroll", follow);
  text.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      document.querySelector("[data-check]").click();
    }
  });
  document.addEventListener("htmx:afterSwap", mark);
  document.addEventListener("click", (event) => {
    const link = event.target.closest("[data-line]");
    if (!link) return;
    event.preventDefault();
    const line = Number(link.dataset.line), before = text.value.split("\n").slice(0, line - 1).join("\n").length;
    text.focus();
    text.setSelectionRange(before + (line > 1 ? 1 : 0), before + (line > 1 ? 1 : 0));
    text.scrollTop = (line - 4) * parseFloat(getComputedStyle(text).lineHeight);
  });
  let saved = text.value;
  document.getElementById("policy-form").addEventListener("submit", () => { saved = text.value; });
  addEventListener("beforeunload", (event) => { if (text.value !== saved) event.preventDefault(); });
  draw();
  mark();
})();
