// Requests to the admin address that this page came from.
//
// Invariants: the admin token is in this module's memory and in the header of requests, and nowhere else. Whoever asks is
// told what is wrong in words (`ApiError`). While nobody has given the token, one dialog asks for it, whatever asks.

/** Why a request failed. `status`: of the answer; 0 when there was none. */
export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.name = "ApiError";
    this.status = status;
  }
}

let apiToken = "";

/** Those who wait until the token is there, or until the user does not want to give it. */
let apiAsking = null;

/** The user did not want to give the token: nobody asks again until something is pressed that needs it. */
let apiDeclined = false;

/** What `init.headers` of a request must have. */
function apiHeaders() {
  return apiToken === "" ? {} : { Authorization: `Bearer ${apiToken}` };
}

/**
 * Asks. Resolves to the response, whose status is good; else throws an `ApiError`. A token that is missing is asked for.
 *
 * `quiet`: nobody is asked for the token again after having declined it; for what asks by itself again and again.
 * `patienceMs`: how long each try may take, the user's time for the token not counted.
 */
export async function api(path, { method = "GET", signal, quiet = false, patienceMs } = {}) {
  for (;;) {
    const used = apiToken;
    let response;
    const signals = [signal, patienceMs && AbortSignal.timeout(patienceMs)].filter(Boolean);
    try {
      response = await fetch(path, { method, signal: AbortSignal.any(signals), headers: apiHeaders(), cache: "no-store", credentials: "omit" });
    } catch (error) {
      if (signal?.aborted) throw error;
      throw new ApiError(0, "The server does not answer");
    }
    if (response.ok) return response;
    const text = await response.text().catch(() => "");
    if (response.status !== 401) throw new ApiError(response.status, apiWords(response.status, text));
    if (used !== apiToken) continue;
    if (quiet && apiDeclined) throw new ApiError(401, "The admin token is needed");
    if (!(await apiAskToken(used !== ""))) throw new ApiError(401, "The admin token is needed");
  }
}

/** What a refusal says: the line of text, or the message of the envelope. */
function apiWords(status, text) {
  try {
    const message = JSON.parse(text)?.data?.message;
    if (typeof message === "string") return message;
  } catch {
    // It is a line of text.
  }
  const line = text.trim().slice(0, 300);
  return line === "" ? `The server answered ${status}` : line;
}

/** Has the user give the token. Resolves to whether there is one now. `wasWrong`: one was given, and it is not the one. */
function apiAskToken(wasWrong) {
  if (apiAsking) return apiAsking;
  apiAsking = new Promise((resolve) => {
    const dialog = byId("token-dialog");
    const input = byId("token-input");
    byId("token-wrong").textContent = wasWrong ? "That is not this server's admin token." : "";
    input.value = "";
    let given = "";
    const later = () => dialog.close();
    const use = (submitted) => {
      submitted.preventDefault();
      given = input.value.trim();
      // A header takes no others, and the browser would fail every request from then on.
      const isToken = /^[\x20-\x7e]+$/.test(given);
      if (given !== "" && !isToken) byId("token-wrong").textContent = "That has a letter or a sign that no admin token can have.";
      if (isToken) dialog.close();
      else given = "";
    };
    const form = dialog.querySelector("form");
    form.addEventListener("submit", use);
    byId("token-later").addEventListener("click", later);
    dialog.addEventListener(
      "close",
      () => {
        form.removeEventListener("submit", use);
        byId("token-later").removeEventListener("click", later);
        input.value = "";
        apiDeclined = given === "";
        if (given !== "") apiToken = given;
        apiAsking = null;
        resolve(given !== "");
      },
      { once: true },
    );
    dialog.showModal();
  });
  return apiAsking;
}
