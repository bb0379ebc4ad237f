// Shows text exactly as it is: never as HTML, with line breaks, and with marks for what is invisible.

const INVISIBLE =
  /[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f\u00ad\u061c\u115f\u1160\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff9-\ufffb\u{e0000}-\u{e007f}]|\r(?!\n)/gu;

/** Fill an element with text. */
export function put(element, text) {
  element.replaceChildren();
  let place = 0;
  for (const found of text.matchAll(INVISIBLE)) {
    element.append(text.slice(place, found.index));
    const mark = document.createElement("span");
    mark.className = "invisible";
    const code = found[0].codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
    mark.textContent = `U+${code}`;
    mark.title = "a character that cannot be seen";
    element.append(mark);
    place = found.index + found[0].length;
  }
  element.append(text.slice(place));
}

/** Fill an element with the messages of a conversation. */
export function putMessages(element, messages) {
  element.replaceChildren(
    ...messages.map(({ role, content }) => {
      const turn = document.createElement("div");
      turn.className = "turn";
      const who = document.createElement("p");
      who.className = "who";
      who.textContent = role;
      const said = document.createElement("p");
      said.className = "text";
      put(said, content);
      turn.append(who, said);
      return turn;
    }),
  );
}

export function hex(count) {
  const bytes = crypto.getRandomValues(new Uint8Array(count));
  return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Wait for about that many milliseconds: labelers who lost one server do not all come back at once. */
function wait(pause) {
  return new Promise((resolve) => setTimeout(resolve, pause * (0.5 + Math.random())));
}

/** A connection to the server. Requests are sent again if the network or the server fails. */
export class Server {
  #names = new Map();

  constructor() {
    this.csrf = "";
  }

  /** Begin a session with the token behind # in the address, or go on with the one there is. */
  async begin() {
    const token = location.hash.slice(1);
    if (token) {
      history.replaceState(null, "", location.pathname);
      await this.send("session", { token });
    }
    const me = await this.get("api/me");
    this.csrf = me.csrf;
    return me;
  }

  async get(path) {
    return this.#ask(path, { method: "GET" });
  }

  async send(path, content = {}) {
    // The same name for each try, also for a later click after all tries failed: nothing counts twice.
    const what = JSON.stringify([path, content.text ?? content.item]);
    const request = this.#names.get(what) ?? hex(16);
    this.#names.set(what, request);
    try {
      const said = await this.#ask(path, {
        method: "POST",
        headers: { "content-type": "application/json", "x-csrf": this.csrf },
        body: JSON.stringify(path === "session" ? content : { ...content, request }),
      });
      this.#names.delete(what);
      return said;
    } catch (error) {
      if (error.status) this.#names.delete(what); // the server has refused it
      throw error;
    }
  }

  async #ask(path, options) {
    for (let pause = 250; ; pause = Math.min(2 * pause, 4000)) {
      let answer;
      try {
        answer = await fetch(path, { ...options, credentials: "same-origin" });
      } catch (error) {
        if (pause >= 4000) throw new Error("the server does not answer; your draft is kept");
        await wait(pause);
        continue;
      }
      if (answer.status >= 500) {
        if (pause >= 4000) throw new Error("the server failed; your draft is kept");
        await wait(pause);
        continue;
      }
      const said = await answer.json().catch(() => ({}));
      if (!answer.ok) {
        const error = new Error(said.error ?? `refused (${answer.status})`);
        error.status = answer.status;
        throw error;
      }
      return said;
    }
  }
}
