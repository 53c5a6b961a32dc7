// Node 18, which bookworm has, knows it under another name only.
globalThis.crypto ??= require("node:crypto").webcrypto;
