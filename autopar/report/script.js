"use strict";
// What the page does beyond folding, which is HTML's own: values under the pointer, all modules at once, everything open on paper.
(() => {
  const tip = document.getElementById("tip");

  const bytes = (n) => {
    let unit = "B";
    for (const larger of ["KiB", "MiB", "GiB", "TiB"]) {
      if (Math.abs(n) < 999.5) break;
      n /= 1024;
      unit = larger;
    }
    return `${Number(n.toPrecision(3))} ${unit}`;
  };
  const seconds = (s) => {
    const [unit, scale] = s >= 1 ? ["s", 1] : s >= 1e-3 ? ["ms", 1e3] : ["µs", 1e6];
    return `${Number((s * scale).toPrecision(3))} ${unit}`;
  };
  const element = (name, text, parent, style) => {
    const made = document.createElement(name);
    if (text !== null) made.textContent = text;
    if (style) made.className = style;
    if (parent) parent.append(made);
    return made;
  };

  const show = (fill, x, y) => {
    tip.replaceChildren();
    fill(tip);
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    const left = x + 14 + box.width > innerWidth ? x - 14 - box.width : x + 14;
    const top = y + 14 + box.height > innerHeight ? y - 14 - box.height : y + 14;
    tip.style.left = `${Math.max(8, Math.min(left, innerWidth - box.width - 8))}px`;
    tip.style.top = `${Math.max(8, top)}px`;
  };
  const hide = () => { tip.hidden = true; };

  // Titles of shapes become ours: the browser's own come late and cannot be read on a phone.
  for (const title of document.querySelectorAll("rect > title")) {
    title.parentNode.dataset.tip = title.textContent;
    title.remove();
  }
  for (const titled of document.querySelectorAll("main [title]")) {
    titled.dataset.tip = titled.title;
    titled.setAttribute("aria-description", titled.title);
    titled.removeAttribute("title");
  }
  const tipped = (event) => event.target.closest && event.target.closest("[data-tip]");
  const say = (event) => {
    const found = tipped(event);
    if (!found) return;
    const box = found.getBoundingClientRect();
    show((at) => { at.textContent = found.dataset.tip; }, event.clientX ?? box.right, event.clientY ?? box.bottom);
  };
  document.addEventListener("pointermove", say);
  document.addEventListener("pointerdown", say);
  document.addEventListener("focusin", say);
  document.addEventListener("pointerout", (event) => { if (tipped(event)) hide(); });
  document.addEventListener("focusout", hide);
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });
  document.addEventListener("scroll", hide, { passive: true });

  const plot = document.getElementById("memory-plot");
  if (plot) {
    const found = JSON.parse(document.getElementById("memory-data").textContent);
    const canvas = plot.querySelector(".canvas");
    const cross = element("span", null, canvas, "cross");
    cross.hidden = true;
    const line = (table, style, words, value) => {
      const row = element("tr", null, table);
      const first = element("td", null, row);
      element("span", "", first, `swatch m-${style}`);
      first.append(words);
      element("td", bytes(value), row);
    };
    const fill = (index) => (at) => {
      const [time, call, what, ...parts] = found.samples[index];
      element("b", `${bytes(parts.reduce((a, b) => a + b, 0))} at ${seconds(time)}`, at);
      element("span", `${found.calls[call]}${what ? `: ${what}` : ""}`, at);
      const table = element("table", null, at);
      found.purposes.map(([key, words], i) => [key, words, parts[i]]).reverse()
        .forEach(([key, words, value]) => { if (value) line(table, key, words, value); });
      if (index === found.peak) {
        element("b", "the largest that live at the peak", at);
        const largest = element("table", null, at);
        for (const [words, key, count, value] of found.living.slice(0, 6)) line(largest, key, count > 1 ? `${words} × ${count}` : words, value);
      }
    };
    let current = found.peak;
    const place = (index, y) => {
      current = index;
      const box = canvas.getBoundingClientRect();
      const share = found.samples[index][0] / found.step;
      cross.hidden = false;
      cross.style.left = `${100 * share}%`;
      show(fill(index), box.left + share * box.width, y ?? box.top + 20);
    };
    const nearest = (time) => {
      let low = 0, high = found.samples.length - 1;
      while (low < high) {
        const middle = (low + high + 1) >> 1;
        if (found.samples[middle][0] <= time) low = middle; else high = middle - 1;
      }
      return low;
    };
    const point = (event) => {
      const box = canvas.getBoundingClientRect();
      const atPeak = event.target.closest("[data-peak]");
      const slack = 4 / box.width * found.step;
      const time = (event.clientX - box.left) / box.width * found.step;
      const close = Math.abs(time - found.samples[found.peak][0]) < slack;
      place(atPeak || close ? found.peak : nearest(time), event.clientY);
    };
    const leave = () => { cross.hidden = true; hide(); };
    canvas.addEventListener("pointermove", point);
    canvas.addEventListener("pointerdown", point);
    canvas.addEventListener("pointerleave", leave);
    plot.addEventListener("blur", leave);
    plot.querySelector("[data-peak]").addEventListener("focus", () => place(found.peak));
    plot.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!step) return;
      event.preventDefault();
      place(Math.max(0, Math.min(found.samples.length - 1, current + step)));
    });
  }

  for (const tools of document.querySelectorAll(".tools")) {
    tools.hidden = false;
    tools.addEventListener("click", (event) => {
      const way = event.target.dataset.fold;
      if (way) for (const module of document.querySelectorAll(".tree details")) module.open = way === "open";
    });
  }
  let shut = [];
  addEventListener("beforeprint", () => {
    shut = [...document.querySelectorAll("details:not([open])")];
    for (const module of shut) module.open = true;
  });
  addEventListener("afterprint", () => { for (const module of shut) module.open = false; });
})();
