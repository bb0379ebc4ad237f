import { Server, put, putMessages } from "./text.js";

const by = (id) => document.getElementById(id);
const server = new Server();
let me = null;
let item = null; // what the server gave
let draft = null; // { order, tied, ratings, flags, note, set, seconds }

const letter = (place) => String.fromCharCode(65 + item.shown.indexOf(place));

function say(text) {
  by("status").textContent = text;
}

// -- drafts ----------------------------------------------------------------------------------------

function fresh() {
  const count = item.responses.length;
  return {
    order: [...item.shown],
    tied: Array(count).fill(false), // by place in the order: tied with the one above
    ratings: Array(count).fill(0),
    flags: Array.from({ length: count }, () => []),
    note: "",
    set: false, // whether the labeler has put the answers in order
    seconds: 0,
  };
}

function keep() {
  localStorage.setItem(`draft ${item.item}`, JSON.stringify(draft));
}

function kept() {
  try {
    const found = JSON.parse(localStorage.getItem(`draft ${item.item}`));
    return found?.order.length === item.responses.length ? found : null;
  } catch {
    return null;
  }
}

setInterval(() => {
  if (draft && !document.hidden && !by("rank").hidden) {
    draft.seconds += 1;
    keep();
  }
}, 1000);

// -- the answers -----------------------------------------------------------------------------------

function card(place, index) {
  const answer = document.createElement("li");
  answer.tabIndex = 0;
  answer.dataset.place = place;
  answer.className = draft.tied[index] ? "answer tied" : "answer";
  const name = `Answer ${letter(place)}`;
  answer.setAttribute("aria-label", `${name}, place ${rankAt(index)}${draft.tied[index] ? ", tied" : ""}`);

  const head = document.createElement("div");
  head.className = "head";
  const rank = document.createElement("span");
  rank.className = "rank";
  rank.textContent = rankAt(index);
  const title = document.createElement("h3");
  title.textContent = name;
  head.append(rank, title, moves(place, index, name));

  const text = document.createElement("p");
  text.className = "text";
  put(text, item.responses[place]);
  answer.append(head, text, rating(place, name), flags(place, name));
  return answer;
}

function moves(place, index, name) {
  const bar = document.createElement("div");
  bar.className = "moves";
  const handle = document.createElement("span");
  handle.className = "handle";
  handle.textContent = "\u2261";
  handle.title = "Drag";
  handle.setAttribute("aria-hidden", "true");
  handle.addEventListener("pointerdown", (event) => drag(event, place));
  bar.append(
    handle,
    button("Up", `Move ${name} up`, index === 0, () => move(place, -1)),
    button("Down", `Move ${name} down`, index === draft.order.length - 1, () => move(place, 1)),
    button("Tie", `Tie ${name} with the one above`, index === 0, () => tie(place), draft.tied[index]),
  );
  return bar;
}

function button(text, label, disabled, act, pressed) {
  const made = document.createElement("button");
  made.type = "button";
  made.textContent = text;
  made.setAttribute("aria-label", label);
  made.disabled = disabled;
  if (pressed !== undefined) made.setAttribute("aria-pressed", pressed);
  made.addEventListener("click", act);
  return made;
}

function rating(place, name) {
  const set = document.createElement("fieldset");
  set.className = "rating";
  const legend = document.createElement("legend");
  legend.textContent = "How good is it?";
  set.append(legend);
  for (let value = 1; value <= 7; value += 1) {
    const label = document.createElement("label");
    const radio = document.createElement("input");
    radio.type = "radio";
    radio.name = `rating ${place}`;
    radio.value = value;
    radio.checked = draft.ratings[place] === value;
    radio.setAttribute("aria-label", `${name}: ${value} of 7`);
    radio.addEventListener("change", () => rate(place, value));
    label.append(radio, String(value));
    set.append(label);
  }
  return set;
}

function flags(place, name) {
  const box = document.createElement("details");
  box.open = draft.flags[place].length > 0;
  const summary = document.createElement("summary");
  const count = draft.flags[place].length;
  summary.textContent = count ? `What is wrong with ${name} (${count})` : `What is wrong with ${name}`;
  box.append(summary);
  for (const flag of me.flags) {
    const label = document.createElement("label");
    label.className = "flag";
    const check = document.createElement("input");
    check.type = "checkbox";
    check.checked = draft.flags[place].includes(flag);
    check.addEventListener("change", () => {
      draft.flags[place] = me.flags.filter((each) =>
        each === flag ? check.checked : draft.flags[place].includes(each),
      );
      keep();
    });
    label.append(check, ` ${flag}`);
    box.append(label);
  }
  return box;
}

