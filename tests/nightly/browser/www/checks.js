// Runs in the page: each check fulfils or fails, and all of it is posted to /result.
"use strict";

const UPLOAD_BYTES = 50 * 1024 * 1024;

const checks = {
  async "the page has its style sheet"() {
    const color = getComputedStyle(document.getElementById("heading")).color;
    if (color !== "rgb(1, 2, 3)") throw new Error(`the heading is ${color}`);
  },

  async "a second load is not sent again"() {
    const first = await fetch("style.css", { cache: "no-store" });
    const tag = first.headers.get("ETag");
    const second = await fetch("style.css", { cache: "no-store", headers: { "If-None-Match": tag } });
    if (second.status !== 304) throw new Error(`status ${second.status} for ${tag}`);
  },

  async "a WebSocket says text and bytes and closes"() {
    const socket = new WebSocket(`ws://${location.host}/ws`);
    socket.binaryType = "arraybuffer";
    const next = (event) => new Promise((resolve, reject) => {
      socket.addEventListener(event, resolve, { once: true });
      socket.addEventListener("error", () => reject(new Error("socket error")), { once: true });
    });
    await next("open");
    let answer = next("message");
    socket.send("grüße");
    let data = (await answer).data;
    if (data !== "grüße") throw new Error(`echo of text: ${data}`);
    answer = next("message");
    const bytes = new Uint8Array(300000).map((_, index) => index % 251);
    socket.send(bytes);
    data = new Uint8Array((await answer).data);
    if (data.length !== bytes.length || data.some((byte, index) => byte !== bytes[index])) {
      throw new Error(`echo of bytes: ${data.length}`);
    }
    const closed = next("close");
    socket.close(4001, "enough");
    const { wasClean, code } = await closed;
    if (!wasClean || code !== 4001) throw new Error(`closed ${code}, clean ${wasClean}`);
  },

  async "a file of 50 MB is uploaded whole"() {
    const block = new Uint8Array(1024 * 1024).map((_, index) => (index * 7) % 256);
    const file = new Blob(new Array(UPLOAD_BYTES / block.length).fill(block));
    const told = await (await fetch("/upload", { method: "POST", body: file })).json();
    const digest = await crypto.subtle.digest("SHA-256", await file.arrayBuffer());
    const hex = [...new Uint8Array(digest)].map((byte) => byte.toString(16).padStart(2, "0")).join("");
    if (told.size !== UPLOAD_BYTES || told.sha256 !== hex) throw new Error(JSON.stringify(told));
  },

  async "a streamed response is seen to grow"() {
    const reader = (await fetch("/stream")).body.getReader();
    const sizes = [];
    let size = 0;
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      size += value.length;
      sizes.push(size);
    }
    if (sizes.length < 5 || size !== 100) throw new Error(`pieces ${sizes}`);
  },
};

(async () => {
  const results = {};
  for (const [name, check] of Object.entries(checks)) {
    try {
      await check();
      results[name] = "ok";
    } catch (error) {
      results[name] = String(error);
    }
    const item = document.createElement("li");
    item.textContent = `${name}: ${results[name]}`;
    document.getElementById("results").append(item);
  }
  await fetch("/result", { method: "POST", body: JSON.stringify(results) });
})();
