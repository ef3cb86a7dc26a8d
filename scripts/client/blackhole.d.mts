// For who imports the file itself: TypeScript looks for the types of a .mjs here.
export * from "./blackhole.js";