/** The rank of the answer at a place in the order: 1 for the best; tied answers share one. */
function rankAt(index) {
  let rank = 1;
  for (let i = 1; i <= index; i += 1) rank += draft.tied[i] ? 0 : 1;
  return rank;
}

function draw(focus) {
  by("answers").replaceChildren(...draft.order.map(card));
  if (focus !== undefined) cardOf(focus).focus();
}

const cardOf = (place) => by("answers").querySelector(`[data-place="${place}"]`);

function rate(place, value) {
  draft.ratings[place] = value;
  keep();
  for (const radio of cardOf(place).querySelectorAll("input[type=radio]")) {
    radio.checked = Number(radio.value) === value;
  }
}

function move(place, by_) {
  const from = draft.order.indexOf(place);
  const to = from + by_;
  if (to < 0 || to >= draft.order.length) return;
  put_at(place, to);
  draw(place);
  say(`Answer ${letter(place)} is at place ${rankAt(to)}.`);
}

/** Put an answer at an index of the order. It leaves its tie, and those that were tied with it stay tied. */
function put_at(place, to) {
  const from = draft.order.indexOf(place);
  if (from + 1 < draft.order.length && draft.tied[from + 1] && !draft.tied[from]) draft.tied[from + 1] = false;
  draft.order.splice(from, 1);
  draft.tied.splice(from, 1);
  draft.order.splice(to, 0, place);
  draft.tied.splice(to, 0, false);
  draft.tied[0] = false;
  draft.set = true;
  keep();
}

function tie(place) {
  const index = draft.order.indexOf(place);
  if (index === 0) return;
  draft.tied[index] = !draft.tied[index];
  draft.set = true;
  keep();
  draw(place);
  say(`Answer ${letter(place)} is ${draft.tied[index] ? "tied with the one above" : "no longer tied"}.`);
}

function sort() {
  if (draft.ratings.includes(0)) {
    say("Rate all answers first.");
    return;
  }
  const before = new Map(draft.order.map((place, index) => [place, index]));
  draft.order.sort((a, b) => draft.ratings[b] - draft.ratings[a] || before.get(a) - before.get(b));
  draft.tied = draft.order.map(
    (place, index) => index > 0 && draft.ratings[place] === draft.ratings[draft.order[index - 1]],
  );
  draft.set = true;
  keep();
  draw(draft.order[0]);
  say("Sorted: answers with the same rating are tied.");
}

function drag(event, place) {
  event.preventDefault();
  cardOf(place).classList.add("dragged");
  const go = (moved) => {
    const cards = [...by("answers").children];
    const over = cards.findIndex((each) => moved.clientY < each.getBoundingClientRect().bottom);
    const to = over < 0 ? cards.length - 1 : over;
    if (draft.order.indexOf(place) !== to) {
      put_at(place, to);
      draw();
      cardOf(place).classList.add("dragged");
    }
  };
  const end = () => {
    removeEventListener("pointermove", go);
    removeEventListener("pointerup", end);
    removeEventListener("pointercancel", end);
    draw(place);
  };
  addEventListener("pointermove", go);
  addEventListener("pointerup", end);
  addEventListener("pointercancel", end);
}

addEventListener("keydown", (event) => {
  if (!item || by("rank").hidden) return;
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    by("vote").requestSubmit();
    return;
  }
  const typing = event.target.matches("textarea, select");
  if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
  const key = event.key.toLowerCase();
  if (key === "o") return sort();
  const here = event.target.closest("#answers > li");
  if (!here) return;
  const place = Number(here.dataset.place);
  const onRadio = event.target.matches("input[type=radio]");
  if (/^[1-7]$/.test(key)) rate(place, Number(key));
  else if (key === "k") move(place, -1);
  else if (key === "j") move(place, 1);
  else if (key === "t") tie(place);
  else if (key === "f") here.querySelector("details").open ^= true;
  else if (key === "arrowup" && !onRadio) here.previousElementSibling?.focus();
  else if (key === "arrowdown" && !onRadio) here.nextElementSibling?.focus();
  else return;
  event.preventDefault();
});

