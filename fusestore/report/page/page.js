"use strict";
(() => {
  // Texts are of strangers: they are only ever set as textContent.
  const data = JSON.parse(document.getElementById("page-data").textContent);
  if (!data.viewer) return;
  const { sources, entries, texts, wide, kinds, fusedKinds } = data.viewer;
  const NO_VALUE = 65535, PER_NAT = 1000, BLOCK = 256, LONGEST_BLOCK = 512;
  const columns = sources.length + 1;
  const find = (id) => document.getElementById(id);
  const tokens = find("tokens"), panel = find("panel"), live = find("live"), chooser = find("document");
  const phone = matchMedia("(max-width:760px)");
  let doc = null, blocks = [], selected = -1, shown = -1, color = "winner";

  const make = (tag, text, className) => {
    const element = document.createElement(tag);
    if (text !== undefined) element.textContent = text;
    if (className) element.className = className;
    return element;
  };
  const visible = (text) => text.replace(/\n/g, "↵").replace(/\t/g, "⇥").replace(/ /g, "␣") || "(empty)";
  const inText = (text) => text.replace(/\n/g, "↵\n").replace(/\t/g, "⇥");
  const percent = (code) => code === NO_VALUE ? "unknown" : percentOf(Math.exp(-code / PER_NAT));
  const percentOf = (share) => `${share >= 0.0995 ? (100 * share).toFixed(0) : share >= 0.00095 ? (100 * share).toFixed(1) : share > 0 ? "< 0.1" : "0"} %`;

  async function unpack(id) {
    const packed = atob(find(`document-${id}`).textContent.trim());
    const bytes = Uint8Array.from(packed, (character) => character.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const buffer = await new Response(stream).arrayBuffer();
    const size = data.viewer.documents.find((each) => each.document === id).num_tokens;
    let at = 0;
    const take = (type, count) => {
      const array = new type(buffer.slice(at, at + count * type.BYTES_PER_ELEMENT));
      at += count * type.BYTES_PER_ELEMENT;
      return array;
    };
    const index = wide ? Uint32Array : Uint16Array;
    return {
      size, ids: take(index, size), entryIds: take(index, size * columns * entries),
      logprobs: take(Uint16Array, size * columns * entries), labels: take(Uint16Array, size * columns),
      apart: take(Uint8Array, size), weights: take(Uint8Array, size * sources.length),
      kinds: take(Uint8Array, size * sources.length), fusedKind: take(Uint8Array, size),
    };
  }

  // Token t was predicted by row t - 1; the first token of a document by none.
  const label = (token, column) => token ? doc.labels[(token - 1) * columns + column] : NO_VALUE;
  function winner(token) {
    let best = -1;
    for (let source = 0; source < sources.length; source++)
      if (label(token, source) !== NO_VALUE && (best < 0 || label(token, source) < label(token, best))) best = source;
    return best;
  }
  const surprise = (token) => label(token, sources.length) === NO_VALUE ? -1 : label(token, sources.length) / PER_NAT / Math.LN2;
  const apart = (token) => !token || doc.apart[token - 1] === 255 ? -1 : doc.apart[token - 1] / 254;
  const step = (value, limits) => limits.filter((limit) => value >= limit).length;
  function shade(token) {
    if (color === "winner") { const best = winner(token); return best < 0 ? "unknown" : `s${best % 6}`; }
    if (color === "surprise") return surprise(token) < 0 ? "unknown" : `q${step(surprise(token), [1, 3, 6, 10])}`;
    if (color === "disagreement") return apart(token) < 0 ? "unknown" : `q${step(apart(token), [0.1, 0.25, 0.5, 0.75])}`;
    return "";
  }

  function cut() {
    const cuts = [];
    for (let start = 0; start < doc.size;) {
      let stop = Math.min(start + BLOCK, doc.size);
      while (stop < Math.min(start + LONGEST_BLOCK, doc.size) && !texts[doc.ids[stop - 1]].includes("\n")) stop++;
      cuts.push({ start, stop });
      start = stop;
    }
    return cuts;
  }
  const textOf = (block) => {
    let text = "";
    for (let token = block.start; token < block.stop; token++) text += inText(texts[doc.ids[token]]);
    return text;
  };
  // Only blocks near the visible part have an element for each token.
  const near = new IntersectionObserver((changes) => {
    for (const change of changes) {
      const block = blocks[change.target.dataset.block];
      if (block && block.element === change.target) change.isIntersecting ? fill(block) : empty(block);
    }
  }, { root: tokens, rootMargin: "600px 0px" });
  function fill(block) {
    if (block.filled) return;
    const parts = document.createDocumentFragment();
    for (let token = block.start; token < block.stop; token++) {
      const element = make("b", inText(texts[doc.ids[token]]), shade(token));
      element.dataset.token = token;
      if (token === selected) element.classList.add("at");
      parts.append(element);
    }
    block.element.replaceChildren(parts);
    block.filled = true;
  }
  function empty(block) {
    if (!block.filled || (selected >= block.start && selected < block.stop)) return;
    block.element.textContent = textOf(block);
    block.filled = false;
  }
  function blockOf(token) {
    let low = 0, high = blocks.length - 1;
    while (low < high) { const middle = (low + high + 1) >> 1; blocks[middle].start <= token ? low = middle : high = middle - 1; }
    return blocks[low];
  }
  function elementOf(token) {
    const block = blockOf(token);
    fill(block);
    return block.element.children[token - block.start];
  }

  async function open(id) {
    const began = performance.now();
    const opened = await unpack(id);
    if (Number(chooser.value) !== id) return;
    doc = opened; selected = shown = -1;
    near.disconnect();
    blocks = cut();
    const all = document.createDocumentFragment();
    blocks.forEach((block, number) => {
      block.element = make("div", textOf(block), "block");
      block.element.dataset.block = number;
      all.append(block.element);
    });
    tokens.replaceChildren(all);
    tokens.scrollTop = 0;
    blocks.forEach((block) => near.observe(block.element));
    panel.classList.remove("open");
    find("details").replaceChildren(make("p", "Choose a token: point at it, tap it, or use the arrow keys."));
    document.documentElement.dataset.opened = `${id} ${Math.round(performance.now() - began)}`;
  }

  function describe(token) {
    if (!token) return "The first token of a document is predicted by no row.";
    const best = winner(token);
    const code = label(token, sources.length);
    const parts = [code === NO_VALUE ? "What the fused row gives it is unknown." : `The fused row gives it ${percent(code)}.`];
    parts.push(best < 0 ? "No source has a row here." : `${sources[best]} gives it most, ${percent(label(token, best))}.`);
    return parts.join(" ");
  }
  function list(token, column) {
    const row = token - 1, items = make("ol");
    for (let entry = 0; entry < entries; entry++) {
      const place = (row * columns + column) * entries + entry, code = doc.logprobs[place];
      if (code === NO_VALUE) continue;
      const right = doc.entryIds[place] === doc.ids[token];
      const item = make("li", undefined, right ? "right" : ""), bar = make("span", "", "bar");
      item.append(make("code", visible(texts[doc.entryIds[place]])), make("span", `${right ? "✓ " : ""}${percent(code)}`, "number"), bar);
      bar.style.width = `${100 * Math.exp(-code / PER_NAT)}%`;
      items.append(item);
    }
    return items.children.length ? items : make("p", "No entries.", "soft");
  }
  function show(token) {
    if (token === shown || !doc) return;
    shown = token;
    const details = find("details"), parts = document.createDocumentFragment(), title = make("h3");
    title.append(make("code", visible(texts[doc.ids[token]])), ` token ${(token + 1).toLocaleString("en")} of ${doc.size.toLocaleString("en")}`);
    parts.append(title, make("p", describe(token)));
    if (token) {
      const row = token - 1, bits = surprise(token), distance = apart(token);
      const facts = [];
      if (bits >= 0) facts.push(`surprise ${bits.toFixed(1)} bits`);
      if (distance >= 0) facts.push(`disagreement ${percentOf(distance)}`);
      if (facts.length) parts.append(make("p", facts.join(" · "), "soft"));
      parts.append(make("h4", `fused row · ${fusedKinds[doc.fusedKind[row]]}`), list(token, sources.length));
      sources.forEach((source, index) => {
        const heading = make("h4", `${source} · weight ${percentOf(doc.weights[row * sources.length + index] / 255)}`);
        heading.style.setProperty("--edge", `var(--c${index % 6})`);
        parts.append(heading, make("p", `${kinds[doc.kinds[row * sources.length + index]]}; gives the token ${percent(label(token, index))}`, "soft"), list(token, index));
      });
    }
    details.replaceChildren(parts);
  }
  function select(token, spoken) {
    if (!doc || token < 0 || token >= doc.size) return;
    const before = selected;
    selected = token;
    if (before >= 0) { const block = blockOf(before); if (block.filled) block.element.children[before - block.start].classList.remove("at"); }
    const element = elementOf(token);
    element.classList.add("at");
    element.scrollIntoView({ block: "nearest" });
    show(token);
    panel.classList.add("open");
    if (phone.matches) {
      const below = element.getBoundingClientRect().bottom - panel.getBoundingClientRect().top + 12;
      if (below > 0) { tokens.scrollTop += below; if (element.getBoundingClientRect().bottom > panel.getBoundingClientRect().top) scrollBy(0, below); }
    }
    if (spoken) live.textContent = `${visible(texts[doc.ids[token]])}. ${describe(token)}`;
  }
  // The token of the next line, up or down, that stands nearest.
  function line(direction) {
    const here = elementOf(selected).getBoundingClientRect();
    let best = -1, top = null, least = Infinity;
    for (let token = selected + direction; token >= 0 && token < doc.size; token += direction) {
      const there = elementOf(token).getClientRects()[0] || elementOf(token).getBoundingClientRect();
      if (direction > 0 ? there.top <= here.top + 4 : there.top >= here.top - 4) continue;
      if (top === null) top = there.top;
      if (Math.abs(there.top - top) > 4) break;
      const away = Math.abs(there.left - here.left);
      if (away < least) { least = away; best = token; }
    }
    return best < 0 ? (direction > 0 ? doc.size - 1 : 0) : best;
  }

  tokens.addEventListener("keydown", (event) => {
    if (!doc || event.ctrlKey || event.metaKey || event.altKey) return;
    const at = Math.max(selected, 0);
    let to = null;
    if (event.key === "ArrowRight") to = selected < 0 ? 0 : Math.min(at + 1, doc.size - 1);
    else if (event.key === "ArrowLeft") to = Math.max(at - 1, 0);
    else if (event.key === "ArrowDown") to = selected < 0 ? 0 : line(1);
    else if (event.key === "ArrowUp") to = selected < 0 ? 0 : line(-1);
    else if (event.key === "Home") to = 0;
    else if (event.key === "End") to = doc.size - 1;
    else if (event.key === "Escape") { panel.classList.remove("open"); return; }
    if (to === null) return;
    event.preventDefault();
    select(to, true);
  });
  const tokenAt = (event) => { const element = event.target.closest("b"); return element ? Number(element.dataset.token) : -1; };
  tokens.addEventListener("click", (event) => select(tokenAt(event), false));
  tokens.addEventListener("pointerover", (event) => {
    const token = event.pointerType === "mouse" ? tokenAt(event) : -1;
    if (token >= 0) show(token);
  });
  tokens.addEventListener("pointerleave", () => { if (selected >= 0) show(selected); });
  find("close").addEventListener("click", () => { panel.classList.remove("open"); tokens.focus(); });
  chooser.addEventListener("change", () => open(Number(chooser.value)));
  const legends = {
    winner: [...sources.map((source, index) => [source, `s${index % 6}`]), ["no source has a row", "unknown"]],
    surprise: [["below 1 bit", "q0"], ["1 to 3", "q1"], ["3 to 6", "q2"], ["6 to 10", "q3"], ["10 bits and more", "q4"], ["unknown", "unknown"]],
    disagreement: [["below 10 %", "q0"], ["10 to 25 %", "q1"], ["25 to 50 %", "q2"], ["50 to 75 %", "q3"], ["75 % and more", "q4"], ["fewer than two sources", "unknown"]],
    nothing: [],
  };
  function recolor() {
    color = document.querySelector("input[name=color]:checked").value;
    find("legend").replaceChildren(...legends[color].map(([text, className]) => make("span", text, `key ${className}`)));
    for (const block of blocks) if (block.filled) { block.filled = false; fill(block); }
  }
  document.querySelectorAll("input[name=color]").forEach((input) => input.addEventListener("change", recolor));
  recolor();
  open(Number(chooser.value));
})();
