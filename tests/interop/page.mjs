// A page with README's `follow`, without a browser round it: prints what it is told, as JSON lines.
//
// Run as `node page.mjs URL TOKEN` in a folder with `follow.mjs`, and NODE_PATH where `ws` is installed. Each line on
// stdin is sent as a command: [type, data, id].

import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";

const here = process.cwd() + "/";
const Socket = createRequire(here)("ws");

// In a browser a refused handshake is an event that nobody has to listen to.
globalThis.WebSocket = class extends Socket {
  constructor(...given) {
    super(...given);
    this.on("error", () => {});
  }
};

const { follow } = await import(pathToFileURL(here + "follow.mjs"));
const [url, token] = process.argv.slice(2);
const page = follow(url, async () => token, (word) => console.log(JSON.stringify(word)));

const orders = createInterface({ input: process.stdin });
orders.on("line", (line) => page.send(...JSON.parse(line)));
orders.on("close", () => page.stop());
