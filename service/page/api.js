// Calls to the service. Keys are asked for when they are needed and live in this module's variables only.

const keys = { api: null, admin: null };
const asked = {
  api: ["A key is needed", "This service answers to those who have a key.", "Key"],
  admin: ["Admin token", "Exchanging the checkpoint changes what everybody gets.", "Token"],
};
let asking = null; // one dialog at a time, however many calls wait for its answer

export class Refused extends Error {}

/** Calls the service; gives the JSON answer, or throws Refused with the problem's own words. */
export async function call(path, { method = "GET", body, headers = {}, key = "api", signal } = {}) {
  for (let wrong = false; ; wrong = true) {
    const used = keys[key] ?? keys.api;
    const sent = { ...headers };
    if (used) sent.Authorization = `Bearer ${used}`;
    if (body !== undefined) sent["Content-Type"] = "application/json";
    let response;
    try {
      response = await fetch(path, { method, headers: sent, body: body && JSON.stringify(body), signal });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Refused("The service does not answer.");
    }
    if (response.ok) return response.status === 204 ? null : response.json();
    const problem = await response.json().catch(() => ({}));
    const said = problem.detail ?? `The service answered ${response.status}.`;
    const missing = response.status === 401 || problem.type?.endsWith(":key-refused");
    if (!missing) throw new Refused(said);
    if (keys[key] === used || !keys[key]) keys[key] = null;
    if (!keys[key] && !(await ask(key, wrong || response.status === 403 ? said : null))) throw new Refused(said);
  }
}

function ask(key, complaint) {
  asking ??= show(key, complaint).finally(() => { asking = null; });
  return asking;
}

function show(key, complaint) {
  const dialog = document.getElementById("secret");
  const value = document.getElementById("secret-value");
  const [title, why, label] = asked[key];
  document.getElementById("secret-title").textContent = title;
  document.getElementById("secret-why").textContent = complaint ?? why;
  document.getElementById("secret-label").textContent = label;
  value.value = "";
  dialog.showModal();
  value.focus();
  return new Promise((resolve) => {
    const end = (given) => {
      value.value = "";
      dialog.close();
      if (given) keys[key] = given;
      resolve(Boolean(given));
    };
    dialog.querySelector("form").onsubmit = (event) => { event.preventDefault(); end(value.value.trim()); };
    document.getElementById("secret-cancel").onclick = () => end(null);
    dialog.oncancel = (event) => { event.preventDefault(); end(null); };
  });
}
