import { Server, put, putMessages } from "./text.js";

const by = (id) => document.getElementById(id);
const server = new Server();
const MOST_SHOWN = 20;

const percent = (share) => (share === null ? "" : `${(100 * share).toFixed(1)} %`);
const number = (value, digits) => (value === null ? "" : value.toFixed(digits));

function row(cells) {
  const made = document.createElement("tr");
  cells.forEach((text, index) => {
    const cell = document.createElement(index ? "td" : "th");
    if (!index) cell.scope = "row";
    put(cell, String(text));
    made.append(cell);
  });
  return made;
}

function conflict(found) {
  const box = document.createElement("form");
  box.className = "conflict";
  const prompt = document.createElement("div");
  putMessages(prompt, found.prompt);
  const said = document.createElement("p");
  said.className = "hint";
  put(said, `They order ${percent(found.share)} of the pairs differently.`);
  box.append(prompt, said);
  const ranks = found.responses.map((text, place) => {
    const line = document.createElement("div");
    line.className = "choice";
    const choice = document.createElement("select");
    choice.setAttribute("aria-label", `Rank of answer ${place + 1}`);
    choice.required = true; // a decision that was not made would be a tie of all
    choice.append(new Option("rank", ""));
    found.responses.forEach((_, rank) => choice.append(new Option(rank + 1, rank + 1)));
    const answer = document.createElement("div");
    const content = document.createElement("p");
    content.className = "text";
    put(content, text);
    const votes = document.createElement("p");
    votes.className = "hint";
    const given = Object.entries(found.rankings).map(([name, order]) => `${name}: ${order[place]}`);
    put(votes, given.join(", "));
    answer.append(content, votes);
    line.append(choice, answer);
    box.append(line);
    return choice;
  });
  const send = document.createElement("button");
  send.textContent = "Decide";
  box.append(send);
  box.addEventListener("submit", async (event) => {
    event.preventDefault();
    const vote = { ranks: ranks.map((choice) => Number(choice.value)) };
    try {
      await server.send("api/adjudicate", { item: found.item, vote });
      await load();
      by("status").textContent = "Decided.";
    } catch (error) {
      by("status").textContent = `Not decided: ${error.message}.`;
    }
  });
  return box;
}

async function load() {
  const report = await server.get("api/report");
  const { items, done, votes, skips, labelers, demonstrations, prompts } = report.counts;
  by("progress").textContent = `${done} of ${items} items done, by ${labelers} labelers.`;
  by("all").tBodies[0].replaceChildren(
    row(["rankings", votes]),
    row(["left out", skips]),
    row(["demonstrations, prompts", `${demonstrations}, ${prompts}`]),
    row(["pairs ordered alike", percent(report.agreement)]),
    row(["flags given alike", percent(report.flag_agreement)]),
    row(["alpha of rankings", number(report.ranking_alpha, 3)]),
    row(["alpha of ratings", number(report.rating_alpha, 3)]),
  );
  by("each").tBodies[0].replaceChildren(
    ...report.labelers.map((each) =>
      row([
        each.name,
        each.votes,
        percent(each.agreement),
        percent(each.gold),
        percent(each.sensitive),
        number(each.first, 2),
        percent(each.longer),
        percent(each.ties),
        number(each.seconds, 0),
      ]),
    ),
  );
  const found = report.labelers.filter((each) => each.look.length);
  by("look").hidden = !found.length;
  by("look").replaceChildren(
    ...found.flatMap(({ name, look }) =>
      look.map((reason) => {
        const line = document.createElement("li");
        put(line, `Look at ${name}: ${reason}.`);
        return line;
      }),
    ),
  );
  by("no-conflicts").hidden = report.conflicts.length > 0;
  by("conflicts").replaceChildren(...report.conflicts.slice(0, MOST_SHOWN).map(conflict));
  by("report").hidden = false;
}

try {
  await server.begin();
  await load();
} catch (error) {
  by("status").textContent = `${error.message}.`;
}