// -- sending ---------------------------------------------------------------------------------------

async function next() {
  const found = await server.send("api/next");
  // At once, so that no key or click finds the answers of one item with the draft of another, or with none.
  item = found.item === null ? null : found;
  draft = item && (kept() ?? fresh());
  by("nothing").hidden = item !== null;
  by("rank").hidden = !item || by("show-write").getAttribute("aria-pressed") === "true";
  if (item) {
    putMessages(by("prompt"), item.prompt);
    putMessages(by("demonstration-prompt"), item.prompt);
    by("note").value = draft.note;
    draw();
  } else {
    by("answers").replaceChildren();
  }
  await progress();
}

async function progress() {
  me = await server.get("api/me");
  const { items, done, votes, seconds } = me.progress;
  const pace = seconds === null ? "" : `, ${Math.round(seconds)} s for one`;
  by("progress").textContent = `${me.name}: ${votes} ranked by you${pace}. ${done} of ${items} done in all.`;
}

let sending = false;

/** Do one thing at a time: a second click while the first is sent would be another vote, or take back two. */
async function alone(act) {
  if (sending) return;
  sending = true;
  try {
    await act();
  } finally {
    sending = false;
  }
}

async function settle(path, content, said) {
  const done = item.item;
  try {
    await server.send(path, { item: done, ...content });
  } catch (error) {
    if (error.status !== 409) return say(`Not sent: ${error.message}.`);
    said = `Not counted: ${error.message}.`;
  }
  localStorage.removeItem(`draft ${done}`);
  await next();
  say(said);
  scrollTo(0, 0);
}

by("vote").addEventListener("submit", (event) => {
  event.preventDefault();
  const unrated = draft.order.find((place) => !draft.ratings[place]);
  if (unrated !== undefined) {
    cardOf(unrated).focus();
    return say(`Rate answer ${letter(unrated)} first.`);
  }
  if (!draft.set) {
    draft.set = true;
    keep();
    return say("You have not changed the order. If it is right, send again.");
  }
  const ranks = Array(draft.order.length);
  draft.order.forEach((place, index) => (ranks[place] = rankAt(index)));
  const { ratings, flags: marks, note, seconds } = draft;
  alone(() => settle("api/vote", { vote: { ranks, ratings, flags: marks, note, seconds, shown: item.shown } }, "Sent."));
});

by("skip").addEventListener("submit", (event) => {
  event.preventDefault();
  alone(() => settle("api/skip", { reason: by("reason").value }, "Left out."));
});

async function undo() {
  try {
    await server.send("api/undo");
    await next();
    say("The last one is back.");
  } catch (error) {
    say(`Not taken back: ${error.message}.`);
  }
}
by("undo").addEventListener("click", () => alone(undo));

by("sort").addEventListener("click", sort);
by("note").addEventListener("input", () => {
  draft.note = by("note").value;
  keep();
});

async function write(path, field, extra) {
  try {
    await server.send(path, { text: by(field).value, ...extra() });
    by(field).value = "";
    await progress();
    say("Sent. Thank you.");
  } catch (error) {
    say(`Not sent: ${error.message}.`);
  }
}
by("demonstration").addEventListener("submit", (event) => {
  event.preventDefault();
  alone(() => write("api/demonstration", "demonstration-text", () => ({ item: item?.item })));
});
by("own-prompt").addEventListener("submit", (event) => {
  event.preventDefault();
  alone(() => write("api/prompt", "prompt-text", () => ({})));
});

function show(writing) {
  by("show-rank").setAttribute("aria-pressed", !writing);
  by("show-write").setAttribute("aria-pressed", writing);
  by("rank").hidden = writing || !item;
  by("write").hidden = !writing;
  by("demonstration").hidden = !item;
}
by("show-rank").addEventListener("click", () => show(false));
by("show-write").addEventListener("click", () => show(true));

try {
  me = await server.begin();
  put(by("instructions"), me.instructions);
  by("instructions").hidden = !me.instructions;
  by("reason").replaceChildren(
    ...me.skips.map((reason) => {
      const option = document.createElement("option");
      option.textContent = reason;
      return option;
    }),
  );
  await next();
  show(false);
} catch (error) {
  say(`${error.message}.`);
}
