
"use strict";
// Tables of which the rows are data: filter by words and by choices, sort by a column, a page at a time.
// A column's kind: text, choice (has a filter), rank (null is below `depth`), score, change, count.
(() => {
  const PAGE = 25;

  const make = (tag, text, attributes = {}) => {
    const element = document.createElement(tag);
    if (text !== undefined) element.textContent = text;  // never as HTML: texts are strangers'
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    return element;
  };

  const shown = (value, kind, depth) => {
    if (value === null) return kind === "rank" && depth ? `below ${depth}` : "–";
    if (kind === "score") return value.toFixed(3);
    if (kind === "change") return (value > 0 ? "+" : "") + value.toFixed(3);
    return String(value);
  };

  const start = (place) => {
    const { columns, rows, depth, label } = JSON.parse(place.querySelector("script").textContent);
    const words = rows.map((row) => row.filter((_, i) => ["text", "choice"].includes(columns[i][1])).join(" ").toLowerCase());
    let sorted = null, down = false, page = 0, kept = [];

    const controls = make("div", undefined, { class: "controls", role: "search", "aria-label": label });
    const labelled = (name, control) => {
      const wrap = make("label", name);
      wrap.append(control);
      controls.append(wrap);
      return control;
    };
    const search = labelled("Filter by words", make("input", undefined, { type: "search", autocomplete: "off" }));
    const choices = columns.map(([name, kind], i) => {
      const values = [...new Set(rows.map((row) => row[i]))].sort();
      if (kind !== "choice" || values.length < 2 || values.length > 200) return null;
      const select = labelled(name, make("select"));
      select.append(make("option", "all", { value: "" }));
      values.forEach((value) => select.append(make("option", value || "(none)", { value: `=${value}` })));
      return select;
    });

    const count = make("p", "", { role: "status", class: "small soft" });
    const table = make("table", undefined, { class: "data" });
    table.append(make("caption", label));
    const head = table.appendChild(make("thead")).appendChild(make("tr"));
    const body = table.appendChild(make("tbody"));
    const left = (kind) => (["text", "choice"].includes(kind) ? "left" : "");
    const headers = columns.map(([name, kind], i) => {
      const cell = make("th", undefined, { scope: "col", class: left(kind) });
      const button = cell.appendChild(make("button", name, { type: "button" }));
      button.addEventListener("click", () => {
        down = sorted === i ? !down : !["text", "choice", "rank"].includes(columns[i][1]);
        sorted = i;
        headers.forEach((other) => other.removeAttribute("aria-sort"));
        cell.setAttribute("aria-sort", down ? "descending" : "ascending");
        update();
      });
      head.append(cell);
      return cell;
    });

    const pager = make("div", undefined, { class: "controls" });
    const [before, after] = ["Previous", "Next"].map((name, i) => {
      const button = make("button", name, { type: "button" });
      button.addEventListener("click", () => { page += i ? 1 : -1; draw(); });
      pager.append(button);
      return button;
    });
    const where = pager.appendChild(make("span", "", { class: "small soft" }));

    const compare = (a, b) => {
      const [x, y] = [rows[a][sorted], rows[b][sorted]];
      if (x === null || y === null) {  // a rank below all others is the last of them; what is not there comes last
        if (x === y) return a - b;
        const last = columns[sorted][1] === "rank" && down ? -1 : 1;
        return x === null ? last : -last;
      }
      const order = typeof x === "number" ? x - y : String(x).localeCompare(String(y));
      return (down ? -order : order) || a - b;
    };

    const update = () => {
      const wanted = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      kept = [...rows.keys()].filter((i) => wanted.every((word) => words[i].includes(word))
        && choices.every((select, c) => !select || !select.value || `=${rows[i][c]}` === select.value));
      if (sorted !== null) kept.sort(compare);
      page = 0;
      draw();
    };

    const draw = () => {
      const pages = Math.max(1, Math.ceil(kept.length / PAGE));
      body.replaceChildren(...kept.slice(page * PAGE, (page + 1) * PAGE).map((i) => {
        const line = make("tr");
        rows[i].forEach((value, c) => {
          const kind = columns[c][1];
          const cell = make(c ? "td" : "th", shown(value, kind, depth),
            c ? { class: kind === "text" ? "words" : left(kind) } : { scope: "row", class: "words" });
          const sign = kind === "change" ? value : { better: 1, worse: -1 }[value];
          if (sign) cell.classList.add(sign > 0 ? "up" : "down");
          line.append(cell);
        });
        return line;
      }));
      count.textContent = `${kept.length.toLocaleString("en")} of ${rows.length.toLocaleString("en")} shown`;
      where.textContent = `page ${page + 1} of ${pages}`;
      before.disabled = page === 0;
      after.disabled = page + 1 >= pages;
      pager.hidden = pages === 1;
    };

    search.addEventListener("input", update);
    choices.forEach((select) => select && select.addEventListener("change", update));
    const scroll = make("div", undefined, { class: "scroll", tabindex: "0", role: "region", "aria-label": label });
    scroll.append(table);
    place.append(controls, count, scroll, pager);
    update();
  };

  document.querySelectorAll("[data-table]").forEach(start);
})();
