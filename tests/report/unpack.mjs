// Unpacks the headless Chromium of the npm package @sparticuz/chromium: node unpack.mjs FOLDER, where it was installed.
import { createReadStream, createWriteStream, mkdirSync, renameSync, rmSync } from "node:fs";
import { execFileSync } from "node:child_process";
import { join } from "node:path";
import { pipeline } from "node:stream/promises";
import { createBrotliDecompress } from "node:zlib";

const folder = process.argv[2];
const packed = join(folder, "node_modules", "@sparticuz", "chromium", "bin");
const unpack = (name, to, mode) =>
  pipeline(createReadStream(join(packed, name)), createBrotliDecompress(), createWriteStream(to, { mode }));

// Libraries that small Linux systems lack.
const libraries = join(folder, "lib");
mkdirSync(libraries, { recursive: true });
await unpack("al2023.tar.br", join(folder, "lib.tar"), 0o644);
execFileSync("tar", ["-xf", join(folder, "lib.tar"), "-C", libraries, "--strip-components=1"]);
rmSync(join(folder, "lib.tar"));

await unpack("chromium.br", join(folder, "chromium.part"), 0o755);
renameSync(join(folder, "chromium.part"), join(folder, "chromium"));
